"""KD-sim: how alike the entries are to the role, whatever the sample."""

from typing import Literal

from pydantic import PositiveFloat

from ..specs.schedules import Number
from ..specs.targets import SimilaritySpec
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import RoleRecipe, Share


class KDsim(RoleRecipe):
    """An ablation: relations between entries from the role's head, nothing about the sample."""

    title = "KD-sim (relations between entries alone)"
    source = "Tang et al. arXiv:2002.03532, section on domain knowledge"
    equation = "p' = softmax(cos(w_y, w_i)^k / s); L = a CE(y, q) + (1 - a) T^2 KL(p' || q^T)"
    kind: Literal["kd_sim"]
    label_share: Share = 0.1
    """Share of the loss that is cross entropy against the data's labels."""
    power: PositiveFloat = 1.0
    """k of the cosines; their signs stay."""
    sharpness: PositiveFloat = 0.3
    """s, the temperature of the similarities: below it the label alone."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        target = SimilaritySpec(kind="similarity", power=self.power, temperature=self.sharpness)
        return [ForwardKLSpec(kind="forward_kl", **self.softened(weight, target))]
