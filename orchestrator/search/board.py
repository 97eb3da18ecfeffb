"""What is known of all trials: on the disk before anybody else hears of it. Any thread may ask."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from orchestrator.evaluation.paths import number_at
from orchestrator.events import Used
from orchestrator.series.journal import Journal

from .journal import Entry, Kind, State, states_of
from .plan import SUMMARY
from .spec import BudgetSpec, GoalSpec


@dataclass(frozen=True, slots=True)
class Spent:
    """What trials have used, whatever became of them."""

    tokens: float
    device_s: float  # of students, and of roles for them
    hours: float


class Board:
    """The states of a search's trials.

    Args:
        journal: open.
        numbers: of the trials in it that count; others are of an earlier version of the file.
    """

    def __init__(self, journal: Journal[Entry], numbers: Sequence[int] | None = None) -> None:
        self._journal = journal
        self._lock = threading.RLock()
        known = states_of(journal.entries)
        wanted = known if numbers is None else numbers
        self._states = {number: known[number] for number in wanted}
        self._heard: dict[int, tuple[str, Used]] = {}  # trial -> (run, what it uses), not written
        self._life_s = max((entry.at_s for entry in journal.entries), default=0.0)
        self._began = time.monotonic()

    @property
    def states(self) -> list[State]:
        """Of all trials, by number."""
        with self._lock:
            return [self._states[number] for number in sorted(self._states)]

    def state(self, number: int) -> State:
        """Of one trial."""
        with self._lock:
            return self._states[number]

    @property
    def history(self) -> list[Entry]:
        """All that happened to these trials, in order."""
        with self._lock:
            return [entry for entry in self._journal.entries if entry.trial in self._states]

    def note(self, kind: Kind, number: int, **facts: Any) -> State:
        """Write down what happened; the trial's new state."""
        with self._lock:
            entry = Entry(kind, number, round(self.life_s, 3), **facts)
            self._journal.append(entry)
            state = self._states.get(number, State(number)).after(entry)
            self._states[number] = state
            return state

    def began(self, number: int, run_id: str, used: Used) -> None:
        """Write down that a run of a trial begins, or goes on, and what it counts from."""
        with self._lock:
            self.settle(number)
            self.note("began", number, run_id=run_id, used=asdict(used))

    def uses(self, number: int, run_id: str, used: Used) -> None:
        """What a run has used by now, which is told too often to be written down each time."""
        with self._lock:
            entry = Entry("used", number, 0.0, run_id=run_id, used=asdict(used))
            self._states[number] = self._states[number].after(entry)
            self._heard[number] = (run_id, used)

    def settle(self, number: int) -> None:
        """Write down what was heard last of a trial's use."""
        with self._lock:
            if (heard := self._heard.pop(number, None)) is not None:
                self.note("used", number, run_id=heard[0], used=asdict(heard[1]))

    @property
    def ends(self) -> int:
        """How often a trial has ended; one that failed may have ended before."""
        with self._lock:
            return sum(entry.kind == "ended" for entry in self._journal.entries)

    @property
    def life_s(self) -> float:
        """Seconds that the search has run, over all its sessions."""
        return self._life_s + time.monotonic() - self._began

    def spent(self) -> Spent:
        """What trials have used until now, those that were stopped, failed or run included."""
        used = [state.used for state in self.states]
        return Spent(
            sum(each.tokens for each in used),
            sum(each.student_s + each.teacher_s for each in used),
            self.life_s / 3600,
        )


def used_up(budget: BudgetSpec, spent: Spent) -> str | None:
    """The limit that is reached, as it is written in the file; None if none is."""
    for name, limit in (
        ("tokens", budget.tokens),
        ("device_s", budget.device_s),
        ("hours", budget.hours),
    ):
        if limit is not None and getattr(spent, name) >= limit:
            return f"budget.{name} {limit:g}"
    return None


def goal_values(state: State, goals: Sequence[GoalSpec]) -> list[float | None]:
    """A trial's number for each goal, the mean over its runs; None where one lacks it."""
    return [_mean(list(state.summaries.values()), goal.metric) for goal in goals]


def _mean(summaries: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    values = [value_at(summary, metric) for summary in summaries]
    found = [value for value in values if value is not None]
    return fmean(found) if found and len(found) == len(values) else None


def value_at(summary: Mapping[str, Any], metric: str) -> float | None:
    """A metric's number in a run's summary."""
    if metric.startswith(SUMMARY):
        return number_at(summary, metric.removeprefix(SUMMARY))
    return number_at(summary.get("evaluation"), metric)


def best_of(states: Sequence[State], goals: Sequence[GoalSpec]) -> State | None:
    """The trial that is best by the first goal among those that went to their end."""
    (goal, *_), worst = goals, float("inf")

    def loss(state: State) -> float:
        value = goal_values(state, goals)[0] if state.status == "done" else None
        return worst if value is None else value if goal.mode == "min" else -value

    found = min(states, key=loss, default=None)
    return None if found is None or loss(found) == worst else found


def front_of(states: Sequence[State], goals: Sequence[GoalSpec]) -> list[State]:
    """The trials that no other is as good as by every goal, and better by one."""
    signs = [1.0 if goal.mode == "min" else -1.0 for goal in goals]
    points: dict[int, list[float]] = {}
    for state in states:
        values = goal_values(state, goals) if state.status == "done" else [None]
        if all(value is not None for value in values):
            points[state.number] = [
                s * v for s, v in zip(signs, values, strict=True) if v is not None
            ]

    def beaten(point: list[float]) -> bool:
        return any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True))
            for other in points.values()
        )

    return [each for each in states if each.number in points and not beaten(points[each.number])]
