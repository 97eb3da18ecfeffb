"""Whole jobs of rankers: a graph as teacher, its cache, lists by popularity, ranks and cuts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ranking import histories, raw_job, write_csv

from orchestrator import load_jobs, run
from orchestrator.evaluation.paths import number_at, paths_of
from orchestrator.events import Event, StepDone
from orchestrator.spec import JobSpec
from orchestrator.spec.load import resolved_yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

USERS, ITEMS, EPOCHS = 30, 20, 3
OBJECTIVE = {"recipe": {"kind": "unkd", "strata": 2, "pairs": 6}}


@dataclass
class Played:
    """What a job said."""

    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)


def jobs(root: Path) -> list[dict[str, Any]]:
    """A teacher, and the same student on one rank and on two."""
    owned = histories(USERS, ITEMS, seed=2)
    owned[0] = list(range(ITEMS))  # every item is there
    rows = [(f"{u:02d}", f"{i:02d}", 0) for u, items in enumerate(owned) for i in items]
    path = write_csv(root / "x.csv", rows)
    resources = {"resources": {"cpus": 0.25}}
    training = {
        "epochs": EPOCHS,
        "global_batch": 8,
        "micro_batch": 8,
        "optimizer": {"lr": 1e-2},
        **resources,
    }
    shared = {
        "training": training,
        "cache": {"path": str(root / "cache"), "max_bytes": 1 << 26},
        "storage": str(root / "runs"),
        "deterministic": True,
    }
    lists = {"kind": "ranking", "cutoffs": [5], "strata": 2}
    graph = {
        "import": "orchestrator.models.ranking:lightgcn",
        "task": "classifier",
        "arguments": {"path": str(path), "width": 8, "format": {"leave_one_out": True}},
    }
    teacher = {"job": "teacher", "task": "classifier", **resources}
    student = {
        "roles": {"teacher": teacher},
        "objective": OBJECTIVE,
        "evaluation": {"rows": None, "diagnostics": [{**lists, "role": "teacher"}]},
    }
    cut = {**training, "workers": 2, "micro_batch": 2, "zero": 3}
    raw = (
        {"name": "teacher", "student": graph, "evaluation": {"diagnostics": [lists]}},
        {"name": "whole", **student},
        {"name": "cut", **student, "training": cut},
    )
    return [raw_job(path, USERS, ITEMS, **{**shared, **one}) for one in raw]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Played]:
    """All jobs, by name."""
    root = tmp_path_factory.mktemp("ranking")
    file = root / "jobs.yaml"
    file.write_text(resolved_yaml([JobSpec.model_validate(raw) for raw in jobs(root)]))
    loaded = load_jobs(file)
    found = {job.name: Played() for job in loaded}

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            found[event.job].metrics.append(dict(event.metrics))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.session.CACHE", root / "home")
        for job, summary in zip(loaded, run(loaded, listen).jobs, strict=True):
            found[job.name].summary = summary
    return found


def test_a_role_is_asked_about_each_user_once_for_training_and_lists(
    played: dict[str, Played],
) -> None:
    counts = played["whole"].summary["cache"]
    assert counts["misses"] == USERS
    assert played["cut"].summary["cache"]["misses"] == 0


def test_lists_of_student_and_role_are_measured(played: dict[str, Played]) -> None:
    found = played["whole"].summary["evaluation"]["diagnostics"]["ranking"]
    own = played["teacher"].summary["evaluation"]["diagnostics"]["ranking"]
    for path in paths_of(found["teacher"]):
        served, local = number_at(found["teacher"], path), number_at(own, path)
        assert served == pytest.approx(local, rel=1e-6), path
    for lists in (found, own):
        shares = [lists[f"stratum_{s}"]["listed_at_5"] for s in (1, 2)]
        assert sum(shares) == pytest.approx(1.0)


def test_two_ranks_and_another_cut_learn_the_same(played: dict[str, Played]) -> None:
    for term in ("bpr", "stratified_pairs"):
        whole, cut = (
            [step[f"loss/{term}"] for step in played[name].metrics] for name in ("whole", "cut")
        )
        assert cut == pytest.approx(whole, rel=1e-5)
        assert len(whole) == EPOCHS * -(-USERS // 8)
