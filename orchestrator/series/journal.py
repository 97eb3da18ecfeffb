"""What many jobs have done, on disk: one JSON object a line, on the disk before `append` returns.

A torn last line was never told to anybody and is cut off. One process writes a journal at a time,
by a file lock. Standard library and our errors only.
"""

import fcntl
import json
import os
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from orchestrator.errors import StillhouseError

E = TypeVar("E")
"""A frozen dataclass of plain values."""


class Journal(Generic[E]):
    """The writing end; reads what is there first.

    Args:
        path: of the file.
        entry: what a line holds.
        what: whose journal it is, for messages.

    Raises:
        StillhouseError: another process writes it, or it is damaged before its last line.
    """

    def __init__(self, path: Path, entry: type[E], what: str) -> None:
        self._path, self._entry = path, entry
        self._names = [each.name for each in fields(entry)]  # type: ignore[arg-type]
        self._file = open(path, "a+b")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise StillhouseError(
                f"{path.parent}: this {what} runs already, in another process; wait for it, or "
                "end it"
            ) from error
        try:
            self.entries = self._read()
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> list[E]:
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            torn = lines.pop()
            self._file.truncate(self._file.tell() - len(torn))
        entries: list[E] = []
        for number, line in enumerate(lines, 1):
            try:
                entries.append(self._entry(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise StillhouseError(
                    f"{self._path}, line {number}: damaged ({error}); remove that line, and its "
                    "job runs again"
                ) from error
        return entries

    def append(self, entry: E) -> None:
        """Write one entry and wait until the disk has it."""
        facts: dict[str, Any] = {name: getattr(entry, name) for name in self._names}
        self._file.write(json.dumps(facts, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.entries.append(entry)

    def close(self) -> None:
        """Let others write; doing it twice is fine."""
        self._file.close()

    def __enter__(self) -> "Journal[E]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
