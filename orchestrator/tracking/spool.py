"""The spool: what a run has recorded, on local disk, before anything is sent anywhere.

One JSON object a line in `<run folder>/tracking/spool.jsonl`, numbered from 0, flushed line by
line: what `append` returned for survives the death of this process (not of the machine, until
`sync`). The cursor file beside it says up to where a tracking server has it all; it is published
by rename and moves only after the server's answer. A torn last line is mended on opening.
One process writes a spool; several may read it. Must not import MLflow.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator.evaluation.history import SPOOL, Kind, Record, parse_record


class Spool:
    """The writing end.

    Raises:
        OSError: the folder cannot be written. The spool is the promise, so this is not swallowed.
    """

    def __init__(self, run_folder: str | Path) -> None:
        self.path = Path(run_folder) / SPOOL
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._next = _mend(self.path)
        self._file = open(self.path, "ab")  # noqa: SIM115

    @property
    def next_number(self) -> int:
        """Number of the record that will be written next."""
        return self._next

    def append(self, kind: Kind, body: Mapping[str, Any]) -> int:
        """Write one record and flush it; returns its number. Callable from any thread."""
        with self._lock:
            record = {
                "n": self._next,
                "time_ms": time.time_ns() // 1_000_000,
                "kind": kind,
                "body": dict(body),
            }
            line = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
            self._file.write(line.encode("utf-8", "replace") + b"\n")
            self._file.flush()
            self._next += 1
            return record["n"]

    def sync(self) -> None:
        """Make everything written so far survive a power cut."""
        with self._lock:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close; idempotent."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _mend(path: Path) -> int:
    """Make the file end in a whole line; returns the number of the next record.

    A last line without newline is kept if it is a whole record, and cut off if it is not: its
    `append` never returned, so nobody was told that it was kept.
    """
    if not path.exists():
        return 0
    following = 0
    whole = 0
    with open(path, "r+b") as spool:
        for line in spool:
            record = parse_record(line)
            if record is not None:
                following = record.number + 1
            if line.endswith(b"\n"):
                whole += len(line)
            elif record is not None:
                spool.seek(0, os.SEEK_END)
                spool.write(b"\n")
                return following
        spool.truncate(whole)
    return following


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far one tracking server has the spool."""

    target: str  # the server's address, without secrets; another target starts at the beginning
    offset: int = 0  # bytes of the spool that are there
    records: int = 0  # the same in lines
    mlflow_run: str | None = None  # the run's id over there; None: not created yet
    refused: int = 0  # records the server will never take; see `refused.jsonl`
    registered: tuple[str, ...] = ()  # registry URIs of the students registered


def cursor_path(run_folder: str | Path, target: str) -> Path:
    """Where the cursor of one target lies; every target has its own."""
    digest = hashlib.sha256(target.encode()).hexdigest()[:12]
    return Path(run_folder) / SPOOL.parent / f"cursor-{digest}.json"


def read_cursor(run_folder: str | Path, target: str) -> Cursor:
    """The published cursor, or one at the beginning when there is none or it is damaged.

    Starting over is safe: sending again changes nothing (see `uploader`).
    """
    try:
        raw = json.loads(cursor_path(run_folder, target).read_bytes())
        cursor = Cursor(**{**raw, "registered": tuple(raw["registered"])})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Cursor(target)
    size = (Path(run_folder) / SPOOL).stat().st_size
    return cursor if cursor.target == target and cursor.offset <= size else Cursor(target)


def publish_cursor(run_folder: str | Path, cursor: Cursor) -> None:
    """Replace the cursor file as one act."""
    path = cursor_path(run_folder, cursor.target)
    draft = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    draft.write_text(json.dumps(asdict(cursor)), encoding="utf-8")
    os.replace(draft, path)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a page: its record (None: damaged on disk) and where the next line starts."""

    record: Record | None
    end: int


def read_page(run_folder: str | Path, offset: int, limit_bytes: int = 1 << 20) -> list[Entry]:
    """Complete lines from `offset` on, about `limit_bytes` of them; a torn tail is left out."""
    entries = []
    with open(Path(run_folder) / SPOOL, "rb") as spool:
        spool.seek(offset)
        end = offset
        while end - offset < limit_bytes:
            line = spool.readline()
            if not line.endswith(b"\n"):
                break
            end += len(line)
            entries.append(Entry(parse_record(line), end))
    return entries


def has_more(run_folder: str | Path, offset: int) -> bool:
    """Whether a complete line follows `offset`."""
    return bool(read_page(run_folder, offset, limit_bytes=1))


def count_lines(run_folder: str | Path, offset: int) -> int:
    """Complete lines from `offset` on."""
    with open(Path(run_folder) / SPOOL, "rb") as spool:
        spool.seek(offset)
        return sum(line.endswith(b"\n") for line in spool)
