"""What a study has done, on disk: one JSON object a line, on the disk before `append` returns.

A torn last line was never told to anybody and is cut off. One process writes a journal at a time,
by a file lock. Standard library and our errors only.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from orchestrator.errors import StillhouseError

Kind = Literal["started", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened to a job."""

    kind: Kind
    key: str  # of the job
    name: str
    run_id: str
    summary: Mapping[str, Any] = field(default_factory=dict)  # of a job that is done
    error: str | None = None  # of one that failed


@dataclass(frozen=True, slots=True)
class Told:
    """What a journal says, by key of the job: the latest counts."""

    done: Mapping[str, Entry]
    failed: Mapping[str, Entry]
    begun: Mapping[str, Entry]  # started, and not heard of since

    @classmethod
    def by(cls, entries: Iterable[Entry]) -> "Told":
        """Fold entries, in the order they were written."""
        latest = {entry.key: entry for entry in entries}

        def of(kind: Kind) -> dict[str, Entry]:
            return {key: entry for key, entry in latest.items() if entry.kind == kind}

        return cls(of("done"), of("failed"), of("started"))


class Journal:
    """The writing end; reads what is there first.

    Raises:
        StillhouseError: another process writes it, or it is damaged before its last line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "a+b")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise StillhouseError(
                f"{path.parent}: this study runs already, in another process; wait for it or end it"
            ) from error
        try:
            self.entries = self._read()
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> list[Entry]:
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            torn = lines.pop()
            self._file.truncate(self._file.tell() - len(torn))
        entries = []
        for number, line in enumerate(lines, 1):
            try:
                entries.append(Entry(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise StillhouseError(
                    f"{self._path}, line {number}: damaged ({error}); remove that line, and its "
                    "job runs again"
                ) from error
        return entries

    def append(self, entry: Entry) -> None:
        """Write one entry and wait until the disk has it."""
        facts = {name: getattr(entry, name) for name in Entry.__dataclass_fields__}
        self._file.write(json.dumps(facts, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.entries.append(entry)

    def close(self) -> None:
        """Let others write; doing it twice is fine."""
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
