"""KD-topk: the role's first choices, the others alike."""

from typing import Annotated, Literal

from pydantic import Field

from ..specs.schedules import Number
from ..specs.targets import KeepTopSpec
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import RoleRecipe, Share


class KDtopk(RoleRecipe):
    """An ablation: how much of the role's tail matters."""

    title = "KD-topk (the role's first choices alone)"
    source = "Tang et al. arXiv:2002.03532, section on domain knowledge"
    equation = (
        "p'_i = p_i of the likeliest k, the rest spread evenly; L = a CE + (1 - a) T^2 KL(p' || q)"
    )
    kind: Literal["kd_topk"]
    label_share: Share = 0.1
    """Share of the loss that is cross entropy against the data's labels."""
    kept: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the entries that keep their probability."""

    def role_terms(self, weight: Number) -> list[TermSpec]:
        target = KeepTopSpec(kind="keep_top", share=self.kept)
        return [ForwardKLSpec(kind="forward_kl", **self.softened(weight, target))]
