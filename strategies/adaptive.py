"""Schedules driven by what training measures: their state, and what moves it.

Pure: a state goes in and the next comes out, plain numbers that JSON keeps exactly. Imports no
torch. Measured means are sums over ranks, so states are equal on every rank.
"""

import math
from collections.abc import Mapping

from .progress import Progress, between, share_of_way
from .specs import AdaptiveSchedule, FollowSchedule, TaidSchedule

TINY = 1e-15
"""Keeps a relative change finite where the loss before was 0."""
LARGEST_CHANGE = 100.0
"""Of a loss, relative to the one before: so that a loss of about 0, as where the target is still
the student itself, is forgotten again."""

Memory = dict[str, float]
"""What one schedule remembers."""


def quantity_of(number: AdaptiveSchedule, term: str) -> str:
    """The term whose mean moves a number of `term`."""
    return number.quantity if isinstance(number, FollowSchedule) else term


def first_memory(number: AdaptiveSchedule) -> Memory:
    """Before any step."""
    return {"t": number.start, "momentum": 0.0} if isinstance(number, TaidSchedule) else {}


def adaptive_value(number: AdaptiveSchedule, memory: Mapping[str, float], at: Progress) -> float:
    """The value for a step, from what was measured in the steps before."""
    match number:
        case TaidSchedule():
            end = at.total_steps if number.until is None else number.until
            line = between(number.start, number.end, share_of_way(at.step, 0, end))
            return min(number.end, max(line, memory["t"]))
        case FollowSchedule():
            if "mean" not in memory:
                return number.low if number.first is None else number.first
            low, high = number.between
            share = min(max((memory["mean"] - low) / (high - low), 0.0), 1.0)
            return between(number.low, number.high, share**number.power)


def observed(
    number: AdaptiveSchedule, memory: Mapping[str, float], measured: float, at: Progress
) -> Memory:
    """What is remembered after a step in which the quantity was `measured`.

    TAID, with t the value in this step, J its loss and J' that of the step before:
    delta = (J' - J) / (J' + eps), m = beta m + (1 - beta) delta, t = t + alpha sigmoid(m) (1 - t),
    where the first step only sets J'. Source: Shing et al., arXiv:2501.16937, algorithm 1, as the
    authors' code computes it (`TAID.update_t`), but for the line that t may not fall below, which
    is taken at the step that uses t, for |J'|, should a loss be below 0, and for a delta that is
    held within `LARGEST_CHANGE`.
    """
    match number:
        case TaidSchedule():
            now = adaptive_value(number, memory, at)
            if "loss" not in memory:
                return {**memory, "t": now, "loss": measured}
            change = (memory["loss"] - measured) / (abs(memory["loss"]) + TINY)
            change = min(max(change, -LARGEST_CHANGE), LARGEST_CHANGE)
            momentum = number.beta * memory["momentum"] + (1 - number.beta) * change
            step = number.alpha * _sigmoid(momentum) * (1 - now)
            return {"t": now + step, "momentum": momentum, "loss": measured}
        case FollowSchedule():
            past = memory.get("mean", measured)
            return {"mean": past + (1 - number.memory) * (measured - past)}


def _sigmoid(x: float) -> float:
    """Without overflow at either end."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
