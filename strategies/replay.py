"""Values of a schedule as a schedule of their own: what adapted once is replayed exactly.

Pure; imports no torch.
"""

import itertools
from collections.abc import Sequence

from .progress import between
from .specs import PiecewiseSchedule

LONGEST_LINE = 64
"""Steps of one slope; bounds the work of looking for them. A flat part may be of any length."""


def as_piecewise(values: Sequence[float]) -> PiecewiseSchedule:
    """The schedule with exactly these values at steps 0, 1, ..., the last one from there on.

    Points lie where the slope changes, and wherever a line through its ends would round otherwise.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a schedule needs at least one value, and none is given")
    ends = [0]
    while ends[-1] < len(values) - 1:
        ends.append(_end_of_line(values, ends[-1]))
    return PiecewiseSchedule(kind="piecewise", points=[(step, values[step]) for step in ends])


def of_segments(segments: Sequence[tuple[int, float]]) -> PiecewiseSchedule:
    """The schedule that keeps each value from its step on, up to the step before the next one's.

    Args:
        segments: (first step, value), steps rising from 0.

    Raises:
        ValueError: the steps do not.
    """
    steps = [step for step, _ in segments]
    if steps[:1] != [0] or any(left >= right for left, right in itertools.pairwise(steps)):
        raise ValueError(f"segments begin at steps {steps}, which do not rise from 0; sort them")
    points = [segments[0]]
    for (_, before), (step, value) in itertools.pairwise(segments):
        if value == before:
            continue
        if points[-1][0] < step - 1:
            points.append((step - 1, before))
        points.append((step, value))
    return PiecewiseSchedule(kind="piecewise", points=points)


def _end_of_line(values: Sequence[float], left: int) -> int:
    """The furthest step that one line from `left` reaches without missing a value."""
    right, last = left + 1, len(values) - 1
    if values[right] == values[left]:
        while right < last and values[right + 1] == values[left]:
            right += 1
        return right
    while right < min(last, left + LONGEST_LINE) and _on_a_line(values, left, right + 1):
        right += 1
    return right


def _on_a_line(values: Sequence[float], left: int, right: int) -> bool:
    return all(
        between(values[left], values[right], (step - left) / (right - left)) == values[step]
        for step in range(left + 1, right)
    )
