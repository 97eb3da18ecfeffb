"""What a search has done: an entry a line of its journal, folded to a state a trial. Pure but for
the file."""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from orchestrator.events import Used
from orchestrator.series.journal import Journal

from .space import Settings, Values

Kind = Literal[
    "trial", "leg", "run", "began", "used", "result", "paused", "ran", "ended", "registered"
]
Status = Literal["waiting", "running", "paused", "done", "stopped", "failed"]
"""`stopped`: by the scheduler, because others were better; `paused`: until a round is over."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened to a trial."""

    kind: Kind
    trial: int
    at_s: float  # of the search's life, without the time between its sessions
    key: str = ""  # of a trial: digest of its job
    values: Mapping[str, Any] = field(default_factory=dict)  # of a trial: what was drawn
    settings: Mapping[str, Any] = field(default_factory=dict)  # of a trial: what they come to
    leg: int = 0  # of a leg: its index in the trial
    begin: int = 0  # of a leg: optimiser steps done before it
    until: int = 0  # of a leg: and after it
    numbers: Mapping[str, float] = field(default_factory=dict)  # of a leg
    parent: int | None = None  # of a leg: trial whose leg before it goes on
    place: int = 0  # of a run: which of the seeds
    run_id: str = ""
    step: int = 0  # of a result
    value: float = 0.0  # of a result
    summary: Mapping[str, Any] = field(default_factory=dict)  # of a run that is over, or a pause
    used: Mapping[str, Any] = field(default_factory=dict)  # `Used` of a run, as it began or by now
    status: str = ""  # of an end
    error: str | None = None  # of one that failed


@dataclass(frozen=True, slots=True)
class Leg:
    """A part of a trial's way, at whose end it is compared with others; the last ends the job.

    What was decided of it is `begin` to `parent`; the rest is known once it has run.
    """

    begin: int  # optimiser steps done before it
    until: int  # and after it
    numbers: Mapping[str, float] = field(default_factory=dict)  # dotted path -> value throughout
    parent: int | None = None
    """Trial from the end of whose leg before it begins, in a run of its own; None: the trial's own
    run goes on, or begins."""
    run_id: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)  # of one that ended in a pause


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
    legs: tuple[Leg, ...] = ()  # of a search in rounds
    used: Used = field(
        default_factory=Used
    )  # by all its runs, work that was lost and done again included
    readings: Mapping[str, Used] = field(default_factory=dict)  # run id -> the latest of its `Used`
    registered: str = ""  # run whose student is in the registry
    error: str | None = None

    @property
    def over(self) -> bool:
        """Whether it is not gone on with; one that failed is tried again by a resume."""
        return self.status in ("done", "stopped")

    @property
    def step(self) -> int:
        """Of the latest result."""
        return self.results[-1][0] if self.results else 0

    def value_at(self, step: int) -> float | None:
        """What was measured after so many steps."""
        return dict(self.results).get(step)

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
            case "leg":
                leg = Leg(entry.begin, entry.until, dict(entry.numbers), entry.parent)
                runs = self.runs if entry.parent is None else {}
                legs = (*self.legs[: entry.leg], leg)
                return replace(self, status="waiting", legs=legs, runs=runs, error=None)
            case "run":
                runs = {**self.runs, entry.place: entry.run_id}
                legs = self._with_last(run_id=entry.run_id)
                return replace(self, status="running", runs=runs, legs=legs, error=None)
            case "began":
                return self._read(entry.run_id, Used(**entry.used), first=True)
            case "used":
                return self._read(entry.run_id, Used(**entry.used))
            case "paused":
                found = self._read(entry.run_id, used_of(entry.summary))
                legs = self._with_last(summary=entry.summary)
                return replace(found, status="paused", legs=legs)
            case "result":
                fresh = entry.step > self.step
                return (
                    replace(self, results=(*self.results, (entry.step, entry.value)))
                    if fresh
                    else self
                )
            case "ran":
                found = self._read(entry.run_id, used_of(entry.summary))
                return replace(found, summaries={**self.summaries, entry.place: entry.summary})
            case "registered":
                return replace(self, registered=entry.run_id)
            case "ended":
                status: Any = entry.status
                return replace(self, status=status, error=entry.error)

    def _read(self, run_id: str, now: Used, *, first: bool = False) -> "State":
        """The state once a run says what it has used.

        A run's numbers go back where it goes on from a checkpoint: what grew before stays counted.
        What a run begins with is not its own: it starts from a checkpoint of another.
        """
        before = self.readings.get(run_id, now if first else Used())
        growth = [
            total + max(0, new - old)
            for total, new, old in zip(
                astuple(self.used), astuple(now), astuple(before), strict=True
            )
        ]
        return replace(self, used=Used(*growth), readings={**self.readings, run_id: now})

    def _with_last(self, **facts: Any) -> tuple[Leg, ...]:
        return (*self.legs[:-1], replace(self.legs[-1], **facts)) if self.legs else ()


def used_of(summary: Mapping[str, Any]) -> Used:
    """What a run that is over, or pauses, has used."""
    cost, cache = summary.get("cost", {}), summary.get("cache", {})
    return Used(
        int(summary.get("tokens", 0)),
        float(cost.get("student_device_s", 0.0)),
        float(cost.get("teacher_device_s", 0.0)),
        int(cache.get("misses", 0)),
    )


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
