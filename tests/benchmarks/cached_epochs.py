"""An epoch from the cache against the epoch that filled it and one without a cache.

    python tests/benchmarks/cached_epochs.py

Each round plays four jobs over the same data in one session: without a cache, with an empty one,
and twice more with the filled one, the second time in another order; then measures T and S in plain
loops, and what reading the signals alone takes, against a plain read of the same files.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from plain import Plain
from workload import (
    TOKENIZER,
    Workload,
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

from orchestrator.data import Order, end_to_end, prepare
from orchestrator.events import Event, JobEnded, JobStarted, StepDone, Warned
from orchestrator.pool.source import Piece, pieces_of
from orchestrator.runner import run
from orchestrator.signals.asks import ask_of
from orchestrator.signals.cache.reader import Reader
from orchestrator.signals.cache.records import Place
from orchestrator.signals.cache.store import Store
from orchestrator.signals.cut import joined
from orchestrator.signals.encodings import decode, head_from_record
from orchestrator.signals.records import HeadRecord, Reply
from orchestrator.spec import JobSpec

DEFAULT = balanced(steps=24)
PLAIN_BATCHES = 12
KINDS = ("without", "filling", "cached", "reordered")


@dataclass(slots=True)
class Listener:
    """Mean seconds of a step and the share it waited, by job."""

    seconds: dict[str, float] = field(default_factory=dict)
    summaries: dict[str, Any] = field(default_factory=dict)
    _ends: list[float] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        match event:
            case JobStarted():
                self._ends = []
            case StepDone():
                self._ends.append(time.perf_counter())
            case Warned(text=text):
                print(f"warning: {text}", file=sys.stderr)
            case JobEnded(job=name, summary=summary):
                self.seconds[name] = statistics.fmean(step_seconds(self._ends))
                self.summaries[name] = summary
            case _:
                pass


def jobs_of(
    round_: int, folder: Path, workload: Workload, encoding: dict[str, Any]
) -> list[JobSpec]:
    """One job of each kind over one whole epoch, in order."""
    training = job("plain", folder, workload).training.model_dump(mode="json")
    training |= {"steps": None, "epochs": 1}
    cache = {"path": str(folder / f"signals-{round_}")}
    roles = {"teacher": {"path": str(folder / "teacher"), "encoding": encoding}}
    changes: dict[str, dict[str, Any]] = {
        "without": {},
        "filling": {"cache": cache},
        "cached": {"cache": cache},
        "reordered": {"cache": cache, "seed": 1},
    }
    return [
        job(f"{kind}-{round_}", folder, workload, roles=roles, training=training, **changes[kind])
        for kind in KINDS
    ]


def reading(spec: JobSpec, folder: Path, fingerprint: str) -> dict[str, float]:
    """Seconds to read, and to read and decode, one epoch of signals; and to read the files."""
    assert spec.cache.path is not None
    store = prepare(spec.data, str(TOKENIZER), str(folder / "cache")).train
    order = Order(store, spec.data.context, spec.training.global_batch, 7, spec.data.packing)
    ask = ask_of(spec.roles["teacher"].encoding)
    work: list[list[tuple[Piece, Place]]] = []
    with Store.open(spec.cache.path, spec.cache.max_bytes) as opened:
        for step in range(order.steps_per_epoch(0)):
            pieces = pieces_of(end_to_end(store, order.rows(step)), fingerprint, ask)
            places = opened.find([piece.want.key for piece in pieces])
            assert all(isinstance(place, Place) for place in places), "the epoch is not all there"
            work.append(list(zip(pieces, places, strict=True)))  # type: ignore[arg-type]
    began = time.perf_counter()
    raw = sum(len(file.read_bytes()) for file in Path(spec.cache.path).glob("segments/*"))
    raw_s = time.perf_counter() - began
    width, vocabulary = 352, 4096
    head = head_from_record(
        HeadRecord(
            "teacher", fingerprint, np.zeros((vocabulary, width), np.float32), None, 1.0, None
        )
    )
    reader = Reader(spec.cache.path)
    read_s = decode_s = 0.0
    tokens = 0
    for step in work:
        began = time.perf_counter()
        records = [reader.read(piece.want.key, place) for piece, place in step]
        arrays = joined([record.arrays for record in records if record is not None])
        read_s += time.perf_counter() - began
        began = time.perf_counter()
        decode(
            Reply("r", "teacher", ask, arrays, vocabulary, fingerprint),
            head,
            device=torch.device("cpu"),
        )
        decode_s += time.perf_counter() - began
        tokens += sum(record.length for record in records if record is not None)
    return {"tokens": tokens, "raw": raw_s, "read": read_s, "decode": decode_s, "bytes": raw}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, DEFAULT)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoding", choices=("hidden", "topk"), default="hidden")
    options = parser.parse_args()
    workload = chosen(options)
    encoding = {"kind": options.encoding}
    before = machine()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as name:
        folder = Path(name)
        write_models(folder, workload)
        write_text(folder / "text", workload)
        warm = job("warm-up", folder, workload)
        plain = Plain(folder, batches(warm, folder / "cache")[:PLAIN_BATCHES])
        rounds = [jobs_of(index, folder, workload, encoding) for index in range(options.rounds)]
        listener = Listener()
        result = run([warm, *itertools.chain(*rounds)], listener)
        fingerprint = _fingerprint(folder)
        student_s = plain.measure("student")["student"].wall
        plain.close()
        for index, specs in enumerate(rounds):
            seconds = {kind: listener.seconds[f"{kind}-{index}"] for kind in KINDS}
            summary = listener.summaries[f"cached-{index}"]
            assert summary["cache"]["misses"] == summary["pool"]["asked"] == 0
            signals = reading(specs[1], folder, fingerprint)
            rate = signals["tokens"] / (signals["read"] + signals["decode"])
            need = workload.tokens_a_step / student_s
            figures = {
                "step without a cache (s)": seconds["without"],
                "step that fills it (s)": seconds["filling"],
                "step from it (s)": seconds["cached"],
                "S alone (s)": student_s,
                "**filling over without**": seconds["filling"] / seconds["without"],
                "**from the cache over without**": seconds["cached"] / seconds["without"],
                "from the cache, another order, over without": seconds["reordered"]
                / seconds["without"],
                "from the cache over S alone": seconds["cached"] / student_s,
                "**student's wait share, from the cache**": summary["student_wait_share"],
                "signals read and decoded, tokens/s over the student's need": rate / need,
                "read over a plain read of the files, time": signals["read"] / signals["raw"],
            }
            for name, value in figures.items():
                found.setdefault(name, []).append(value)
        del result
    print(f"before: {before}\nafter: {machine()}\n{workload}, {options.encoding}\n")
    print(table([(name, values, 3) for name, values in found.items()]))


def _fingerprint(folder: Path) -> str:
    from orchestrator.models.load import load_model
    from orchestrator.pool.engine import ModelEngine
    from orchestrator.spec.models import RoleSpec

    loaded = load_model(RoleSpec(path=str(folder / "teacher")), device="cpu")
    return ModelEngine("teacher", loaded).describe().fingerprint


if __name__ == "__main__":
    main()
