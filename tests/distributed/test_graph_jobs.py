"""Graphs of roles, whole: members and branches resumed and on two ranks; a chain of jobs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import digits
import pytest
import torch
from graph_files import ROLE, SMALL, members
from houses import Player
from safetensors.torch import load_file

from orchestrator import load_jobs, run
from orchestrator.models.forward import classify
from orchestrator.models.load import load_model
from orchestrator.runner import evaluate
from orchestrator.session import Session
from orchestrator.spec import JobSpec
from orchestrator.spec.models import ModelSpec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]

STEPS, LONG = 10, 100
"""Of a job; of one that is stopped, which must not end before it hears of it."""
EXAMPLE = Path(__file__).parents[2] / "docs/examples/graph.yaml"
LAYERS = [{"student": "stages.*", "role": "stages.*"}]
KL = {"kind": "forward_kl", "temperature": 2.0}
BRANCHES = ["branch_0", "branch_1", "ensemble"]
PAIR = members(a=SMALL, b=ROLE)
ONE = {
    "import": "orchestrator.models.reference:branches",
    "task": "classifier",
    "arguments": {"inputs": 64, "classes": 10, "branches": 2, "width": 12},
    "outputs": BRANCHES,
}
JOBS: dict[str, dict[str, Any]] = {
    "mutual": {"student": PAIR, "objective": {"recipe": {"kind": "mutual_learning"}}},
    "branches": {
        "student": ONE,
        "objective": {"recipe": {"kind": "one", "branches": BRANCHES[:2]}},
    },
    "taught": {
        "student": {**PAIR, "export": "b"},
        "roles": {"teacher": {**ROLE, "resources": {"cpus": 0.25}}},
        "objective": {
            "terms": [
                {"kind": "cross_entropy", "member": "a"},
                {**KL, "member": "a", "role": "student.b", "weight": 0.5},
                {"kind": "hidden_states", "member": "a", "role": "student.b", "layers": LAYERS,
                 "projector": "linear"},
                {"kind": "cross_entropy", "member": "b"},
                {**KL, "member": "b", "weight": 0.5},
                {"kind": "hidden_states", "member": "b", "layers": LAYERS},
            ]
        },
    },
}  # fmt: skip


@dataclass
class House(Player):
    """One session of a number of workers."""

    zero: int

    def job(self, name: str, steps: int = STEPS, every: int = STEPS, **changes: Any) -> JobSpec:
        """One of `JOBS`."""
        data = digits.data()
        data["sources"][0]["format"]["shape"] = [64]
        return digits.job(
            name=name,
            data=data,
            training={
                "steps": steps,
                "global_batch": 32,
                "micro_batch": 8,
                "workers": self.workers,
                "zero": self.zero,
                "resources": {"cpus": 0.25},
                "optimizer": {"lr": 1e-2, "eps": 1e-3},
                "checkpoint": {"every_steps": every},
            },
            evaluation={"before": False, "rows": 64, "diagnostics": [{"kind": "objective"}]},
            cache={"path": str(self.root / f"cache-{self.workers}-{self.zero}")},
            storage=str(self.root / f"runs-{self.workers}-{self.zero}"),
            **{**JOBS[name], **changes},
        )


def _house(root: Path, workers: int, zero: int) -> Iterator[House]:
    house = House(root, workers, zero)
    with Session([house.job("mutual")], lambda event: house.hear(event)) as session:
        house.session = session
        yield house


Played = dict[str, tuple[dict[str, Any], dict[int, dict[str, float]]]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    for house in _house(tmp_path_factory.mktemp("alone"), 1, 0):
        played = {name: house.play(house.job(name)) for name in JOBS}
        for name in JOBS:
            played[f"{name}, long"] = house.play(house.job(name, LONG, LONG))
            played[f"{name}, resumed"] = house.play(house.job(name, LONG, every=3), stop_after=4)
        twins = members(a={**ROLE, "seed": 5}, b={**ROLE, "seed": 5})
        played["twins"] = house.play(house.job("mutual", student=twins))
        played["chosen"] = house.play(house.job("branches", student={**ONE, "export": "branch_1"}))
        yield played


@pytest.mark.parametrize("name", JOBS)
def test_a_job_that_was_stopped_ends_with_the_weights_of_one_that_was_not(
    alone: Played, name: str
) -> None:
    (whole, metrics), (resumed, _) = alone[f"{name}, long"], alone[f"{name}, resumed"]
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    for steps, learned in ((STEPS, alone[name][1]), (LONG, metrics)):
        losses = [learned[step]["loss/total"] for step in sorted(learned)]
        assert len(losses) == steps and sum(losses[-3:]) < sum(losses[:3])


def test_each_member_is_measured_and_exported(alone: Played) -> None:
    for name, main, other in (("mutual", "a", "b"), ("taught", "b", "a")):
        summary = alone[name][0]
        found = summary["evaluation"]
        assert set(found["members"]) == {"a", "b"}
        assert found["members"][main]["loss"] == found["student"]["loss"]
        assert found["members"][other]["loss"] != found["student"]["loss"]
        assert list(summary["members"]) == [other]
        for folder in (summary["export"], summary["members"][other]):
            spec = ModelSpec(path=folder, task="classifier", allow_remote_code=True)
            logits = classify(load_model(spec).module, {"features": torch.rand(3, 64)})
            assert logits.shape == (3, 10)
    assert set(alone["branches"][0]["evaluation"]["members"]) == set(BRANCHES)
    assert "members" not in alone["branches"][0]


def test_peers_ask_nobody_and_a_role_is_asked_as_ever(alone: Played) -> None:
    assert alone["mutual"][0]["pool"] == {} and alone["branches"][0]["pool"] == {}
    samples = alone["taught"][0]["pool"]["samples"]
    assert samples["asked"] == samples["consumed"] == 2 * STEPS * 32  # logits and layers


def test_two_of_one_beginning_end_as_one_to_the_bit(alone: Played) -> None:
    summary = alone["twins"][0]
    a = load_file(Path(summary["export"]) / "model.safetensors")
    b = load_file(Path(summary["members"]["b"]) / "model.safetensors")
    assert a.keys() == b.keys() and all(weight.equal(b[name]) for name, weight in a.items())


def test_a_chosen_branch_is_that_of_the_whole(alone: Played) -> None:
    whole, chosen = (alone[name][0] for name in ("branches", "chosen"))
    assert chosen["weights_sha256"] == whole["weights_sha256"]
    every = load_file(Path(whole["export"]) / "model.safetensors")
    alone_ = load_file(Path(chosen["export"]) / "model.safetensors")
    assert alone_.keys() < every.keys()
    assert all(weight.equal(every[name]) for name, weight in alone_.items())
    loss = chosen["evaluation"]["student"]["loss"]
    assert loss == chosen["evaluation"]["members"]["branch_1"]["loss"]


@pytest.mark.parametrize("zero", [2, 3])
def test_two_ranks_learn_what_one_learns(
    alone: Played, zero: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for house in _house(tmp_path_factory.mktemp("beside"), 2, zero):
        beside = {name: house.play(house.job(name)) for name in JOBS}
    for name, (summary, metrics) in beside.items():
        losses = [metrics[step]["loss/total"] for step in sorted(metrics)]
        wanted = [alone[name][1][step]["loss/total"] for step in sorted(metrics)]
        assert losses == pytest.approx(wanted, rel=2e-4)
        assert losses[0] == pytest.approx(wanted[0], rel=1e-5)
        for member, found in summary["evaluation"]["members"].items():
            expected = alone[name][0]["evaluation"]["members"][member]["loss"]
            assert found["loss"] == pytest.approx(expected, rel=1e-3)


def test_the_example_runs_and_a_later_job_takes_a_member(tmp_path: Path) -> None:
    short = [
        f"storage={tmp_path / 'runs'}",
        f"cache.path={tmp_path / 'cache'}",
        "training.epochs=2",
        "training.resources.cpus=0.5",
        "training.checkpoint.every_steps=90",
    ]
    jobs = load_jobs(EXAMPLE, short)
    raw = jobs[-1].model_dump(mode="json", by_alias=True, exclude_none=True)
    role = {"job": "graph-students", "member": "small", "task": "classifier"}
    on = {"job": "graph-students", "task": "classifier"}
    raw |= {"name": "graph-last", "student": on, "roles": {"teacher": role}}
    raw["objective"] = {"terms": [{"kind": "forward_kl"}]}
    raw["evaluation"]["rows"] = None  # left out above, where it is no default
    jobs = [*jobs, JobSpec.model_validate(raw)]
    summaries = run(jobs).jobs
    students, last = summaries[2], summaries[3]
    assert set(students["evaluation"]["members"]) == {"small", "smaller"}
    smaller = students["evaluation"]["members"]["smaller"]
    assert students["evaluation"]["student"]["accuracy"] == smaller["accuracy"] > 0.5
    # What the last job compares itself with is member small, as it was measured.
    theirs, small = last["evaluation"]["teacher"], students["evaluation"]["members"]["small"]
    assert theirs["accuracy"] == pytest.approx(small["accuracy"])
    assert theirs["loss"] == pytest.approx(small["loss"], rel=1e-5)
    for summary in summaries:
        page = (tmp_path / "runs" / summary["run_id"] / "report.html").read_text()
        assert "Who learns from whom" in page and "graph-students.smaller" in page
    again = evaluate(str(tmp_path / "runs" / students["run_id"])).jobs[0]
    for member, found in students["evaluation"]["members"].items():
        assert again["evaluation"]["members"][member] == pytest.approx(found, rel=1e-5)
