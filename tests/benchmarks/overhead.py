"""A distillation through the orchestrator against the limit for the same work in plain loops.

    python tests/benchmarks/overhead.py

The limit is max(T, S): T seconds a batch of the teacher's forward in a plain loop with a core of
its own, S those of the student's step given the teacher's signals, with another core of its own.
T and S are measured one at a time, and again side by side, because cores share caches, memory and
clock. Each round is one job in a session that is up already, then both plain measurements, so that
a drifting machine moves numerator and denominator alike. Each step of the job is timed by the
arrival of its event here; steps must take longer than the 0.25 s in which events are gathered.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from plain import Plain
from workload import (
    Workload,
    add_arguments,
    batches,
    chosen,
    job,
    machine,
    step_seconds,
    table,
    write_models,
    write_text,
)

from orchestrator.events import Event, JobEnded, StepDone, Warned
from orchestrator.runner import run

DEFAULT = Workload(
    teacher_width=320,
    teacher_layers=6,
    student_width=192,
    student_layers=4,
    context=256,
    rows=8,
    steps=28,
)


@dataclass(slots=True)
class Rounds:
    """Listens to the session; between jobs it measures the plain loops."""

    plain: Plain
    seen: list[float]
    found: dict[str, list[float]]

    def __call__(self, event: Event) -> None:
        match event:
            case StepDone():
                self.seen.append(time.perf_counter())
            case Warned(text=text):
                print(f"warning: {text}", file=sys.stderr)
            case JobEnded(job=name, summary=summary):
                steps = step_seconds(self.seen)
                mean, self.seen = statistics.fmean(steps), []
                if name == "warm-up":
                    return
                self.add(mean, statistics.median(steps), summary["student_wait_share"])
            case _:
                pass

    def add(self, wall: float, median: float, waited: float) -> None:
        """One round."""
        alone = self.plain.measure("teacher") | self.plain.measure("student")
        beside = self.plain.measure("teacher", "student")
        limit, limit_beside = max(alone.values()), max(beside.values())
        figures = {
            "wall a step, mean (s)": wall,
            "wall a step, median (s)": median,
            "T alone (s)": alone["teacher"],
            "S alone (s)": alone["student"],
            "T beside S (s)": beside["teacher"],
            "S beside T (s)": beside["student"],
            "student's wait share": waited,
            "**wall / max(T, S) alone**": wall / limit,
            "**wall / max(T, S) side by side**": wall / limit_beside,
        }
        for name, value in figures.items():
            self.found.setdefault(name, []).append(value)
        print(f"round: wall {wall:.3f}, alone {alone}, side by side {beside}", file=sys.stderr)


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
        names = ["warm-up", *(f"round-{index}" for index in range(options.rounds))]
        jobs = [job(each, folder, workload) for each in names]
        work = batches(jobs[0], folder / "cache")
        plain = Plain(folder, work)
        rounds = Rounds(plain, [], {})
        run(jobs, rounds)
        plain.close()
    print(f"before: {before}\nafter: {machine()}\n{workload}\n")
    print(table([(name, values, 3) for name, values in rounds.found.items()]))


if __name__ == "__main__":
    main()
