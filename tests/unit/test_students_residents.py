"""Roles beside a student: loaded as they are served, or refused before any step."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import digits
import pytest
import residents
import tiny
import torch
from classifiers import BERT
from pydantic import ValidationError
from residents import gradients_of, loss_of, mlp, resident

from orchestrator.data import NumpyBatch, TokenData, collation, prepare
from orchestrator.errors import SpecError
from orchestrator.models.load import load_model
from orchestrator.planner.layer_maps import LayerMaps
from orchestrator.pool.inside import maps_of
from orchestrator.signals.records import RoleDescription
from orchestrator.spec import JobSpec
from orchestrator.spec.explain import explain
from orchestrator.students.batches import to_device
from orchestrator.students.diagnostics.suite import check_diagnostics
from orchestrator.students.inside import Inside
from orchestrator.students.module import StudentModule
from orchestrator.students.records import StudentJob
from orchestrator.students.residents import check_joins, check_twins, open_residents
from strategies.objective import build_objective
from strategies.pairs import Pair

MODIFIED = {"recipe": {"kind": "modified_gradient"}}


def blockwise(student: str, role: str, **fields: Any) -> dict[str, Any]:
    pair = {"student": student, "role": role}
    return {"terms": [{"kind": "blockwise_logits", "layers": [pair], **fields}]}


def job(
    objective: dict[str, Any],
    student: dict[str, Any] | None = None,
    role: dict[str, Any] | None = None,
    **changes: Any,
) -> JobSpec:
    """Of digits, all of 64 numbers."""
    data = digits.data(60)
    data["sources"][0]["format"]["shape"] = [64]
    return digits.job(
        objective=objective,
        student=student or digits.student(width=8),
        roles={"teacher": role or digits.student(width=8)},
        data=data,
        **changes,
    )


def told(spec: JobSpec, fingerprint: str | None = None) -> StudentJob:
    """What a worker is told."""
    fingerprints = {} if fingerprint is None else {"teacher": fingerprint}
    return StudentJob(spec, "run", "x", None, "x", None, None, fingerprints, False, {})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    return prepare(job(MODIFIED).data, None, str(tmp_path_factory.mktemp("data")))


def opened(spec: JobSpec, data: TokenData, fingerprint: str | None = None) -> Any:
    """All that a worker does before its engine starts."""
    student = load_model(spec.student, for_training=True, seed=spec.seed)
    role = load_model(spec.roles["teacher"], seed=spec.seed)
    maps = LayerMaps()
    if spec.objective.looks_inside:
        maps = maps_of(spec, data, student, lambda _: described(role, spec, data))
    return open_residents(told(spec, fingerprint), data, student, maps)


def described(role: Any, spec: JobSpec, data: TokenData) -> RoleDescription:
    found: Any = None

    def keep(_: Any, inside: Any, __: Any) -> None:
        nonlocal found
        found = inside

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.pool.inside.layer_maps", keep)
        maps_of(spec, data, role, lambda _: found)
    return RoleDescription(
        "teacher", "f", 10, 8, 1, found.layers, found.attention, shapes=found.shapes
    )


def test_a_role_is_loaded_frozen_and_is_the_one_that_is_served(data: TokenData) -> None:
    spec = job(MODIFIED)
    served = load_model(spec.roles["teacher"], seed=spec.seed).fingerprint
    (role,) = opened(spec, data, f"{served}/cpu-alone/features[]").values()
    assert role.loaded.fingerprint == served and not role.loaded.module.training
    assert not any(p.requires_grad for p in role.loaded.module.parameters())
    with pytest.raises(SpecError, match=r"^roles\.teacher: is served with fingerprint 0123.*label"):
        opened(spec, data, "0123/cpu/features[]")


def test_nobody_is_loaded_for_terms_that_ask(data: TokenData) -> None:
    assert opened(job({"terms": [{"kind": "forward_kl"}]}), data) == {}


def test_weights_of_other_shapes_are_refused_with_names_and_shapes(data: TokenData) -> None:
    wider = digits.student(width=9)
    names = r"first\.weight \[8, 64\] and \[9, 64\].*first\.bias \[8\] and \[9\]"
    with pytest.raises(SpecError, match=rf"^roles\.teacher: .*{names}"):
        opened(job(MODIFIED, role=wider), data)
    deeper = digits.student(width=8, depth=3)
    with pytest.raises(SpecError, match=r"blocks\.2\.weight \[8, 8\] and none"):
        opened(job(MODIFIED, student=deeper), data)
    opened(job(MODIFIED, role=deeper), data)  # what the student lacks is not trained


def test_only_what_is_trained_must_be_alike() -> None:
    student, role = mlp(1, width=6, classes=4), mlp(2, width=6, classes=5)
    with pytest.raises(SpecError, match=r"head\.weight \[4, 6\] and \[5, 6\]"):
        check_twins("teacher", student.module, role.module)
    student.module.head.requires_grad_(False)  # type: ignore[union-attr]
    check_twins("teacher", student.module, role.module)


def test_a_diagnostic_has_its_role_beside_the_student_too(data: TokenData) -> None:
    measured = {"diagnostics": [{"kind": "modified_gradient", "batches": 2}]}
    spec = job({"recipe": {"kind": "partial_variance"}}, evaluation=measured)
    assert spec.resident_roles == spec.twin_roles == ("teacher",)
    assert list(opened(spec, data)) == ["teacher"]
    check_diagnostics(spec, data, {})
    many = {"diagnostics": [{"kind": "modified_gradient", "batches": 20}]}
    with pytest.raises(SpecError, match=r"diagnostics\.0\.batches: is 20 of 16 rows"):
        check_diagnostics(job(MODIFIED, evaluation=many), data, {})


def test_a_member_goes_on_through_the_role_as_it_would_alone(data: TokenData) -> None:
    term = blockwise("stages.1", "stages.2", projector="linear")["terms"][0]
    each = {"a": digits.student(width=6), "b": digits.student(width=8)}
    role = digits.student(width=12, depth=3)
    several = job(
        {"terms": [{"kind": "cross_entropy", "member": "a"}, {**term, "member": "b"}]},
        {"task": "classifier", "members": each},
        role,
    )
    alone = job({"terms": [term]}, each["b"], role)
    found = []
    for spec, seed in ((several, 0), (alone, 1)):  # the second member's fresh weights
        student = load_model(spec.student, for_training=True, seed=seed)
        served = load_model(spec.roles["teacher"], seed=spec.seed)
        maps = maps_of(spec, data, student, lambda _, s=served: described(s, alone, data))
        beside = open_residents(told(spec), data, student, maps)
        assert not maps.asks
        module = StudentModule(
            student.module, None, inside=Inside(maps, seed=1), main=spec.student.main
        )
        objective = build_objective(spec.objective, maps.pairs, residents=beside)
        batch = to_device(collation(spec.data)(data.train, [(0,), (1,)]), torch.device("cpu"))
        loss, sums = loss_of(module, objective, batch)
        found.append((sums["blockwise_logits"], gradients_of(loss, student)))
    (ours, mine), (theirs, wanted) = found
    assert ours == pytest.approx(theirs, rel=1e-6) and theirs > 0
    for name, gradient in wanted.items():
        torch.testing.assert_close(mine[f"members.b.{name}"], gradient)
    assert float(wanted["blocks.0.weight"].abs().max()) > 0


def test_layers_that_fit_are_joined(data: TokenData) -> None:
    spec = job(blockwise("stages.*", "stages.*"), role=digits.student(width=8, depth=5))
    assert list(opened(spec, data)) == ["teacher"]
    wider = job(
        blockwise("stages.1", "stages.2", projector="linear"), role=digits.student(width=12)
    )
    opened(wider, data)


def test_a_role_that_cannot_be_cut_there_is_refused_with_where_it_can(data: TokenData) -> None:
    spec = job(blockwise("stages.1", "blocks.1"))
    where = r"cuts role teacher, a MLP, after blocks\.1.*it can be cut after stages\.0, stages\.1"
    with pytest.raises(SpecError, match=rf"^objective\.terms\.0: {where}.*transformers"):
        opened(spec, data)


def test_layers_of_other_widths_are_refused_with_both(data: TokenData) -> None:
    spec = job(blockwise("stages.1", "stages.1"), role=digits.student(width=12))
    widths = r"stages\.1 of the student \(width 8\).*\(width 12\).*blockwise_logits.*projector"
    with pytest.raises(SpecError, match=widths):
        opened(spec, data)
    with pytest.raises(SpecError, match=r"layers\.0\.role: is 'stages\.7'.*stages\.0"):
        opened(job(blockwise("stages.1", "stages.7")), data)


def test_a_layer_of_another_form_is_refused(data: TokenData) -> None:
    """A text's first token alone, in the place of all its tokens."""
    architecture = {**BERT, "vocab_size": 97}
    raw = {"architecture": architecture, "task": "classifier", "tokenizer": str(tiny.TOKENIZER)}
    source = {"kind": "jsonl", "path": "x", "format": {"kind": "labelled_text"}}
    spec = digits.job(
        objective=blockwise("bert.pooler", "bert.encoder.layer.1"),
        student=raw,
        roles={"teacher": raw},
        data={"sources": [source], "context": 16},
    )
    student = load_model(spec.student, for_training=True)
    role = resident(load_model(spec.roles["teacher"], seed=1))
    batch = residents.sentences(2)
    arrays = {name: x.numpy() for name, x in batch.inputs.items()}
    laid = NumpyBatch(arrays, batch.targets.numpy(), batch.targets.numpy())
    found: Any = SimpleNamespace(train=[0, 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.students.residents.collation", lambda _: lambda *_: laid)
        maps = _pair("bert.pooler", "bert.encoder.layer.1")
        place = (
            r"puts bert\.pooler of the student, \[2, 16\].*bert\.encoder\.layer\.1.*\[2, 7, 16\]"
        )
        with pytest.raises(SpecError, match=place):
            check_joins(spec, found, student, maps, {"teacher": role})
        maps = _pair("bert.encoder.layer.0", "bert.encoder.layer.1")
        check_joins(spec, found, student, maps, {"teacher": role})


def _pair(ours: str, theirs: str) -> LayerMaps:
    return LayerMaps({"blockwise_logits": (Pair(ours, theirs),)}, whole=(ours,))


# --- what a job file cannot ask ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training": {"zero": 3}}, r"training\.zero: is 3.*role teacher.*Set it to 2"),
        (
            {"roles": {"parallel": "layers", "resources": {"gpus": 2}}},
            r"roles\.teacher\.parallel: is layers.*beside the student",
        ),
        (
            {
                "objective": {
                    "recipe": {"kind": "modified_gradient", "unbiased": True},
                    "between_epochs": {"kind": "condense", "every": 2, "keep": 0.5, "stages": 1},
                }
            },
            r"objective\.between_epochs: is condense.*unbiased",
        ),
        ({"objective": {"recipe": {"kind": "modified_gradient", "role": "judge"}}}, "'judge'"),
        (
            {"objective": {**MODIFIED, "select": {"share": 0.5, "group": 4}}},
            "select chooses what roles are asked about, and no term asks one",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_the_file_alone(changes: dict[str, Any], says: str) -> None:
    raw = digits.raw_job(
        objective=changes.get("objective", MODIFIED),
        roles={"teacher": {**digits.student(), **changes.get("roles", {})}},
    )
    raw["training"] |= changes.get("training", {})
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(raw)
    assert re.search(says, str(explain(caught.value, JobSpec, raw, "")))


def test_blocks_may_be_joined_under_zero_3_and_with_adapters() -> None:
    raw = digits.raw_job(
        objective=blockwise("stages.1", "stages.1"), roles={"teacher": digits.student()}
    )
    raw["training"] |= {"zero": 3}
    spec = JobSpec.model_validate(raw)
    assert spec.resident_roles == ("teacher",) and not spec.twin_roles


def test_adapters_are_not_the_roles_weights(tmp_path: Path) -> None:
    lora = {"architecture": tiny.architecture(), "tokenizer": "x", "lora": {}}
    with pytest.raises(ValueError, match=r"is set, so adapters are trained"):
        tiny.job(tmp_path, tmp_path, tmp_path, objective=MODIFIED, student=lora)
