"""Numbers of an objective that move while training. Pydantic only.

A schedule knows its extremes, so that a field refuses one that leaves the field's range.
`strategies.schedules` has the formulas.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .adaptive import FollowSchedule, TaidSchedule
from .base import Spec


class ConstantSchedule(Spec):
    """The same number at every step."""

    kind: Literal["constant"] = "constant"
    value: FiniteFloat

    def extremes(self) -> tuple[float, float]:
        return self.value, self.value


class CountingSchedule(Spec):
    """Base of schedules that move with a count."""

    per: Literal["step", "epoch"] = "step"
    """What is counted, from 0. With `epoch` the value stays inside an epoch; for jobs of epochs."""


class RampSchedule(CountingSchedule):
    """Base of ways from `start` to `end`."""

    start: FiniteFloat
    end: FiniteFloat
    begin: NonNegativeInt = 0
    """Count up to which it is `start`."""
    until: PositiveInt | None = None
    """Count from which it is `end`; absent: that of the whole job."""

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> "RampSchedule":
        if self.until is not None and self.until < self.begin:
            raise ValueError(
                f"until is {self.until}, before begin, {self.begin}; set it to {self.begin} or more"
            )
        return self

    def extremes(self) -> tuple[float, float]:
        return min(self.start, self.end), max(self.start, self.end)


class LinearSchedule(RampSchedule):
    """A straight line from `start` to `end`, flat outside."""

    kind: Literal["linear"]


class CosineSchedule(RampSchedule):
    """Half a cosine from `start` to `end`, flat outside; also known as cosine squared.

    The two are one curve: cos^2(pi x / 2) = (1 + cos(pi x)) / 2.
    """

    kind: Literal["cosine", "cosine_squared"]


class PolynomialSchedule(RampSchedule):
    """end + (start - end) (1 - x)^power, x the share of the way; above 1: fast, then slow."""

    kind: Literal["polynomial"]
    power: PositiveFloat = 2.0


class ExponentialSchedule(RampSchedule):
    """start (end / start)^x, x the share of the way: by the same factor at each count."""

    kind: Literal["exponential"]
    start: PositiveFloat
    end: PositiveFloat


class StepSchedule(CountingSchedule):
    """A staircase: `start`, multiplied by `factor` or raised by `add` every so many counts."""

    kind: Literal["step"]
    start: FiniteFloat
    factor: PositiveFloat | None = None
    add: FiniteFloat | None = None
    """May be below 0."""
    every: PositiveInt
    """Counts a stair is long."""
    floor: FiniteFloat | None = None
    """Least value."""
    ceiling: FiniteFloat | None = None
    """Largest value."""

    @model_validator(mode="after")
    def _moves_one_way(self) -> "StepSchedule":
        if (self.factor is None) == (self.add is None):
            found = "neither" if self.factor is None else "both"
            raise ValueError(f"a step has {found} of factor and add; give one of them")
        floor, ceiling = self.floor, self.ceiling
        if floor is not None and ceiling is not None and floor > ceiling:
            raise ValueError(f"floor is {floor:g}, above ceiling, {ceiling:g}; exchange them")
        return self

    def held(self, value: float) -> float:
        """The value between floor and ceiling."""
        value = value if self.floor is None else max(value, self.floor)
        return value if self.ceiling is None else min(value, self.ceiling)

    def extremes(self) -> tuple[float, float]:
        ends = self.held(self.start), self.held(self._limit())
        return min(ends), max(ends)

    def _limit(self) -> float:
        """Where it would come to in a job without end."""
        if self.factor is None:
            return math.copysign(math.inf, self.add) if self.add else self.start
        if self.factor == 1 or self.start == 0:
            return self.start
        return 0.0 if self.factor < 1 else math.copysign(math.inf, self.start)


class CyclicSchedule(CountingSchedule):
    """From `start` to `peak` and back in each period, the same again and again."""

    kind: Literal["cyclic"]
    start: FiniteFloat
    peak: FiniteFloat
    """Value in the middle of the first period."""
    period: Annotated[int, Field(ge=2)]
    """Counts from a start to the next."""
    shape: Literal["triangle", "cosine"] = "triangle"
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What the way from start to peak is multiplied by with each period."""

    def extremes(self) -> tuple[float, float]:
        return min(self.start, self.peak), max(self.start, self.peak)


class PiecewiseSchedule(CountingSchedule):
    """Straight lines between `[count, value]` points, flat before the first and after the last."""

    kind: Literal["piecewise"]
    points: Annotated[list[tuple[NonNegativeInt, FiniteFloat]], Field(min_length=1)]

    @field_validator("points")
    @classmethod
    def _counts_rise(cls, points: list[tuple[int, float]]) -> list[tuple[int, float]]:
        counts = [count for count, _ in points]
        if any(left >= right for left, right in itertools.pairwise(counts)):
            raise ValueError(f"counts must rise strictly, got {counts}; sort them and drop repeats")
        return points

    def extremes(self) -> tuple[float, float]:
        values = [value for _, value in self.points]
        return min(values), max(values)


Schedule = Annotated[
    ConstantSchedule
    | LinearSchedule
    | CosineSchedule
    | PolynomialSchedule
    | ExponentialSchedule
    | StepSchedule
    | CyclicSchedule
    | PiecewiseSchedule
    | TaidSchedule
    | FollowSchedule,
    Field(discriminator="kind"),
]
Number = FiniteFloat | Schedule
"""A number in an objective: plain, or a schedule."""


def extremes(number: "Number") -> tuple[float, float]:
    """Smallest and largest value a number can take."""
    return (number, number) if isinstance(number, int | float) else number.extremes()


@dataclass(frozen=True, slots=True)
class Within(AfterValidator):
    """A validator that can tell its limits."""

    limits: str = ""


def within(
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
    remedy: str = "keep every point of the schedule inside",
) -> Any:
    """A pydantic validator: every value that a `Number` can take lies between two limits."""

    def check(number: Number, info: ValidationInfo) -> Number:
        smallest, largest = extremes(number)
        bad_low = smallest <= low if open_low else smallest < low
        bad_high = largest >= high if open_high else largest > high
        if bad_low or bad_high:
            left, right = "(" if open_low else "[", ")" if open_high else "]"
            raise ValueError(
                f"{info.field_name} takes values from {smallest:g} to {largest:g}, outside "
                f"{left}{low:g}, {high:g}{right}; {remedy}"
            )
        return number

    left, right = "(" if open_low else "[", ")" if open_high else "]"
    least = f"{'>' if open_low else '>='} {low:g}"
    return Within(check, least if high == math.inf else f"in {left}{low:g}, {high:g}{right}")
