"""Drivers of trials that train nothing: they measure what a function says, and can be stopped."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import Interrupted
from orchestrator.events import Evaluated, JobStarted
from orchestrator.series.drivers import Drivers, OnEvent
from orchestrator.spec import JobSpec

Loss = Callable[[JobSpec, int], float]
"""(job, step) -> what is measured as student.loss. May raise."""


@dataclass
class Bench:
    """What every fake driver of a test shares. A run measures every `every` of its job's steps."""

    loss: Loss
    ran: list[tuple[str, int]] = field(default_factory=list)  # (name of the job, first step)
    checkpoints: dict[str, int] = field(default_factory=dict)  # run id -> step
    before: Callable[[str, int], None] = lambda name, step: None  # each measurement
    held: frozenset[tuple[str, int]] = frozenset()  # measurements that wait for a stop
    lock: threading.Lock = field(default_factory=threading.Lock)
    made: int = 0  # run ids

    def drivers(self) -> Drivers:
        """What a crew is given."""
        return Drivers(self._opened, self._new_run_id, lambda job, run: run in self.checkpoints)

    def _new_run_id(self, name: str) -> str:
        with self.lock:
            self.made += 1
            return f"{name}.{self.made}"

    @contextmanager
    def _opened(self, jobs: Sequence[JobSpec], on_event: OnEvent) -> Iterator["FakeTrainer"]:
        yield FakeTrainer(self, on_event)


@dataclass
class FakeTrainer:
    """See `Bench`."""

    bench: Bench
    on_event: OnEvent
    stop: threading.Event = field(default_factory=threading.Event)

    def run(
        self, jobs: Sequence[JobSpec], run_ids: Sequence[str], *, resume: bool
    ) -> dict[str, Any]:
        (job,), (run_id,), bench = jobs, run_ids, self.bench
        self.stop.clear()
        start = bench.checkpoints.get(run_id, 0) if resume else 0
        with bench.lock:
            bench.ran.append((job.name, start))
        steps, every = job.training.steps or 0, job.evaluation.every_steps or 1
        self.on_event(JobStarted(job.name, run_id, steps))
        for step in range(start + every, steps + 1, every):
            bench.before(job.name, step)
            if step < steps:
                found = {"student": {"loss": bench.loss(job, step)}}
                self.on_event(Evaluated(job.name, step, found, {}))
                bench.checkpoints[run_id] = step
                if self.stop.wait(60.0 if (job.name, step) in bench.held else 0.05):
                    raise Interrupted(f"{job.name} stopped after step {step}")
        return {
            "status": "done",
            "run_id": run_id,
            "steps": steps,
            "tokens": steps * 10,
            "parameters": 7,
            "cost": {"student_device_s": 1.0},
            "cache": {"misses": 0},
            "export": f"exports/{run_id}",
            "evaluation": {"student": {"loss": bench.loss(job, steps)}},
        }

    def request_stop(self) -> None:
        self.stop.set()
