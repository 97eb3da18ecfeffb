"""What a search has done: an entry a line of its journal, folded to a state a trial. Pure but for
the file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from orchestrator.series.journal import Journal

from .space import Settings, Values

Kind = Literal["trial", "run", "result", "ran", "ended"]
Status = Literal["waiting", "running", "done", "stopped", "failed"]
"""`stopped`: by the scheduler, because others were better."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened to a trial."""

    kind: Kind
    trial: int
    at_s: float  # of the search's life, without the time between its sessions
    key: str = ""  # of a trial: digest of its job
    values: Mapping[str, Any] = field(default_factory=dict)  # of a trial: what was drawn
    settings: Mapping[str, Any] = field(default_factory=dict)  # of a trial: what they come to
    place: int = 0  # of a run: which of the seeds
    run_id: str = ""
    step: int = 0  # of a result
    value: float = 0.0  # of a result
    summary: Mapping[str, Any] = field(default_factory=dict)  # of a run that is over
    status: str = ""  # of an end
    error: str | None = None  # of one that failed


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a trial."""

    number: int
    key: str = ""
    values: Values = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)
    status: Status = "waiting"
    results: tuple[tuple[int, float], ...] = ()  # (step, value), steps rising
    runs: Mapping[int, str] = field(default_factory=dict)  # place of the seed -> run id
    summaries: Mapping[int, Mapping[str, Any]] = field(
        default_factory=dict
    )  # of runs that are over
    error: str | None = None

    @property
    def over(self) -> bool:
        """Whether it is not gone on with; one that failed is tried again by a resume."""
        return self.status in ("done", "stopped")

    @property
    def step(self) -> int:
        """Of the latest result."""
        return self.results[-1][0] if self.results else 0

    def after(self, entry: Entry) -> "State":
        """The state once something has happened."""
        match entry.kind:
            case "trial":
                return replace(
                    self,
                    key=entry.key,
                    values=dict(entry.values),
                    settings=dict(entry.settings),
                )
            case "run":
                runs = {**self.runs, entry.place: entry.run_id}
                return replace(self, status="running", runs=runs, error=None)
            case "result":
                fresh = entry.step > self.step
                return (
                    replace(self, results=(*self.results, (entry.step, entry.value)))
                    if fresh
                    else self
                )
            case "ran":
                return replace(self, summaries={**self.summaries, entry.place: entry.summary})
            case "ended":
                status: Any = entry.status
                return replace(self, status=status, error=entry.error)


def states_of(entries: Iterable[Entry]) -> dict[int, State]:
    """Fold entries, in the order they were written, by number of the trial."""
    states: dict[int, State] = {}
    for entry in entries:
        states[entry.trial] = states.get(entry.trial, State(entry.trial)).after(entry)
    return states


def open_journal(path: Path) -> Journal[Entry]:
    """The journal of a search, for writing.

    Raises:
        StillhouseError: another process writes it, or it is damaged before its last line.
    """
    return Journal(path, Entry, "search")
