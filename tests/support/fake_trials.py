"""Drivers of trials that train nothing: they measure what a function says, and can be stopped."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from typing import Any

from orchestrator.errors import Interrupted
from orchestrator.events import Evaluated, JobStarted, StepDone, Used
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
    known: set[tuple[str, int]] = field(default_factory=set)  # (data of a job, step) in the cache
    used: Used = field(default_factory=Used)  # by all runs, work that was lost included
    usage: dict[tuple[str, int], Used] = field(default_factory=dict)  # (run id, step) -> of the run

    def drivers(self) -> Drivers:
        """What a crew is given."""
        return Drivers(self._opened, self._new_run_id, lambda job, run: run in self.checkpoints)

    def works(self, job: JobSpec, done: int, steps: int) -> Used:
        """What the steps up to `done` use; what the pool has computed before is known."""
        with self.lock:
            wanted = {(str(job.seed), step) for step in range(done - steps, done)}
            fresh = Used(10 * steps, 0.5 * steps, 0.25 * steps, len(wanted - self.known))
            self.known |= wanted
            self.used = added(self.used, fresh)
            return fresh

    def _new_run_id(self, name: str) -> str:
        with self.lock:
            self.made += 1
            return f"{name}.{self.made}"

    @contextmanager
    def _opened(self, jobs: Sequence[JobSpec], on_event: OnEvent) -> Iterator["FakeTrainer"]:
        yield FakeTrainer(self, on_event)


def added(one: Used, other: Used) -> Used:
    """Both together."""
    return Used(*(a + b for a, b in zip(astuple(one), astuple(other), strict=True)))


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
        used = self._used_before(job, run_id, start)
        self.on_event(JobStarted(job.name, run_id, steps, used))
        loss = weight
        for done in range(start + every, until + 1, every):
            bench.before(job.name, done)
            for step in range(done - every, done):
                weight = weight if bench.learn is None else bench.learn(job, step, weight)
            loss = bench.loss(job, done) if bench.learn is None else weight
            bench.weights[run_id, done] = weight
            used = bench.usage[run_id, done] = added(used, bench.works(job, done, every))
            self.on_event(StepDone(job.name, done, steps, {}, used))
            if done < steps:
                self.on_event(Evaluated(job.name, done, {"student": {"loss": loss}}, {}))
                bench.checkpoints[run_id] = done
                if self.stop.wait(60.0 if (job.name, done) in bench.held else bench.pause_s):
                    raise Interrupted(f"{job.name} stopped after step {done}")
        return {
            "status": "done" if until == steps else "paused",
            "run_id": run_id,
            "steps": until,
            "tokens": used.tokens,
            "parameters": 7,
            "cost": {"student_device_s": used.student_s, "teacher_device_s": used.teacher_s},
            "cache": {"misses": used.computed},
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

    def _used_before(self, job: JobSpec, run_id: str, start: int) -> Used:
        """What the checkpoint that a run begins from knows."""
        fork = job.training.start
        run = run_id if (run_id, start) in self.bench.usage or fork is None else fork.run
        return self.bench.usage.get((run.rpartition("/")[2], start), Used())

    def request_stop(self) -> None:
        self.stop.set()
