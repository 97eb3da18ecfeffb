"""What a run recorded, read back from its spool on disk.

The spool (`<run folder>/tracking/spool.jsonl`) is one JSON object a line, numbered from 0. It is
written by `orchestrator.tracking.spool`; this file owns the reading, so that a report can be
rebuilt from a run folder alone, on any machine. Standard library only; must not import MLflow,
torch or ray.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Kind = Literal[
    "begin", "params", "metrics", "tags", "lineage", "text", "artifact", "register", "status"
]
KINDS: tuple[str, ...] = get_args(Kind)
SPOOL = Path("tracking") / "spool.jsonl"


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a spool. `body` holds what the kind needs: see `tracking.tracker`."""

    number: int
    time_ms: int  # since 1970, UTC
    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric."""

    step: int
    time_ms: int
    value: float


@dataclass(frozen=True, slots=True)
class History:
    """A run as its spool tells it."""

    run_id: str
    name: str
    experiment: str
    status: str  # running, finished, failed, interrupted
    starts: int  # how often a process opened the run; above 1 after a resume
    params: Mapping[str, str]
    tags: Mapping[str, str]
    lineage: Mapping[str, str]
    texts: Mapping[str, str]
    metrics: Mapping[str, tuple[Point, ...]]  # by name, in the order recorded
    began_ms: int
    ended_ms: int
    damaged: int  # lines that were no record

    def last(self, metric: str) -> float | None:
        """The latest value, or None when it was never recorded."""
        points = self.metrics.get(metric, ())
        return points[-1].value if points else None

    def at(self, metric: str, step: int) -> float | None:
        """The latest value at `step`."""
        found = [point.value for point in self.metrics.get(metric, ()) if point.step == step]
        return found[-1] if found else None


def parse_record(line: bytes) -> Record | None:
    """One complete line of a spool, or None when it is no record (torn, or damaged on disk)."""
    try:
        raw = json.loads(line)
        return Record(int(raw["n"]), int(raw["time_ms"]), str(raw["kind"]), dict(raw["body"]))
    except (ValueError, KeyError, TypeError):
        return None


def read_records(run_folder: str | Path) -> Iterator[Record | None]:
    """Every complete line of a run's spool, in order; None for a damaged one.

    A last line without its newline is still being written, or was torn: it is left out.

    Raises:
        FileNotFoundError: the run has no spool.
    """
    with open(Path(run_folder) / SPOOL, "rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield parse_record(line)


def read_history(run_folder: str | Path) -> History:
    """The history of the run in `run_folder`.

    Raises:
        FileNotFoundError: the run has no spool.
    """
    return history_of(read_records(run_folder))


def history_of(records: Iterable[Record | None]) -> History:
    """Fold records into a history; later ones win where a key repeats."""
    header: dict[str, Any] = {}
    maps: dict[str, dict[str, str]] = {"params": {}, "tags": {}, "lineage": {}}
    texts: dict[str, str] = {}
    points: dict[str, list[Point]] = {}
    status, starts, damaged, began, ended = "running", 0, 0, 0, 0
    for record in records:
        if record is None:
            damaged += 1
            continue
        began, ended, body = began or record.time_ms, record.time_ms, record.body
        if record.kind == "begin":
            header, status, starts = dict(body), "running", starts + 1
        elif record.kind in maps:
            maps[record.kind].update(body["values"])
        elif record.kind == "metrics":
            for name, value in body["values"].items():
                point = Point(int(body["step"]), record.time_ms, float(value))
                points.setdefault(name, []).append(point)
        elif record.kind == "text":
            texts[body["name"]] = body["text"]
        elif record.kind == "status":
            status = body["status"]
    return History(
        run_id=header.get("run_id", ""),
        name=header.get("name", ""),
        experiment=header.get("experiment", ""),
        status=status,
        starts=starts,
        params=maps["params"],
        tags=maps["tags"],
        lineage=maps["lineage"],
        texts=texts,
        metrics={name: tuple(values) for name, values in points.items()},
        began_ms=began,
        ended_ms=ended,
        damaged=damaged,
    )
