"""Lists of stages from their job file: stopped inside a stage and between two, and on two ranks.

The second list is that of arXiv:2002.09168: a student, and an assistant that learns what it leaves.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import digits
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from orchestrator import run
from orchestrator.errors import Interrupted
from orchestrator.events import Event, JobEnded, StepDone
from orchestrator.models.reference import pair
from orchestrator.run_folder import RunFolder
from orchestrator.runner import resume
from orchestrator.spec import JobSpec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

STEPS, STOP, FEW = 120, 10, 12
"""Steps of a stage; where it is stopped, early enough to hear of it; of one on two ranks."""
STAGES = ("first", "second", "head")
PAIR = {"inputs": 64, "classes": 10, "features": 24, "width": 12, "assistant": 8, "depth": 2}


def _job(
    root: Path,
    name: str,
    student: dict[str, Any],
    *,
    workers: int = 1,
    steps: int = STEPS,
    **changes: Any,
) -> JobSpec:
    data = digits.data(limit=400)
    data["sources"][0]["format"]["shape"] = [64]
    training = {
        "steps": steps,
        "workers": workers,
        "zero": 2 if workers > 1 else 0,
        "global_batch": 32,
        "micro_batch": 32 // workers,
        "resources": {"cpus": 0.5 / workers},
        "optimizer": {"lr": 1e-3},
        "checkpoint": {"every_steps": min(40, steps)},
    }
    role = {"job": "teacher", "task": "classifier", "resources": {"cpus": 0.25}}
    rest = {"data": data, "training": training, "storage": str(root / "runs")}
    rest |= {"roles": {} if name == "teacher" else {"teacher": role}}
    rest |= {"cache": {"path": str(root / "cache")}, **changes}
    return digits.job(name=name, student={"task": "classifier", **student}, **rest)


def _learns(ours: str, theirs: str, **more: Any) -> dict[str, Any]:
    layers = [{"student": ours, "role": theirs}]
    return {"objective": {"terms": [{"kind": "hidden_states", "layers": layers, **more}]}}


def stages(root: Path, **all_have: int) -> list[JobSpec]:
    """A teacher, and a student in three stages, two of which learn features with projectors."""

    def stage(name: str, student: dict[str, Any], part: str, **changes: Any) -> JobSpec:
        return _job(root, name, {**student, "trainable": [part]}, **all_have, **changes)

    linear = {"projector": "linear"}
    return [
        _job(root, "teacher", digits.student(width=24, depth=1), **all_have),
        stage("first", digits.student(width=16, depth=1), "first",
              **_learns("stages.0", "stages.0", **linear)),
        stage("second", {"job": "first"}, "blocks.0", **_learns("stages.1", "stages.1", **linear)),
        stage("head", {"job": "second"}, "head"),
    ]  # fmt: skip


@dataclass
class Played:
    """What the jobs of a list left, by name, over all runs of it."""

    folders: dict[str, Path] = field(default_factory=dict)
    steps: dict[str, list[int]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)

    def hear(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.steps.setdefault(event.job, []).append(event.step)
            self.losses.setdefault(event.job, []).append(event.metrics["loss/total"])

    def found(self, root: Path) -> "Played":
        """With the folders that are there."""
        for folder in (root / "runs").iterdir():
            if (folder / "job.yaml").is_file() or (folder / "export").is_dir():
                self.folders[folder.name.rsplit("-", 3)[0]] = folder
        return self

    def weights(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folders[name] / "export" / "model.safetensors")

    def projectors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folders[name] / "projectors.safetensors")


def _whole(root: Path, jobs: list[JobSpec]) -> Played:
    played = Played()
    run(jobs, played.hear)
    return played.found(root)


def _stopped(root: Path, jobs: list[JobSpec], at: type[Event], job: str) -> Played:
    """Stopped once, as Ctrl-C does, at a step of a job or when it has ended; then resumed there."""
    played, stopped = Played(), False

    def hear(event: Event) -> None:
        nonlocal stopped
        played.hear(event)
        mine = isinstance(event, at) and event.job == job  # type: ignore[attr-defined]
        if mine and not stopped and (isinstance(event, JobEnded) or event.step >= STOP):  # type: ignore[attr-defined]
            stopped = True
            raise KeyboardInterrupt

    with pytest.raises(Interrupted if at is StepDone else KeyboardInterrupt):
        run(jobs, hear)
    assert stopped
    played.found(root)
    resume(str(played.folders[job]), played.hear)
    return played.found(root)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Played:
    root = tmp_path_factory.mktemp("whole")
    return _whole(root, stages(root))


@pytest.mark.parametrize(
    ("at", "job"), [(StepDone, "second"), (JobEnded, "first")], ids=["inside", "between"]
)
def test_a_list_that_was_stopped_ends_with_the_weights_of_one_that_was_not(
    whole: Played, tmp_path: Path, at: type[Event], job: str
) -> None:
    stopped = _stopped(tmp_path, stages(tmp_path), at, job)
    for name in STAGES:
        theirs = whole.weights(name)
        assert all(weight.equal(theirs[key]) for key, weight in stopped.weights(name).items())
        assert sorted(set(stopped.steps[name])) == sorted(set(whole.steps[name]))
    for name in ("first", "second"):
        theirs = whole.projectors(name)
        assert all(weight.equal(theirs[key]) for key, weight in stopped.projectors(name).items())
        assert stopped.steps[name].count(1) == 1  # went on where it was, not from its beginning


def test_two_ranks_learn_in_stages_what_one_does(tmp_path: Path) -> None:
    alone = _whole(tmp_path / "one", stages(tmp_path / "one", steps=FEW))
    beside = _whole(tmp_path / "two", stages(tmp_path / "two", steps=FEW, workers=2))
    before: dict[str, Tensor] | None = None
    for name, part in zip(STAGES, ("first", "blocks.0", "head"), strict=True):
        ours, theirs = beside.weights(name), alone.weights(name)
        if before is not None:
            changed = {key for key in ours if not ours[key].equal(before[key])}
            assert changed == {f"{part}.weight", f"{part}.bias"}
        for key, weight in ours.items():
            torch.testing.assert_close(
                weight, theirs[key], rtol=0.05, atol=2e-3, msg=f"{name} {key}"
            )
        before = ours
        assert beside.losses[name] == pytest.approx(alone.losses[name], rel=1e-3)
    assert beside.losses["first"][0] == pytest.approx(alone.losses["first"][0], rel=1e-6)


def test_an_assistant_learns_what_a_student_leaves_and_is_exported_with_it(tmp_path: Path) -> None:
    net = {"import": "orchestrator.models.reference:pair", "arguments": PAIR}
    role = _job(tmp_path, "teacher", digits.student(width=24, depth=1))
    own = _job(tmp_path, "own", {**net, "trainable": ["student"]}, **_learns("own", "stages.1"))
    added = _job(tmp_path, "added", {"job": "own", "trainable": ["assistant"]},
                 **_learns("together", "stages.1"))  # fmt: skip
    head = _job(tmp_path, "last", {"job": "added", "trainable": ["head"]})
    played = _whole(tmp_path, [role, own, added, head])
    first, second, last = (played.weights(name) for name in ("own", "added", "last"))
    changed = {key.split(".")[0] for key in first if not first[key].equal(second[key])}
    assert changed == {"assistant"}
    assert {key.split(".")[0] for key in last if not last[key].equal(second[key])} == {"head"}
    module = pair(**PAIR)  # type: ignore[arg-type]
    module.load_state_dict(last)
    x = torch.rand(5, 64)

    def through(part: str) -> Tensor:
        *hidden, end = [(last[f"{part}.{i}.weight"], last[f"{part}.{i}.bias"]) for i in range(3)]
        y = x
        for weight, bias in hidden:
            y = torch.relu(y @ weight.T + bias)
        return y @ end[0].T + end[1]

    wanted = (through("student") + through("assistant")) @ last["head.weight"].T + last["head.bias"]
    torch.testing.assert_close(module(features=x), wanted)
    jobs, index, _ = RunFolder.read(str(played.folders["last"]))
    assert [job.name for job in jobs] == ["teacher", "own", "added", "last"] and index == 3
