"""Skewed KL divergences: each side is compared with a mixture, so that gradients stay bounded."""

from typing import Annotated, Literal

from ..specs.schedules import Number, within
from ..specs.terms import SkewedForwardKLSpec, SkewedReverseKLSpec, TermSpec
from .base import RoleRecipe


class SkewedKL(RoleRecipe):
    """A KL that cannot blow up where the two sides hardly meet; early training is calmer."""

    title = "Skewed KL (SKL and SRKL)"
    source = "Ko, Kim, Chen, Yun (DistiLLM). arXiv:2402.03898, section 3.1"
    equation = "forward: KL(p || s p + (1 - s) q); reverse: KL(q || (1 - s) p + s q); T^2 of either"
    kind: Literal["skewed_kl"]
    direction: Literal["forward", "reverse"] = "forward"
    skew: Annotated[Number, within(0.0, 1.0, open_low=True, open_high=True)] = 0.1
    """Share of the first side in the mixture."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        numbers = {"skew": self.skew, **self.softened(weight)}
        if self.direction == "forward":
            return [SkewedForwardKLSpec(kind="skewed_forward_kl", **numbers)]
        return [SkewedReverseKLSpec(kind="skewed_reverse_kl", **numbers)]
