"""What a search that goes on has behind it, in the order of its journal. Pure.

Searcher and scheduler hear of it before anything new begins, so they know what they knew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .board import goal_values
from .journal import Entry, State
from .space import Settings, Values
from .spec import STEP, GoalSpec, goal_name

Numbers = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial that begins, or has begun."""

    number: int
    values: Values  # empty for a fixed one
    settings: Settings


@dataclass(frozen=True, slots=True)
class Ended:
    """A trial that is over, and the numbers that the searcher learns from; None: there are none."""

    number: int
    result: Numbers | None


def past_of(
    entries: Sequence[Entry],
    states: Sequence[State],
    goals: Sequence[GoalSpec],
    heard: Mapping[int, Numbers],
) -> list[Tried | Ended]:
    """What a searcher has heard. A trial that failed is tried again, and so has not ended.

    Args:
        entries: of the journal.
        states: of the trials that count.
        goals: of the search.
        heard: of trials that were stopped, the numbers at which they were, where that is known.
    """
    by_number = {state.number: state for state in states}
    ends = {entry.trial: index for index, entry in enumerate(entries) if entry.kind == "ended"}
    found: list[Tried | Ended] = []
    for index, entry in enumerate(entries):
        state = by_number.get(entry.trial)
        if state is None:
            continue
        if entry.kind == "trial":
            found.append(Tried(state.number, state.values, state.settings))
        elif ends.get(state.number) == index and state.over:
            numbers = heard.get(state.number) or last_numbers(state, goals)
            found.append(Ended(state.number, numbers))
    return found


def last_numbers(state: State, goals: Sequence[GoalSpec]) -> dict[str, float] | None:
    """The last that is heard of a trial that is over; None: it measured nothing."""
    if state.status == "stopped":
        return {STEP: state.step, goal_name(0): state.results[-1][1]} if state.results else None
    values = goal_values(state, goals) if state.status == "done" else [None]
    numbers = {goal_name(i): value for i, value in enumerate(values) if value is not None}
    steps = max((int(each.get("steps", 0)) for each in state.summaries.values()), default=0)
    return {STEP: steps or state.step, **numbers} if numbers else None
