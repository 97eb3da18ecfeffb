"""Dynamic temperature by how unlike student and role are."""

from typing import Literal

from pydantic import PositiveFloat

from ..specs.schedules import Number
from ..specs.terms import TermSpec
from .dynamic_temperature import DynamicTemperature


class DtdFlsw(DynamicTemperature):
    """Sharper targets where the student's logits point elsewhere than the role's."""

    title = "Dynamic temperature, focal-loss style (DTD-FLSW)"
    source = "Wen, Lai, Qian. arXiv:1911.07471, section on dynamic temperature"
    equation = "T_x = T0 + b (mean w - w_x), w = (1 - cos(z_q, z_p))^g; L = T_x^2 KL(p || q) at T_x"
    kind: Literal["dtd_flsw"]
    power: PositiveFloat = 1.0
    """g."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        return self.tempered(weight, "dissimilarity", self.power)
