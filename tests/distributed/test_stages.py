"""Stages on digits: a list of jobs, each going on with the student of the one before."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import digits
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from orchestrator.events import Event, StepDone
from orchestrator.models.exported import Export
from orchestrator.run_folder import RunFolder
from orchestrator.session import Session
from orchestrator.spec import JobSpec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

STEPS = 24
ALL = 1430
"""Digits that are not held out: with all of them in a step, their order is a matter of rounding."""


@dataclass
class House:
    """One session, and what its jobs left."""

    root: Path
    session: Session | None = None
    exports: dict[str, Export] = field(default_factory=dict)
    best: dict[str, int | None] = field(default_factory=dict)
    heard: list[Event] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)

    @staticmethod
    def data() -> dict[str, Any]:
        """Digits, of which a role is told how many numbers they have."""
        data = digits.data()
        data["sources"][0]["format"]["shape"] = [64]
        return data

    def job(
        self,
        name: str,
        student: dict[str, Any],
        trainable: list[str] | None,
        steps: int = STEPS,
        batch: int = 32,
        checkpoint: dict[str, Any] | None = None,
        **changes: Any,
    ) -> JobSpec:
        """A stage of a few steps."""
        training = {"steps": steps, "global_batch": batch, "micro_batch": batch}
        training |= {"resources": {"cpus": 0.5}, "optimizer": {"lr": 1e-2}}
        training |= {"checkpoint": checkpoint or {"every_steps": steps}}
        training |= {"learning_rate": {"decay": "constant"}}
        student = {**student, "trainable": trainable}
        roles = {"teacher": {"job": "teacher", "task": "classifier", "resources": {"cpus": 0.5}}}
        return digits.job(
            **{
                "name": name,
                "student": student,
                "data": self.data(),
                "roles": {} if name == "teacher" else roles,
                "training": training,
                "storage": str(self.root / "runs"),
                "cache": {"path": str(self.root / "cache")},
                **changes,
            }
        )

    def play(self, spec: JobSpec) -> None:
        """Run a job; its export, losses and hash are kept under its name."""
        self.heard.clear()
        folder = RunFolder.at(spec.storage, spec.name)
        folder.write([spec], 0, [folder.run_id])
        assert self.session is not None
        summary = self.session.run_job(spec, folder, self.exports, resume=False)
        self.best[spec.name] = summary.get("best", {}).get("step")
        self.exports[spec.name] = Export(f"{folder.uri}/export", spec.student)
        self.losses[spec.name] = [
            event.metrics["loss/total"] for event in self.heard if isinstance(event, StepDone)
        ]

    def weights(self, name: str) -> dict[str, Tensor]:
        """Of an export."""
        return load_file(Path(self.exports[name].uri) / "model.safetensors")

    def projectors(self, name: str) -> dict[str, Tensor]:
        """Beside an export."""
        return load_file(Path(self.exports[name].uri).parent / "projectors.safetensors")


def features(stage: int) -> dict[str, Any]:
    """The objective of a stage: one feature of the teacher, and nothing else."""
    layers = [{"student": f"stages.{stage}", "role": f"stages.{stage}"}]
    return {"terms": [{"kind": "hidden_states", "projector": "linear", "layers": layers}]}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    found = House(tmp_path_factory.mktemp("stages"))
    fresh = digits.student(width=16, depth=1)
    teacher = found.job("teacher", digits.student(width=24, depth=1), None)

    def after(name: str) -> dict[str, Any]:
        return {"job": name, "task": "classifier"}

    with Session([teacher], found.heard.append) as session:
        found.session = session
        found.play(teacher)
        for name, noise in (("whole", 0.0), ("whole-noisy", 1.0)):
            data = {**found.data(), "corrupt": {"label_noise": noise}}
            whole = {"objective": features(0), "data": data}
            found.play(found.job(name, fresh, ["first"], steps=3, batch=ALL, **whole))
        found.play(found.job("first", fresh, ["first"], objective=features(0)))
        found.play(found.job("more", after("first"), ["first"], objective=features(0)))
        found.play(found.job("second", after("first"), ["blocks.0"], objective=features(1)))
        found.play(found.job("head", after("second"), ["head"]))
        best = {"every_steps": 8, "best": {"metric": "student.loss", "better": "higher"}}
        often = {"before": False, "rows": 64, "every_steps": 8}
        found.play(found.job("best", fresh, None, checkpoint=best, evaluation=often))
        found.play(found.job("short", fresh, None, steps=8))
        yield found


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not before[name].equal(after[name])}


def test_only_the_stages_own_part_changes_to_the_bit(house: House) -> None:
    first, second, head = (house.weights(name) for name in ("first", "second", "head"))
    assert _changed(first, second) == {"blocks.0.weight", "blocks.0.bias"}
    assert _changed(second, head) == {"head.weight", "head.bias"}
    assert _changed(first, house.weights("more")) == {"first.weight", "first.bias"}


def test_labels_are_nothing_to_a_stage_of_features(house: House) -> None:
    right, wrong = house.weights("whole"), house.weights("whole-noisy")
    assert _changed(house.weights("first"), right) == {"first.weight", "first.bias"}
    for name, weight in right.items():
        torch.testing.assert_close(weight, wrong[name], rtol=1e-3, atol=1e-5)


def test_projectors_go_on_where_they_were(house: House) -> None:
    first, more, second = (house.projectors(name) for name in ("first", "more", "second"))
    assert first.keys() == more.keys() and not first.keys() & second.keys()
    assert house.losses["more"][0] < 1.5 * house.losses["first"][-1] < house.losses["first"][0]


def test_the_best_state_is_exported_to_the_bit(house: House) -> None:
    # The highest loss is that of the first evaluation: after as many steps as the short job has.
    assert house.best == {name: 8 if name == "best" else None for name in house.best}
    best, short = house.weights("best"), house.weights("short")
    assert all(weight.equal(short[name]) for name, weight in best.items())


def test_each_stage_learns(house: House) -> None:
    for name in ("first", "second", "head"):
        losses = house.losses[name]
        assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
