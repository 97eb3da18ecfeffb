"""Adaptive KL: forward or reverse, by where the two sides differ."""

from typing import Annotated, Literal

from pydantic import Field

from ..specs.schedules import Number
from ..specs.terms import AdaptiveKLSpec, TermSpec
from .base import RoleRecipe


class AdaptiveKL(RoleRecipe):
    """Forward KL works on the role's head, reverse KL on its tail, each by its share of the gap."""

    title = "Adaptive KL (AKL)"
    source = "Wu et al. arXiv:2404.02657, section 4"
    equation = "L = a CE(y, q) + (1 - a) T^2 [h KL(p || q) + (1 - h) KL(q || p)]"
    kind: Literal["adaptive_kl"]
    head_mass: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Probability that the role's likeliest entries, its head, hold together."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        fields = self.softened(weight)
        return [AdaptiveKLSpec(kind="adaptive_kl", head_mass=self.head_mass, **fields)]
