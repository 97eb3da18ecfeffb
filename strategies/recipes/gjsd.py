"""Generalised Jensen-Shannon divergence."""

from typing import Annotated, Literal

from ..specs.schedules import Number, within
from ..specs.terms import JensenShannonSpec, TermSpec
from .base import RoleRecipe


class GeneralisedJSD(RoleRecipe):
    """Between forward (beta near 0) and reverse KL (near 1), and bounded: at most log 2 at 0.5."""

    title = "Generalised Jensen-Shannon divergence"
    source = "Agarwal et al. (GKD). arXiv:2306.13649, section 2; on the data's own text"
    equation = "L = a CE(y, q) + (1 - a) T^2 [b KL(p||m) + (1 - b) KL(q||m)], m = b p + (1 - b) q"
    kind: Literal["gjsd"]
    beta: Annotated[Number, within(0.0, 1.0, open_low=True, open_high=True)] = 0.5
    """The role's share of the mixture."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        return [JensenShannonSpec(kind="jensen_shannon", beta=self.beta, **self.softened(weight))]
