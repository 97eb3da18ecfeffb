"""A distillation through the orchestrator against the limit for the same work in plain loops.

    python tests/benchmarks/overhead.py

The limit is max(T, S): T seconds a batch of the teacher's forward in a plain loop with a core of
its own, S those of the student's step given the teacher's signals, with another core of its own.
T and S are measured one at a time, and again side by side, because cores share caches, memory and
clock. Each round is one job in a session that is up already, then both plain measurements, so that
a drifting machine moves numerator and denominator alike. Each step of the job is timed by the
arrival of its event here; steps must take longer than the 0.25 s in which events are gathered.
Processor seconds, which a busy machine distorts less, say what the orchestration itself costs.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from plain import Plain
from processes import processor_seconds
from workload import (
    add_arguments,
    balanced,
    batches,
    chosen,
    job,
    machine,
    step_seconds,
    table,
    write_models,
    write_text,
)

from orchestrator.events import Event, JobEnded, JobStarted, StepDone, Warned
from orchestrator.runner import run

DEFAULT = balanced(steps=28)
WARM_UP = "warm-up"
PLAIN_BATCHES = 12


@dataclass(slots=True)
class Rounds:
    """Listens to the session; between jobs it measures the plain loops."""

    plain: Plain
    found: dict[str, list[float]] = field(default_factory=dict)
    _ends: list[float] = field(default_factory=list)  # of steps, by the clock
    _spent: float = 0.0  # processor seconds of all processes when the job's steps began, then since

    def __call__(self, event: Event) -> None:
        match event:
            case JobStarted():
                self._ends, self._spent = [], sum(processor_seconds().values())
            case StepDone(step=step, steps=steps):
                self._ends.append(time.perf_counter())
                if step == steps:
                    self._spent = sum(processor_seconds().values()) - self._spent
            case Warned(text=text):
                print(f"warning: {text}", file=sys.stderr)
            case JobEnded(job=name, summary=summary) if name != WARM_UP:
                self._add(step_seconds(self._ends), summary["student_wait_share"])
            case _:
                pass

    def _add(self, steps: list[float], waited: float) -> None:
        alone = self.plain.measure("teacher") | self.plain.measure("student")
        beside = self.plain.measure("teacher", "student")
        wall = statistics.fmean(steps)
        spent = self._spent / len(self._ends)
        figures = {
            "wall of a step, mean of a job's (s)": wall,
            "wall of a step, median of a job's (s)": statistics.median(steps),
            "T alone (s)": alone["teacher"].wall,
            "S alone (s)": alone["student"].wall,
            "T beside S (s)": beside["teacher"].wall,
            "S beside T (s)": beside["student"].wall,
            "student's wait share": waited,
            "**wall over max(T, S), alone**": wall / max(each.wall for each in alone.values()),
            "**wall over max(T, S), side by side**": wall
            / max(each.wall for each in beside.values()),
            "processor seconds of a step, all processes": spent,
            "the same over T + S": spent / sum(each.processor for each in beside.values()),
        }
        for name, value in figures.items():
            self.found.setdefault(name, []).append(value)
        print(f"round: {figures}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, DEFAULT)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    workload = chosen(options)
    before = machine()
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as name:
        folder = Path(name)
        write_models(folder, workload)
        write_text(folder / "text", workload)
        names = [WARM_UP, *(f"round-{index}" for index in range(options.rounds))]
        jobs = [job(each, folder, workload) for each in names]
        work = batches(jobs[0], folder / "cache")
        plain = Plain(folder, work[:PLAIN_BATCHES])
        rounds = Rounds(plain)
        run(jobs, rounds)
        plain.close()
    print(f"before: {before}\nafter: {machine()}\n{workload}\n")
    print(table([(name, values, 3) for name, values in rounds.found.items()]))


if __name__ == "__main__":
    main()
