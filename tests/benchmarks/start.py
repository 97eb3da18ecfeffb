"""Seconds from the start of `stillhouse run` to the first optimiser step, by part.

    python tests/benchmarks/start.py

Each round is a fresh process that runs a list of two small jobs: for the first, Ray, the pool and
the worker group must come up; the second finds them there. Parts follow one another and add up to
the whole; they end where the run says so, to a quarter of a second. Data, DeepSpeed's compiled
operators and Python's compiled files are made before the first round counts. Processor seconds by
process at the first step tell what the waiting was for.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

PHASES = {
    "interpreter, imports": "imported",
    "checks, Ray": "starting workers",
    "pool ready (workers start meanwhile)": "pool ready",
    "workers ready, beyond the pool": "reading data",
    "data": "loading student",
    "student, connection to the pool": "starting DeepSpeed",
    "DeepSpeed": "job started",
    "first answer and first step": "first step",
}
"""Part -> what ends it. Each begins where the one before ends."""

ENDED = "job ended"


# --- the process that is measured ----------------------------------------------------------------


def run_jobs(folder: Path) -> None:
    """Two jobs as `stillhouse run` runs them; prints when things happened."""
    from processes import processor_seconds

    from orchestrator.events import Event, JobEnded, JobStarted, Phase, StepDone
    from orchestrator.runner import run
    from orchestrator.spec import load_jobs

    jobs = load_jobs(folder / "jobs.yaml")
    marks: list[tuple[str, str, float]] = [(jobs[0].name, "imported", time.time())]
    processor: dict[str, float] = {}

    def listen(event: Event) -> None:
        match event:
            case Phase(job=job, text=text):
                what = text
            case JobStarted(job=job):
                what = "job started"
            case StepDone(job=job, step=1):
                what = "first step"
            case StepDone(job=job, step=step, steps=steps) if step == steps:
                what = "last step"
            case JobEnded(job=job):
                what = ENDED
            case _:
                return
        marks.append((job, what, time.time()))
        if what == "first step" and not processor:
            processor.update(processor_seconds())

    run(jobs, listen)
    print(json.dumps({"marks": marks, "processor": processor}))


# --- the one that measures -----------------------------------------------------------------------


def measure(folder: Path) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """One round: seconds by part for both jobs, and processor seconds by process."""
    began = time.time()
    command = [sys.executable, __file__, "--child", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    at = {(job, what): when for job, what, when in reversed(answer["marks"])}
    cold = {what: when for (job, what), when in at.items() if job == "first"}
    second = {what: when for (job, what), when in at.items() if job == "second"}
    return {
        "first": parts(began, cold),
        "second": parts(cold[ENDED], second),
        "between": {"last step of the first job to its end": cold[ENDED] - cold["last step"]},
    }, answer["processor"]


def parts(began: float, at: dict[str, float]) -> dict[str, float]:
    """Seconds of each part that there is, and their sum."""
    found: dict[str, float] = {}
    last = began
    for part, end in PHASES.items():
        if end in at:
            found[part] = at[end] - last
            last = at[end]
    return {**found, "**first step after**": last - began}


def report(title: str, rounds: Iterable[dict[str, float]]) -> str:
    """A Markdown table: median, least and most of each part."""
    from workload import table

    rounds = list(rounds)
    names = dict.fromkeys(name for found in rounds for name in found)
    rows = [(name, [found.get(name, 0.0) for found in rounds], 1) for name in names]
    return f"{title}\n\n{table(rows)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        run_jobs(options.child)
        return

    from workload import Workload, job, machine, write_models, write_text

    from orchestrator.spec import resolved_yaml

    workload = Workload(64, 2, 48, 1, 64, 4, 6)
    before = machine()
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as name:
        folder = Path(name)
        write_models(folder, workload)
        write_text(folder / "text", workload)
        jobs = [job(each, folder, workload) for each in ("first", "second")]
        (folder / "jobs.yaml").write_text(resolved_yaml(jobs))
        measure(folder)  # fills the caches that a machine keeps
        rounds = [measure(folder) for _ in range(options.rounds)]
    print(f"before: {before}\nafter: {machine()}\n")
    seconds = [found for found, _ in rounds]
    print(report("First job", (found["first"] for found in seconds)))
    print(report("Second job of the list", (found["second"] for found in seconds)))
    print(report("Between them", (found["between"] for found in seconds)))
    print(report("Processor seconds until the first step", (spent for _, spent in rounds)))
    whole = statistics.median(found["first"]["**first step after**"] for found in seconds)
    print(f"first optimiser step {whole:.1f} s after the start")


if __name__ == "__main__":
    main()
