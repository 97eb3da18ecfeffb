"""KD-pt: the role's confidence in the label without its opinion of the others."""

from typing import Literal

from ..specs.schedules import Number
from ..specs.targets import KeepLabelSpec
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import RoleRecipe, Share


class KDpt(RoleRecipe):
    """An ablation: samples are weighed as by the role, relations between entries are gone."""

    title = "KD-pt (confidence in the label alone)"
    source = "Tang et al. arXiv:2002.03532, section on instance-specific knowledge"
    equation = "p'_y = p_y, p'_i = (1 - p_y) / (V - 1); L = a CE + (1 - a) T^2 KL(p' || q)"
    kind: Literal["kd_pt"]
    label_share: Share = 0.1
    """Share of the loss that is cross entropy against the data's labels."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        target = KeepLabelSpec(kind="keep_label")
        return [ForwardKLSpec(kind="forward_kl", **self.softened(weight, target))]
