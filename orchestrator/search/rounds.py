"""What schedulers in rounds share: trials go in legs, between which it is decided. Pure.

Promises: what is decided depends on what the journal holds alone, and not on the order in which
trials came to it; so a search that was killed decides what it would have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .journal import Leg, State


@dataclass(frozen=True, slots=True)
class Begin:
    """Have a trial go its next leg."""

    trial: int
    index: int
    leg: Leg


@dataclass(frozen=True, slots=True)
class Stop:
    """End a trial that is paused."""

    trial: int


Command = Begin | Stop


class Decider(Protocol):
    """A scheduler in rounds."""

    def commands(self, states: Sequence[State], out: frozenset[int], closed: bool) -> list[Command]:
        """What is to be done that is not done yet.

        Args:
            states: of all trials, by number.
            out: trials that have failed for good.
            closed: whether no further trial will come.
        """
        ...

    def rivals(self, states: Sequence[State], trial: int) -> list[State]:
        """The trials that one is compared with, itself among them."""
        ...

    def fits(self, states: Sequence[State]) -> bool:
        """Whether all legs are as this scheduler makes them."""
        ...


def arrived(state: State, index: int) -> bool:
    """Whether a trial has ended a leg: it waits there, or is beyond."""
    beyond = len(state.legs) > index + 1
    here = len(state.legs) == index + 1
    return beyond or (here and state.status in ("paused", "stopped", "done"))


def left_behind(state: State, rivals: Sequence[State]) -> bool:
    """Whether what follows the leg in which a trial failed was decided without it."""
    count = len(state.legs)
    return any(
        len(other.legs) > count or (len(other.legs) == count and other.status == "stopped")
        for other in rivals
        if other.number != state.number
    )


def ranked(states: Sequence[State], step: int, mode: Literal["min", "max"]) -> list[State]:
    """Best first by what was measured at a step; without a measurement last, else by number."""
    sign = 1.0 if mode == "min" else -1.0

    def rank(state: State) -> tuple[bool, float, int]:
        value = state.value_at(step)
        return value is None, 0.0 if value is None else sign * value, state.number

    return sorted(states, key=rank)
