"""Where a trial's student comes from, leg by leg, and what that comes to as schedules. Pure.

Promises: a schedule has at every step the value that the leg of that step was trained with, so the
job with these schedules, run from its beginning, is the lineage run again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from strategies.replay import of_segments

from .journal import Leg, State


@dataclass(frozen=True, slots=True)
class Step:
    """One leg of a lineage."""

    trial: int
    index: int  # of the leg in that trial
    leg: Leg


def lineage(state_of: Callable[[int], State], trial: int, index: int | None = None) -> list[Step]:
    """The legs that led to the end of a trial's leg, the first one first.

    Args:
        state_of: states by number.
        trial: whose leg it is.
        index: of the leg; None: the latest.
    """
    legs = state_of(trial).legs
    index = len(legs) - 1 if index is None else index
    found: list[Step] = []
    while index >= 0:
        leg = state_of(trial).legs[index]
        found.append(Step(trial, index, leg))
        trial, index = trial if leg.parent is None else leg.parent, index - 1
    return found[::-1]


def schedules(steps: list[Step]) -> dict[str, Any]:
    """Dotted path -> plain schedule with the numbers of each leg from its beginning on."""
    paths = dict.fromkeys(path for step in steps for path in step.leg.numbers)
    return {
        path: of_segments([(step.leg.begin, step.leg.numbers[path]) for step in steps]).model_dump(
            mode="json"
        )
        for path in paths
    }
