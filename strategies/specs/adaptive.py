"""Schedules driven by what training measures. Pydantic only.

They move with the means of the objective's terms, step by step, and remember what they have seen;
`strategies.adaptive` has the arithmetic.
"""

from typing import Annotated, Literal

from pydantic import (
    Field,
    FiniteFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from .base import Spec

Share = Annotated[float, Field(ge=0, le=1)]


class TaidSchedule(Spec):
    """Rises from `start` to `end`, the faster the better the term's own loss falls.

    The interpolation parameter t of Shing et al., arXiv:2501.16937, section 3.3 and algorithm 1,
    with the update and the defaults of the authors' code. Never below the straight line.
    """

    kind: Literal["taid"]
    start: Share = 0.4
    end: Share = 1.0
    until: PositiveInt | None = None
    """Step by which it is `end` at the latest; absent: the last."""
    alpha: Share = 5e-4
    """Largest step, as a share of what is left to 1."""
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Share of the past in the momentum of the loss's relative change."""

    @model_validator(mode="after")
    def _rises(self) -> "TaidSchedule":
        if self.start > self.end:
            raise ValueError(
                f"start is {self.start:g}, above end, {self.end:g}, and it only rises; exchange "
                "them"
            )
        return self

    def extremes(self) -> tuple[float, float]:
        return self.start, self.end


class FollowSchedule(Spec):
    """Follows a measured quantity: `low` where it is at its lower bound, `high` at its upper.

    low + (high - low) x^power, x the quantity's running mean scaled between its bounds and held
    there.
    """

    kind: Literal["follow"]
    quantity: str
    """Name of the term whose mean it follows; `kind: measure` makes any measure a term."""
    between: tuple[FiniteFloat, FiniteFloat]
    """Bounds of the quantity, the lower first."""
    low: FiniteFloat
    high: FiniteFloat
    """May lie below `low`: then it falls where the quantity rises."""
    first: FiniteFloat | None = None
    """Value until the quantity has been measured once; absent: `low`."""
    power: PositiveFloat = 1.0
    memory: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of the past in the running mean; 0: the last step alone."""

    @field_validator("between")
    @classmethod
    def _bounds_rise(cls, between: tuple[float, float]) -> tuple[float, float]:
        if between[0] >= between[1]:
            raise ValueError(
                f"bounds are {list(between)}, and the first must be below the second; to turn the "
                "direction exchange low and high"
            )
        return between

    def extremes(self) -> tuple[float, float]:
        values = [self.low, self.high, self.low if self.first is None else self.first]
        return min(values), max(values)


AdaptiveSchedule = TaidSchedule | FollowSchedule
"""Schedules with a state."""
