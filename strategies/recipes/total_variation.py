"""Total variation distance."""

from typing import Literal

from ..specs.schedules import Number
from ..specs.terms import TermSpec, TotalVariationSpec
from .base import RoleRecipe


class TotalVariation(RoleRecipe):
    """A symmetric distance in which single bad entries count no more than they weigh."""

    title = "Total variation distance"
    source = "Wen, Li, Du, Mou (f-distill). arXiv:2307.15190, section 3"
    equation = "L = a CE(y, q) + (1 - a) T sum |p^T - q^T| / 2"
    kind: Literal["total_variation"]

    def role_terms(self, weight: Number) -> list[TermSpec]:
        return [TotalVariationSpec(kind="total_variation", **self.softened(weight))]
