"""Promise 2: whatever dies on the way, the final weights equal an undisturbed run's bit for bit."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny

from orchestrator.events import Event, JobStarted, StepDone
from orchestrator.run_folder import RunFolder
from orchestrator.session import Session

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(420)]


@dataclass
class Stage:
    """One Ray session in which several runs of one job are played."""

    session: Session
    spec: Any
    strike: Callable[[Event], None] | None = None
    played: int = 0
    starts: int = 0  # of the job that is played: one more than its group started again
    struck: list[int] = field(default_factory=list)

    def play(
        self,
        strike: Callable[[Event], None] | None = None,
        seed: int = 0,
        workers: int = 1,
        steps: int = 24,
    ) -> dict[str, Any]:
        """Run the job once more from the start, striking as told."""
        training = self.spec.training.model_copy(update={"workers": workers, "steps": steps})
        spec = self.spec.model_copy(update={"seed": seed, "training": training})
        self.played += 1
        self.strike, self.starts = strike, 0
        folder = RunFolder.at(self.spec.storage, f"tiny-{self.played}")
        folder.write([spec], 0, [folder.run_id])
        return self.session.run_job(spec, folder, {}, resume=False)

    def on_event(self, event: Event) -> None:
        self.starts += isinstance(event, JobStarted)
        if self.strike is not None:
            self.strike(event)

    def at_step(self, step: int, kill: Callable[[], int]) -> Callable[[Event], None]:
        """Strike once, when the driver hears of a step."""

        def strike(event: Event) -> None:
            if isinstance(event, StepDone) and event.step >= step and self.strike is not None:
                self.strike = None
                self.struck.append(kill())

        return strike

    @property
    def pool(self) -> Any:
        return next(iter(self.session.pools.values()))

    def kill_replica(self) -> int:
        replicas = self.pool.status()["roles"]["teacher"]["replicas"]
        return _kill(next(r["pid"] for r in replicas if r["state"] == "ready"))

    def kill_controller(self) -> int:
        return _kill(self.pool.status()["pid"])

    def kill_student(self) -> int:
        mine = psutil.Process().children(recursive=True)
        ranks = [p for p in mine if "RayTrainWorker" in " ".join(p.cmdline())]
        return _kill(max(ranks, key=lambda rank: rank.create_time()).pid)


def _kill(pid: int) -> int:
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    root: Path = tmp_path_factory.mktemp("chaos")
    spec = tiny.job(
        tiny.save_teacher(root / "teacher"), tiny.save_text(root / "text"), root / "runs"
    )
    holder: list[Stage] = []
    with Session([spec], lambda event: holder[0].on_event(event)) as session:
        holder.append(Stage(session, spec))
        yield holder[0]


@pytest.fixture(scope="module")
def undisturbed(stage: Stage) -> dict[str, Any]:
    return stage.play()


def _balances(summary: dict[str, Any]) -> None:
    samples = summary["pool"]["samples"]
    assert samples["asked"] == samples["delivered"] == samples["consumed"] > 0
    pool = summary["pool"]
    assert pool["asked"] == pool["delivered"] == pool["consumed"] > 0


@pytest.mark.parametrize("step", [1, 7, 20])
def test_killing_a_replica_changes_nothing(
    stage: Stage, undisturbed: dict[str, Any], step: int
) -> None:
    summary = stage.play(stage.at_step(step, stage.kill_replica))
    assert stage.struck, "nothing was killed"
    assert not psutil.pid_exists(stage.struck[-1])
    assert summary["weights_sha256"] == undisturbed["weights_sha256"]
    _balances(summary)


def test_another_seed_ends_elsewhere(stage: Stage, undisturbed: dict[str, Any]) -> None:
    """Else equal weights would prove nothing."""
    summary = stage.play(seed=1)
    assert summary["weights_sha256"] != undisturbed["weights_sha256"]


def test_killing_the_controller_changes_nothing(stage: Stage, undisturbed: dict[str, Any]) -> None:
    before = stage.pool.status()["pid"]
    summary = stage.play(stage.at_step(6, stage.kill_controller))
    assert summary["weights_sha256"] == undisturbed["weights_sha256"]
    assert stage.pool.status()["pid"] != before
    _balances(summary)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killing_a_student_rank_changes_nothing(stage: Stage, workers: int) -> None:
    """In a group of two either may die: the other waits for it in a collective."""
    steps = 160  # so many that the job still runs when the driver hears of its tenth step
    calm = stage.play(workers=workers, steps=steps)
    summary = stage.play(stage.at_step(10, stage.kill_student), workers=workers, steps=steps)
    assert summary["weights_sha256"] == calm["weights_sha256"]
    assert stage.starts == 2, "the job had ended before the rank died"
    _balances(summary)
