"""Drivers of study jobs that train nothing: they say what they are told to, and can be stopped."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import Interrupted
from orchestrator.series.drivers import Drivers, OnEvent
from orchestrator.spec import JobSpec


@dataclass
class Stage:
    """What every fake driver of a test shares."""

    exports: Path
    act: Callable[[str], None] = lambda name: None  # called in each run; may raise
    played: list[str] = field(default_factory=list)  # names, as runs begin
    resumed: list[str] = field(default_factory=list)  # run ids
    run_ids: dict[str, list[str]] = field(default_factory=dict)  # of the list, by name
    opened: int = 0
    open_now: int = 0
    open_most: int = 0  # at a time
    checkpoints: set[str] = field(default_factory=set)  # run ids that can be resumed
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def drivers(self) -> Drivers:
        """What a crew is given."""
        return Drivers(
            self._opened, self._new_run_id, lambda job, run_id: run_id in self.checkpoints
        )

    def _new_run_id(self, name: str) -> str:
        with self.lock:
            return f"{name}.{self.played.count(name)}"

    @contextmanager
    def _opened(self, jobs: Sequence[JobSpec], on_event: OnEvent) -> Iterator["FakeDriver"]:
        with self.lock:
            self.opened += 1
            self.open_now += 1
            self.open_most = max(self.open_most, self.open_now)
        yield FakeDriver(self)
        with self.lock:
            self.open_now -= 1


@dataclass
class FakeDriver:
    """See `Stage`."""

    stage: Stage

    def run(
        self,
        jobs: Sequence[JobSpec],
        run_ids: Sequence[str],
        *,
        resume: bool,
        pause_at: int | None = None,
    ) -> dict[str, Any]:
        stage, name = self.stage, jobs[-1].name
        with stage.lock:
            stage.played.append(name)
            stage.run_ids[name] = list(run_ids)
            if resume:
                stage.resumed.append(run_ids[-1])
        stage.act(name)
        if stage.stop.is_set():
            raise Interrupted(f"{name} stopped")
        export = stage.exports / run_ids[-1]
        export.mkdir(parents=True)
        return {"status": "done", "export": str(export), "evaluation": {}, "wall_s": 1.0}

    def request_stop(self) -> None:
        self.stage.stop.set()
