"""What a study has done: an entry a line of its journal. Standard library only."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from orchestrator.series.journal import Journal

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


def open_journal(path: Path) -> Journal[Entry]:
    """The journal of a study, for writing.

    Raises:
        StillhouseError: another process writes it, or it is damaged before its last line.
    """
    return Journal(path, Entry, "study")
