"""Knowledge adjustment by shift: a wrong role's first choice and the label change places."""

from typing import Literal

from ..specs.schedules import Number
from ..specs.targets import SwapSpec
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import RoleRecipe, Temperature


class KAShift(RoleRecipe):
    """For roles that err on the training data: their doubts stay, their errors do not."""

    title = "Knowledge adjustment by probability shift (KA-PS)"
    source = "Wen, Lai, Qian. arXiv:1911.07471, section on knowledge adjustment"
    equation = "where argmax p is not y: swap(p_y, max p); L = a CE(y, q) + (1 - a) T^2 KL(p' || q)"
    kind: Literal["ka_shift"]
    temperature: Temperature = 4.0
    """Softens both sides."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        target = SwapSpec(kind="swap")
        return [ForwardKLSpec(kind="forward_kl", **self.softened(weight, target))]
