"""What jobs of weights 1, 1, 2 and 4 get of one busy pool, and how soon a late one has its share.

    python tests/benchmarks/fairness.py

A pool of one replica on Ray serves a small model; each tenant keeps its window full. Shares are
of tokens answered. The first tenant of weight 1 is idle at first; the last one comes late.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import ray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workload import balanced, machine, write_models

from orchestrator.pool import Pool, PoolClient, PoolPlan
from orchestrator.session import join_ray
from orchestrator.signals.records import HiddenAsk, Request
from orchestrator.spec.models import RoleSpec

WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 4.0}
SAMPLES, LENGTH, WINDOW = 8, 64, 8
SLICE_S = 0.25
SMALL = replace(balanced(1), teacher_width=96, teacher_layers=2)
"""A forward of one request takes some hundredths of a second."""


@dataclass
class Answers:
    """Tokens answered, by tenant, with the time of each answer."""

    times: list[tuple[float, str, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, tenant: str, tokens: int) -> None:
        with self.lock:
            self.times.append((time.monotonic(), tenant, tokens))

    def shares(self, begin: float, end: float) -> dict[str, float]:
        """Of what was answered between two moments."""
        found: Counter[str] = Counter()
        for when, tenant, tokens in self.times:
            if begin <= when < end:
                found[tenant] += tokens
        whole = found.total() or 1
        return {tenant: found[tenant] / whole for tenant in WEIGHTS}


def _request(tenant: str, number: int, weight: float) -> Request:
    rng = np.random.default_rng(number)
    tokens = rng.integers(0, 500, SAMPLES * LENGTH).astype(np.int32)
    lengths = np.full(SAMPLES, LENGTH, np.int32)
    wanted = np.zeros(len(tokens), bool)
    wanted[LENGTH - 1 :: LENGTH] = True
    name = f"{tenant}-{number}"
    return Request(
        name, "teacher", tenant, HiddenAsk("float32"), tokens, lengths, wanted, weight=weight
    )


@contextmanager
def tenant(pool: Pool, name: str, answers: Answers) -> Iterator[None]:
    """Inside, this tenant keeps its window full."""
    stop = threading.Event()
    client = PoolClient(pool.handle(), name, 64 << 20, WINDOW)

    def work() -> None:
        asked = taken = 0
        while not stop.is_set():
            while asked - taken < WINDOW:
                client.submit(_request(name, asked, WEIGHTS[name]))
                asked += 1
            client.result(f"{name}-{taken}")
            taken += 1
            answers.add(name, SAMPLES * LENGTH)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=30)
        client.close()


def measure(pool: Pool, seconds: float) -> dict[str, object]:
    """Shares of all four, of three while one is idle, and how soon the late one had its share."""
    answers = Answers()
    with tenant(pool, "b", answers), tenant(pool, "c", answers), tenant(pool, "d", answers):
        time.sleep(2)
        begun = time.monotonic()
        time.sleep(seconds / 2)
        came = time.monotonic()
        with tenant(pool, "a", answers):
            time.sleep(2)
            settled = time.monotonic()
            time.sleep(seconds)
            ended = time.monotonic()
    return {
        "three": answers.shares(begun, came),
        "four": answers.shares(settled, ended),
        "late_s": _share_after(answers, came, settled),
    }


def _share_after(answers: Answers, came: float, until: float) -> float:
    """Seconds after which the late tenant's share of two seconds was within 5 % of its weight."""
    wanted = WEIGHTS["a"] / sum(WEIGHTS.values())
    moment = came
    while moment < until:
        if answers.shares(moment, moment + 8 * SLICE_S)["a"] >= 0.95 * wanted:
            return moment - came
        moment += SLICE_S
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    join_ray(None)
    with tempfile.TemporaryDirectory() as folder:
        path, _ = write_models(Path(folder), SMALL)
        role = RoleSpec.model_validate(
            {"path": str(path), "resources": {"cpus": 0.5}, "max_queue": 64, "threads": 1}
        )
        pool = Pool.up(PoolPlan("fairness", {"teacher": role}))
        try:
            found = [measure(pool, options.seconds) for _ in range(options.runs)]
        finally:
            pool.down()
            ray.shutdown()
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(machine())
    print("| run | " + " | ".join(f"{n} (weight {w:g})" for n, w in WEIGHTS.items()) + " | late |")
    print("|---" * (len(WEIGHTS) + 2) + "|")
    total = sum(WEIGHTS.values())
    for index, one in enumerate(found):
        for what in ("three", "four"):
            shares: dict[str, float] = one[what]  # type: ignore[assignment]
            cells = [f"{100 * shares[name]:.1f} %" for name in WEIGHTS]
            late = f"{one['late_s']:.2f} s" if what == "four" else ""
            print(f"| {index + 1}, {what} | " + " | ".join(cells) + f" | {late} |")
    wanted = " | ".join(f"{100 * weight / total:.1f} %" for weight in WEIGHTS.values())
    print(f"| wanted of four | {wanted} | |")


if __name__ == "__main__":
    main()
