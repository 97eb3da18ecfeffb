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
    learn: Callable[[JobSpec, int, float], float] | None = None
    """(job, step, weight) -> weight after the step; it is then what is measured, from 1 on."""
    weights: dict[tuple[str, int], float] = field(default_factory=dict)  # (run id, step) -> weight
    pause_s: float = 0.05  # after each measurement, in which a stop is heard

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
        self,
        jobs: Sequence[JobSpec],
        run_ids: Sequence[str],
        *,
        resume: bool,
        pause_at: int | None = None,
    ) -> dict[str, Any]:
        (job,), (run_id,), bench = jobs, run_ids, self.bench
        self.stop.clear()
        start, weight = self._begins(job, run_id, resume)
        with bench.lock:
            bench.ran.append((job.name, start))
        steps, every = job.training.steps or 0, job.evaluation.every_steps or 1
        until = pause_at or steps
        self.on_event(JobStarted(job.name, run_id, steps))
        loss = weight
        for done in range(start + every, until + 1, every):
            bench.before(job.name, done)
            for step in range(done - every, done):
                weight = weight if bench.learn is None else bench.learn(job, step, weight)
            loss = bench.loss(job, done) if bench.learn is None else weight
            bench.weights[run_id, done] = weight
            if done < steps:
                self.on_event(Evaluated(job.name, done, {"student": {"loss": loss}}, {}))
                bench.checkpoints[run_id] = done
                if self.stop.wait(60.0 if (job.name, done) in bench.held else bench.pause_s):
                    raise Interrupted(f"{job.name} stopped after step {done}")
        return {
            "status": "done" if until == steps else "paused",
            "run_id": run_id,
            "steps": until,
            "tokens": until * 10,
            "parameters": 7,
            "cost": {"student_device_s": 1.0},
            "cache": {"misses": 0},
            "export": f"exports/{run_id}",
            "evaluation": {"student": {"loss": loss}},
        }

    def _begins(self, job: JobSpec, run_id: str, resume: bool) -> tuple[int, float]:
        """The step to begin with, and the weight of the checkpoint there."""
        bench, fork = self.bench, job.training.start
        if resume:
            start = bench.checkpoints.get(run_id, 0)
            return start, bench.weights.get((run_id, start), 1.0)
        if fork is None:
            return 0, 1.0
        return fork.step, bench.weights[fork.run.rpartition("/")[2], fork.step]

    def request_stop(self) -> None:
        self.stop.set()
