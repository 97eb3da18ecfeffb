"""What jobs of weights 1, 1, 2 and 4 get of one busy pool, and how soon a late one has its share.

    python tests/benchmarks/fairness.py

A pool of one replica on Ray serves a small model; each tenant keeps its window full. Shares are
of tokens answered. The first tenant of weight 1 is there and asks nothing, then comes late.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import ray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workload import balanced, machine, table, write_models

from orchestrator.pool import Pool, PoolClient, PoolPlan
from orchestrator.session import join_ray
from orchestrator.signals.records import HiddenAsk, Request
from orchestrator.spec.models import RoleSpec

WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 4.0}
SAMPLES, LENGTH, WINDOW = 8, 64, 8
RATES = (("tokens/s while one is idle", "idle_rate"), ("tokens/s of all four", "rate"))
PARTS = ("one idle", "first 2 s of the late one", "all four")
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
        found = self._tokens(begin, end)
        return {tenant: found[tenant] / (found.total() or 1) for tenant in WEIGHTS}

    def rate(self, begin: float, end: float) -> float:
        """Tokens a second, of all tenants."""
        return self._tokens(begin, end).total() / (end - begin)

    def _tokens(self, begin: float, end: float) -> Counter[str]:
        found: Counter[str] = Counter()
        for when, tenant, tokens in self.times:
            if begin <= when < end:
                found[tenant] += tokens
        return found


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
def tenant(
    pool: Pool, name: str, answers: Answers, comes: threading.Event | None = None
) -> Iterator[None]:
    """Inside, this tenant keeps its window full; it asks nothing before `comes` is set."""
    stop = threading.Event()
    client = PoolClient(pool.handle(), name, 64 << 20, WINDOW)

    def work() -> None:
        asked = taken = 0
        while comes is not None and not (comes.wait(0.1) or stop.is_set()):
            pass
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
    """Shares and tokens a second while one is idle, in the two seconds after it came, and then."""
    answers, comes = Answers(), threading.Event()
    with ExitStack() as tenants:
        for name in WEIGHTS:
            late = comes if name == "a" else None
            tenants.enter_context(tenant(pool, name, answers, late))
        time.sleep(2)
        begun = time.monotonic()
        time.sleep(seconds / 2)
        came = time.monotonic()
        comes.set()
        time.sleep(2)
        settled = time.monotonic()
        time.sleep(seconds)
        ended = time.monotonic()
    return {
        "one idle": answers.shares(begun, came),
        "first 2 s of the late one": answers.shares(came, settled),
        "all four": answers.shares(settled, ended),
        "idle_rate": answers.rate(begun, came),
        "rate": answers.rate(settled, ended),
    }


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
    print("| | run | " + " | ".join(f"{n} (weight {w:g})" for n, w in WEIGHTS.items()) + " |")
    print("|---" * (len(WEIGHTS) + 2) + "|")
    for part in PARTS:
        for index, one in enumerate(found):
            shares: dict[str, float] = one[part]  # type: ignore[assignment]
            cells = [f"{100 * shares[name]:.1f} %" for name in WEIGHTS]
            print(f"| {part} | {index + 1} | " + " | ".join(cells) + " |")
    total = sum(WEIGHTS.values())
    wanted = " | ".join(f"{100 * weight / total:.1f} %" for weight in WEIGHTS.values())
    print(f"| wanted of four | | {wanted} |\n")
    rates = [(name, [one[key] for one in found], 0) for name, key in RATES]
    print(table(rates))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
