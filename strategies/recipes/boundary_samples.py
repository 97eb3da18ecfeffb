"""Boundary-supporting samples: the role is asked just past its border to another class."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from ..specs.moving import BoundarySpec
from ..specs.schedules import Number
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import RoleRecipe, Share, Temperature


class BoundarySamples(RoleRecipe):
    """Samples are moved past the role's border to another class, and learned from there."""

    title = "Boundary-supporting samples (BSS)"
    source = "Heo, Lee, Yun, Choi. arXiv:1805.05532, section 3, with logits for probabilities"
    equation = (
        "L = a CE(y, q) + (1 - a) T^2 KL(p || q), KL over x and x' = x - r (d + m) g / |g|^2, "
        "d = z_T(first) - z_T(other), g = dd / dx"
    )
    of_classifiers = True
    kind: Literal["boundary_samples"]
    label_share: Share = 0.1
    """Share of the loss that is cross entropy against the labels, which moved samples lack."""
    temperature: Temperature = 4.0
    """Softens both sides."""
    every: PositiveInt = 5
    """Epochs of a round; in each, other classes are drawn."""
    rounds: PositiveInt = 10
    """How many times samples are moved."""
    steps: PositiveInt = 10
    """At most, of a sample in one round."""
    rate: Annotated[float, Field(gt=0, le=2)] = 0.3
    """Share r of the way to the border, if that were straight, of one step."""
    margin: NonNegativeFloat = 0.1
    """By how much m the other class shall be ahead, in logits."""
    samples: PositiveInt | None = None
    """How many are moved in a round, drawn anew each time; absent: all."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        return [ForwardKLSpec(kind="forward_kl", **self.softened(weight))]

    def between_epochs(self) -> BoundarySpec:
        return BoundarySpec(
            kind="boundary",
            role=self.role,
            every=self.every,
            rounds=self.rounds,
            steps=self.steps,
            rate=self.rate,
            margin=self.margin,
            samples=self.samples,
        )
