"""The alpha-beta divergence: hardness and confidence weighed apart."""

from typing import Annotated, Literal

from ..specs.schedules import Number, within
from ..specs.terms import AlphaBetaSpec, TermSpec
from .base import RoleRecipe


class AlphaBeta(RoleRecipe):
    """A family with forward KL at (1, 0) and reverse KL at (0, 1), tuned between them."""

    title = "Alpha-beta divergence (ABKD)"
    source = "Wang et al. arXiv:2505.04560, section 4"
    equation = "-T^2 / (a b) sum (p^a q^b - a / (a + b) p^(a + b) - b / (a + b) q^(a + b))"
    kind: Literal["alpha_beta"]
    alpha: Annotated[Number, within(-2.0, 2.0)] = 0.2
    """Larger: less weight on where the two sides differ most."""
    beta: Annotated[Number, within(-2.0, 2.0)] = 0.7
    """Larger: more weight on what the student is sure of."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        powers = {"alpha": self.alpha, "beta": self.beta}
        return [AlphaBetaSpec(kind="alpha_beta", **powers, **self.softened(weight))]
