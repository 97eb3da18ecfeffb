"""Knowledge adjustment by smoothing: a wrong role gives way to a smoothed label."""

from typing import Annotated, Literal

from pydantic import Field

from ..specs.schedules import Number
from ..specs.targets import SmoothWrongSpec
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import RoleRecipe, Temperature


class KASmooth(RoleRecipe):
    """For roles that err on the training data: where they do, the label takes their place."""

    title = "Knowledge adjustment by label smoothing (KA-LSR)"
    source = "Wen, Lai, Qian. arXiv:1911.07471, section on knowledge adjustment"
    equation = "where argmax p is not y: p' = c at y, (1 - c) / (V - 1) elsewhere; T^2 KL(p' || q)"
    kind: Literal["ka_smooth"]
    temperature: Temperature = 4.0
    """Softens both sides."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """c, of the label; it holds at every temperature."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        target = SmoothWrongSpec(kind="smooth_wrong", confidence=self.confidence)
        return [ForwardKLSpec(kind="forward_kl", **self.softened(weight, target))]
