"""What may be measured at a position, and what a measure may decide. Pydantic only."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from .base import Spec

Measure = Literal[
    "student_entropy",
    "student_confidence",
    "student_margin",
    "student_doubt",
    "student_loss",
    "role_entropy",
    "role_confidence",
    "role_right",
    "dissimilarity",
    "gap",
]
"""Numbers of one position; `strategies.measures` has their formulas."""

OF_LABELS: frozenset[Measure] = frozenset({"student_loss", "role_right"})
"""Measures that read the data's labels."""
OF_ROLES: frozenset[Measure] = frozenset(
    {"role_entropy", "role_confidence", "role_right", "dissimilarity", "gap"}
)
"""Measures that look at a role."""
OF_BOTH_SIDES: frozenset[Measure] = frozenset({"role_right", "dissimilarity", "gap"})
"""Measures for which an entry of the role must mean what it means to the student."""
UNBOUNDED: frozenset[Measure] = frozenset({"student_doubt", "student_loss", "dissimilarity", "gap"})
"""Measures that may be above 1."""


class WeighBySpec(Spec):
    """A factor in the sum of a term, position by position, without a gradient of its own.

    With `top`, positions of a group are ranked by the measure: 1 for that share of them, 0 for the
    rest. Li et al., arXiv:2109.11295, uses `student_entropy` in all these ways.
    """

    measure: Measure
    power: PositiveFloat = 1.0
    complement: bool = False
    """1 - the factor, in place of it."""
    mean: bool = False
    """The mean over the group, the same for all its positions."""
    top: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of a group's positions with the largest values that count."""
    group: PositiveInt | None = None
    """Rows that are compared with each other; needed by `mean` and `top`."""

    @model_validator(mode="after")
    def _groups_are_said(self) -> "WeighBySpec":
        together = self.mean or self.top is not None
        if together and self.group is None:
            raise ValueError(
                "mean and top compare positions of several rows, and group is missing; give group, "
                "a number of rows that divides training.micro_batch"
            )
        if not together and self.group is not None:
            raise ValueError(
                f"group is {self.group}, and nothing compares rows; remove it, or give mean or top"
            )
        if self.mean and self.top is not None:
            raise ValueError("mean and top are two ways to weigh a group; remove one")
        return self

    @model_validator(mode="after")
    def _factors_are_not_negative(self) -> "WeighBySpec":
        if self.complement and self.top is None and self.measure in UNBOUNDED:
            raise ValueError(
                f"complement is 1 - {self.measure}, which would be negative where that is above 1; "
                "use a measure within [0, 1], or top"
            )
        return self


class TemperatureBySpec(Spec):
    """T + beta * (mean of w over the group - w), w the measure to a power: hard positions sharper.

    `dissimilarity` gives FLSW and `student_doubt` CWSM of Wen et al., arXiv:1911.07471.
    """

    measure: Measure
    beta: PositiveFloat
    power: PositiveFloat = 1.0
    floor: PositiveFloat = 1.0
    """Least temperature."""
    group: PositiveInt
    """Rows whose mean counts; divides training.micro_batch."""
