"""A search of eight trials over schedules: against eight runs, and against the least it could cost.

    python tests/benchmarks/search.py

Trials differ in the student's side alone and learn from the same data; two run side by side, beside
one pool. The least is 8 S + T device-seconds, over two cores: T, what a replica works for
`stillhouse label` into an empty cache, times the share of its records that trials ask; S, the
training loop of a student whose signals are all in
the cache, with no pool, measured on two such students side by side, because cores share caches,
memory and clock. The eight runs are `stillhouse run` in processes of their own with empty caches;
`--separate` of them are played, and count for eight. Seconds from a trial's start to its first step
are to a quarter of a second, in which events are gathered.

A second, small search with ASHA says that no key is computed twice there either.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ray
from workload import (
    TOKENIZER,
    Workload,
    add_arguments,
    balanced,
    chosen,
    job,
    machine,
    table,
    write_models,
    write_text,
)

from orchestrator.data import Order, prepare
from orchestrator.events import Event, StepDone, Warned
from orchestrator.pool import Pool, PoolPlan
from orchestrator.search.load import search_of
from orchestrator.search.progress import SearchProgress
from orchestrator.search.run import SearchResult, run_search
from orchestrator.search.table import computed_by
from orchestrator.session import Session, join_ray
from orchestrator.signals.cache.inspection import summary
from orchestrator.spec import JobSpec, resolved_yaml
from orchestrator.spec.paths import absolute_paths

DEFAULT = balanced(steps=48)
SMALL = Workload(64, 2, 48, 1, 64, 4, 32)
TRIALS, LANES, CORES = 8, 2, 2
PING_S = 3.0
"""In which a controller asks its replicas again."""
RUN = "from orchestrator.cli import main; main()"
SCHEDULES = {
    "choice": [
        {"kind": "constant", "value": {"loguniform": [0.7, 4.0]}},
        {"kind": "linear", "start": {"loguniform": [1.0, 8.0]}, "end": 1.0},
        {"kind": "cosine", "start": {"loguniform": [1.0, 8.0]}, "end": 1.0},
    ]
}


def raw_job(name: str, folder: Path, workload: Workload, **changes: Any) -> dict[str, Any]:
    """A job that leaves room for two students beside a replica on two cores, as plain data."""
    raw = job(name, folder, workload, **changes).model_dump(
        mode="json", by_alias=True, exclude_unset=True
    )
    raw["roles"]["teacher"]["resources"] = {"cpus": 0.5}
    raw["training"]["resources"] = {"cpus": 0.75}
    return raw


# --- listening -----------------------------------------------------------------------------------


@dataclass
class Trace:
    """When the trials of a search began, stepped and ended."""

    began: dict[int, float] = field(default_factory=dict)
    first: dict[int, float] = field(default_factory=dict)
    last: dict[int, float] = field(default_factory=dict)
    ended: dict[int, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, event: Event | SearchProgress) -> None:
        now = time.monotonic()
        with self.lock:
            match event:
                case SearchProgress(trials=trials):
                    for trial in trials:
                        if trial.status == "running":
                            self.began.setdefault(trial.number, now)
                        if trial.status in ("done", "stopped"):
                            self.ended.setdefault(trial.number, now)
                case StepDone(job=name, step=step, steps=steps):
                    number = int(name.rpartition("-t")[2])
                    if step == 1:
                        self.first.setdefault(number, now)
                    if step == steps:
                        self.last.setdefault(number, now)
                case Warned(text=text):
                    print(f"warning: {text}", file=sys.stderr)
                case _:
                    pass

    def starts(self) -> tuple[list[float], list[float]]:
        """Seconds from start to first step: of the first trial of each lane, and of the others."""
        order = sorted(self.began, key=lambda number: self.began[number])
        taken = [self.first[number] - self.began[number] for number in order]
        return taken[:LANES], taken[LANES:]

    def between(self) -> list[float]:
        """Seconds from the last step of a trial to the end of all that is done with it."""
        return [self.ended[number] - self.last[number] for number in self.last]


# --- what is measured ----------------------------------------------------------------------------


def separately(folder: Path, workload: Workload, number: int) -> dict[str, float]:
    """One run in a process of its own, with an empty cache."""
    spec = raw_job(
        f"separate-{number}", folder, workload, cache={"path": str(folder / f"cache-{number}")}
    )
    path = folder / f"separate-{number}.yaml"
    path.write_text(resolved_yaml([JobSpec.model_validate(spec)]))
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", RUN, "run", str(path), "--json"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    wall = time.monotonic() - began
    cost = json.loads(done.stdout.splitlines()[-1])["jobs"][0]["cost"]
    return {"wall": wall, "device": cost["student_device_s"] + cost["teacher_device_s"]}


def label(spec: JobSpec) -> tuple[float, int]:
    """T: device-seconds of the replica that fills the cache; and the keys it has computed."""
    with Session([spec], lambda event: None) as session:
        told = session.label_job(spec, "label", {})
        (pool,) = session.pools.values()
        return worked(pool)["busy_s"], sum(part["computed"] for part in told["labelled"])


def asked(spec: JobSpec, cache: Path) -> int:
    """Samples that a job's steps read: as many keys does it ask the role for."""
    training, data = spec.training, spec.data
    store = prepare(data, str(TOKENIZER), str(cache)).train
    order = Order(store, data.context, training.global_batch, spec.seed, data.packing)
    rows = (row for step in range(training.steps or 0) for row in order.rows(step))
    return len({sample for row in rows for sample in row})


def worked(pool: Pool) -> dict[str, Any]:
    """What the pool's one replica has done, once its controller has heard of it."""
    time.sleep(PING_S)
    (replica,) = pool.status()["roles"]["teacher"]["replicas"]
    return replica


def search(
    raw: Mapping[str, Any], trials: int, trace: Trace, **changes: Any
) -> tuple[SearchResult, float]:
    """A search over schedules of the temperature; its result and wall seconds."""
    spec = {
        "space": {"objective.terms.0.temperature": SCHEDULES},
        "metric": "summary.tokens_per_s",
        "mode": "max",
        "budget": {"trials": trials},
        **changes,
    }
    began = time.monotonic()
    result = run_search(search_of(dict(raw), spec), parallel=LANES, on_event=trace)
    return result, time.monotonic() - began


def summaries(result: SearchResult) -> list[Mapping[str, Any]]:
    """Of the trials' runs, in order."""
    return [state.summaries[0] for state in result.trials if state.summaries]


def device_seconds(found: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Of students, and of the pool: all that it did lies within the first trials, which each count
    it whole."""
    costs = [summary["cost"] for summary in found]
    pool = [cost.get("teacher_device_s", 0.0) for cost in costs]
    students = sum(cost["student_device_s"] for cost in costs)
    return students, max(pool[:LANES]) + sum(pool[LANES:])


def _in_pages(folder: Path, pages: int = 40) -> None:
    """Cut the text into documents, of which some can be held out."""
    (whole,) = folder.iterdir()
    text = whole.read_text(encoding="utf-8")
    whole.unlink()
    size = -(-len(text) // pages)
    for page in range(pages):
        part = text[page * size : (page + 1) * size]
        (folder / f"{page}.txt").write_text(part, encoding="utf-8")


def with_asha(folder: Path) -> str:
    """What the pool has computed in a small search with ASHA, and how many keys were asked for."""
    write_models(folder, SMALL)
    _in_pages(write_text(folder / "text", SMALL))
    raw = raw_job("asha", folder, SMALL, cache={"path": str(folder / "cache")})
    raw["data"]["held_out"] = 0.1
    raw["evaluation"] = {"before": False, "generate": None, "every_steps": 8, "rows": 8}
    raw["training"]["checkpoint"] = {"every_steps": 8}
    raw |= {"pool": {"kind": "standing", "name": "asha"}}
    spec = absolute_paths(JobSpec.model_validate(raw))
    pool = Pool.up(PoolPlan("asha", spec.roles, standing=True))
    try:
        scheduler = {"kind": "asha", "grace_steps": 8, "reduction": 2}
        wanted = {"metric": "student.loss", "mode": "min", "scheduler": scheduler}
        result, _ = search(raw, TRIALS, Trace(), **wanted)
        computed = worked(pool)["samples"]
    finally:
        pool.down()
    statuses = [state.status for state in result.trials]
    held = summary(folder / "cache").records
    return (
        f"with ASHA: {statuses.count('done')} trials to the end, {statuses.count('stopped')} "
        f"stopped; {computed} answers computed in all, {held} keys asked for"
    )


# --- the whole -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Least:
    """What 8 S + T is made of."""

    student_s: list[float]  # S of each student
    teacher_s: float  # T
    keys: int

    @property
    def device_s(self) -> float:
        return TRIALS * statistics.mean(self.student_s) + self.teacher_s


def least(folder: Path, workload: Workload) -> Least:
    """Measure S and T."""
    filled = {"path": str(folder / "filled")}
    whole = raw_job("whole", folder, workload, cache=filled)
    spec = absolute_paths(JobSpec.model_validate(whole))
    teacher_s, labelled = label(spec)
    keys = asked(spec, folder / "data")
    teacher_s *= keys / labelled  # it labels all the text, of which the steps read a part
    from_cache = raw_job("students", folder, workload, cache=filled, pool={"kind": "none"})
    pair, _ = search(from_cache, LANES, Trace())
    student_s = [summary["cost"]["student_device_s"] for summary in summaries(pair)]
    found = Least(student_s, teacher_s, keys)
    print(
        table(
            [
                ("S, a student's loop, all signals in the cache (s)", student_s, 2),
                ("T, the teacher's pass (s)", [teacher_s], 2),
            ]
        ),
        flush=True,
    )
    return found


def searched(folder: Path, workload: Workload, limit: Least) -> list[tuple[str, float, float]]:
    """Play the search; lines of (what, wall seconds, device-seconds)."""
    trace = Trace()
    raw = raw_job("bench", folder, workload, cache={"path": str(folder / "cache")})
    result, wall = search(raw, TRIALS, trace)
    found = summaries(result)
    students_s, pool_s = device_seconds(found)
    computed = [computed_by(state) for state in result.trials]
    print(
        f"\nteacher's forwards: {sum(computed)} answers computed ({computed} by trial), "
        f"{limit.keys} distinct keys asked\n"
    )
    cold, warm = trace.starts()
    loops = [summary["cost"]["student_device_s"] for summary in found]
    print(
        table(
            [
                ("a trial's loop in the search (s)", loops, 2),
                ("the teacher's work in the search (s)", [pool_s], 2),
                ("start to first step, cold (s)", cold, 2),
                ("start to first step, warm (s)", warm, 2),
                ("last step to the end of a trial (s)", trace.between(), 2),
            ]
        ),
        flush=True,
    )
    steps = max(trace.ended.values()) - min(trace.first.values())
    trials = max(trace.ended.values()) - min(trace.began.values())
    device_s = students_s + pool_s
    return [
        ("search, from the first step to the last trial's end", steps, device_s),
        ("search, from the first trial's start", trials, device_s),
        ("search, whole, Ray being up", wall, device_s),
    ]


def measure(folder: Path, workload: Workload, separate: int) -> None:
    """Measure all parts and print them."""
    alone = [separately(folder, workload, number) for number in range(separate)]
    join_ray(None)
    limit = least(folder, workload)
    lines = [("**8 S + T**, the least", limit.device_s / CORES, limit.device_s)]
    lines += searched(folder, workload, limit)
    if alone:
        wall = TRIALS * statistics.mean(each["wall"] for each in alone)
        device_s = TRIALS * statistics.mean(each["device"] for each in alone)
        lines.append((f"8 runs ({separate} played)", wall, device_s))
    print("\n| | wall, s | over the least | device-seconds | over the least |")
    print("|---|---|---|---|---|")
    for name, wall, device_s in lines:
        over = (wall * CORES / limit.device_s, device_s / limit.device_s)
        print(
            f"| {name} | {wall:.1f} | {over[0]:.3f} | {device_s:.1f} | {over[1]:.3f} |", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, DEFAULT)
    parser.add_argument("--separate", type=int, default=2, help="runs played of the eight")
    options = parser.parse_args()
    workload = chosen(options)
    before = machine()
    print(f"{workload}\n")
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as name:
        for part in ("large", "small"):
            (Path(name) / part).mkdir()
        folder = Path(name) / "large"
        write_models(folder, workload)
        write_text(folder / "text", workload)
        measure(folder, workload, options.separate)
        print(f"\n{with_asha(Path(name) / 'small')}")
        ray.shutdown()
    print(f"\nbefore: {before}\nafter: {machine()}")


if __name__ == "__main__":
    main()
