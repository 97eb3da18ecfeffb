"""Recommenders by import path: scores, the graph against a dense one, exports, serving."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranking import raw_job, write_csv

from orchestrator.data import Reading, inputs_of, prepare
from orchestrator.errors import SpecError
from orchestrator.interactions import read_csv, table_of, words_of
from orchestrator.models.export import export_folder
from orchestrator.models.fingerprint import weights_sha256
from orchestrator.models.forward import classify
from orchestrator.models.load import Loaded, load_model
from orchestrator.models.ranking import lightgcn, mf
from orchestrator.pool.engine import load_role
from orchestrator.pool.records import RoleLoad
from orchestrator.signals.records import FullAsk, Request
from orchestrator.spec import JobSpec
from orchestrator.spec.formats import Interactions
from orchestrator.spec.models import ModelSpec, RoleSpec
from orchestrator.students.fit import check_classifier

USERS, ITEMS = 7, 9
FORMAT = {"kind": "interactions", "leave_one_out": True, "time": "time"}
RULE = Interactions.model_validate(FORMAT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make = np.random.default_rng(0)
    rows = [
        (user, item, int(make.integers(100)))
        for user in range(USERS)
        for item in make.permutation(ITEMS)[: 3 + user % 3]
    ]
    rows += [(0, item, -1) for item in range(ITEMS)]  # every item is there
    return write_csv(tmp_path / "x.csv", rows)


def graph(path: Path, **arguments: Any) -> Any:
    return lightgcn(str(path), FORMAT, width=5, **arguments)


def load(raw: dict[str, Any]) -> Loaded:
    return load_model(ModelSpec.model_validate({"task": "classifier", **raw}), seed=3)


def imported(name: str, **arguments: Any) -> dict[str, Any]:
    return {"import": f"orchestrator.models.ranking:{name}", "arguments": arguments}


def test_a_factorisation_scores_by_the_product_of_two_vectors() -> None:
    module = mf(USERS, ITEMS, width=5).requires_grad_(False)
    users = torch.tensor([2, 0, 2])
    found = classify(module, {"users": users, "items": torch.full((3, 1), -1)})
    for row, user in enumerate(users.tolist()):
        for item in range(ITEMS):
            wanted = (module.user_vectors[user] * module.item_vectors[item]).sum()
            assert float((found[row, item] - wanted).abs()) < 1e-6
    assert module.num_labels == ITEMS


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_a_graph_propagates_as_a_dense_matrix_does(path: Path, layers: int) -> None:
    module = graph(path, layers=layers).double()
    table = table_of(read_csv(str(path), RULE), RULE, 0.0, "f")
    adjacency = torch.zeros(USERS + ITEMS, USERS + ITEMS, dtype=torch.float64)
    for number, user in enumerate(table.users):
        for item in user.trained:
            adjacency[number, USERS + item] = adjacency[USERS + item, number] = 1.0
    degree = adjacency.sum(1)
    scale = torch.where(degree > 0, degree.clamp_min(1).rsqrt(), 0.0)
    step = scale[:, None] * adjacency * scale[None]
    start = torch.cat([module.user_vectors, module.item_vectors])
    powers = [torch.linalg.matrix_power(step, k) @ start for k in range(layers + 1)]
    wanted = torch.stack(powers).mean(0)
    users = torch.arange(USERS)
    found = module(users=users, items=torch.full((USERS, 1), -1))
    torch.testing.assert_close(found, wanted[:USERS] @ wanted[USERS:].T, rtol=1e-12, atol=1e-12)


def test_held_out_interactions_are_not_in_the_graph(path: Path) -> None:
    rows = path.read_text().splitlines()[1:]
    pairs = {tuple(row.split(",")[:2]) for row in rows}
    assert graph(path).edges.shape[1] == len(pairs) - USERS
    every = lightgcn(str(path), held_out=0.0, width=5)
    assert every.edges.shape[1] == len(pairs)


def test_another_graph_is_another_model_even_with_the_same_vectors(path: Path) -> None:
    one = load(imported("lightgcn", path=str(path), format=FORMAT, width=5))
    other = load(imported("lightgcn", path=str(path), held_out=0.3, width=5))
    assert torch.equal(one.module.user_vectors, other.module.user_vectors)  # type: ignore[arg-type]
    assert weights_sha256(one.module) != weights_sha256(other.module)


def test_an_export_has_the_graph_that_was_trained_on(path: Path, tmp_path: Path) -> None:
    loaded = load(imported("lightgcn", path=str(path), format=FORMAT, width=5))
    export_folder(loaded.module, None, tmp_path / "export", made=loaded.made)
    again = load({"path": str(tmp_path / "export"), "allow_remote_code": True})
    inputs = {"users": torch.arange(USERS), "items": torch.full((USERS, 1), -1)}
    assert torch.equal(classify(again.module, inputs), classify(loaded.module, inputs))
    assert again.fingerprint == loaded.fingerprint


@pytest.mark.parametrize("deterministic", [False, True])
def test_served_scores_are_the_models_own_for_users_of_unequal_history(
    path: Path, deterministic: bool
) -> None:
    spec = RoleSpec.model_validate(
        {"task": "classifier", **imported("lightgcn", path=str(path), format=FORMAT, width=5)}
    )
    reading = Reading(ranks_items=True)
    try:
        engine = load_role(RoleLoad("teacher", spec, deterministic, 3, reading))
    finally:
        torch.use_deterministic_algorithms(False)
    table = table_of(read_csv(str(path), RULE), RULE, 0.0, "f")
    words = [words_of(number, user) for number, user in enumerate(table.users)]
    lengths = np.array([len(one) for one in words], np.int32)
    wanted = np.zeros(lengths.sum(), bool)
    wanted[np.cumsum(lengths) - 1] = True
    ask = FullAsk("float32")
    request = Request("r", "teacher", "job", ask, np.concatenate(words), lengths, wanted)
    found = torch.from_numpy(engine.forward(request)["logits"])
    inputs = {k: torch.from_numpy(v) for k, v in inputs_of(reading, words).items()}
    with torch.no_grad():
        torch.testing.assert_close(found, classify(engine._loaded.module, inputs))
    assert engine.describe().reads == "interactions"
    assert engine.describe().vocabulary == ITEMS


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (imported("mf", users=0, items=3), "users is too small"),
        (imported("mf", users=2, items=3, width=0), "width is too small"),
        (imported("lightgcn", path="nowhere.csv"), "'nowhere.csv', and there is no such file"),
    ],
)
def test_a_model_that_cannot_be_says_why(raw: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=f"refuses its arguments.*{told}"):
        load(raw)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"format": {"kind": "interactions", "usr": "x"}}, "format is no format of interactions"),
        ({"format": {"user": "who"}}, "names column 'who'"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"layers": -1}, "layers is too small"),
    ],
)
def test_a_graph_that_cannot_be_says_why(path: Path, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=f"refuses its arguments.*{told}"):
        load(imported("lightgcn", path=str(path), **arguments))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"items": 8}, r"student.*(scores|has) 8 (items|classes), and the data have 9"),
        ({"items": 10}, r"student.*scores 10 items, and the data have 9\. Give it 9"),
        ({"users": 6}, "does not run on two samples of the data"),
        ({"strata": 10}, r"objective\.terms\.0\.strata.*is 10, and the data have 9 items.*Set it"),
        ({"graph": 0.3}, r"student\.arguments.*make a graph of .* not the same.*held_out of the"),
    ],
)
def test_a_student_that_does_not_fit_the_data_is_refused(
    path: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    users, items = changes.get("users", USERS), changes.get("items", ITEMS)
    raw = raw_job(path, users, items)
    raw["data"]["sources"][0]["format"] = FORMAT
    if "strata" in changes:
        raw["roles"] = {"teacher": raw["student"]}
        raw["objective"] = {"terms": [{"kind": "stratified_pairs", "strata": 10}]}
    if "graph" in changes:
        graph = imported("lightgcn", path=str(path), held_out=changes["graph"])
        raw["student"] = {"task": "classifier", **graph}
    job = JobSpec.model_validate(raw)
    found = prepare(job.data, None, str(tmp_path / "cache"))
    with pytest.raises(SpecError, match=told):
        check_classifier(job, found, load_model(job.student), None)
