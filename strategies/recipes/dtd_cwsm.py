"""Dynamic temperature by how sure the student is."""

from typing import Literal

from ..specs.schedules import Number
from ..specs.terms import TermSpec
from .dynamic_temperature import DynamicTemperature


class DtdCwsm(DynamicTemperature):
    """Sharper targets where the student's first choice has little probability."""

    title = "Dynamic temperature by the student's confidence (DTD-CWSM)"
    source = "Wen, Lai, Qian. arXiv:1911.07471, section on dynamic temperature"
    equation = "T_x = T0 + b (mean w - w_x), w = 1 / max q; L = T_x^2 KL(p || q) at T_x"
    kind: Literal["dtd_cwsm"]

    def role_terms(self, weight: Number) -> list[TermSpec]:
        return self.tempered(weight, "student_doubt", 1.0)
