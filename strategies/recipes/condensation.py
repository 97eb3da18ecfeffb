"""Knowledge condensation: samples with nothing left to teach are dropped between epochs."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from ..specs.samples import CondenseSpec
from ..specs.schedules import Number
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import RoleRecipe, Share, Temperature


class Condensation(RoleRecipe):
    """Fewer samples from stage to stage, for the same number of epochs."""

    title = "Knowledge condensation (KCD)"
    source = "Li et al. arXiv:2207.05409, section 3"
    equation = "L = a CE + (1 - a) T^2 KL over the samples with the largest H(q) * visits^0.03"
    kind: Literal["condensation"]
    label_share: Share = 0.1
    """Share of the loss that is cross entropy against the data's labels."""
    temperature: Temperature = 4.0
    """Softens both sides."""
    every: PositiveInt = 1
    """Epochs between two stages."""
    stages: PositiveInt = 6
    """How many times the set shrinks."""
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Share of the samples that is left after the last stage."""
    by: Literal["student_entropy", "random"] = "student_entropy"
    """`random` is the control."""
    cost_power: NonNegativeFloat = 0.03
    """Of the visits in a sample's score."""
    mix: Annotated[float, Field(gt=0, le=1)] | None = None
    """Least share of the kept sample in a blend with a dropped one (paper: 0.7); features only."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        return [ForwardKLSpec(kind="forward_kl", **self.softened(weight))]

    def between_epochs(self) -> CondenseSpec:
        return CondenseSpec(
            kind="condense",
            every=self.every,
            keep=self.keep,
            stages=self.stages,
            by=self.by,
            cost_power=self.cost_power,
            mix=self.mix,
        )
