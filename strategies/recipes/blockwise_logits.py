"""Block-wise logits: each part of the student is judged by what the role makes of it."""

from typing import Literal

from ..specs.resident import BlockwiseLogitsSpec
from ..specs.terms import TermSpec
from .base import Weight
from .inside import EVERY_LAYER, InsideRecipe, Layers, pairs


class BlockwiseLogits(InsideRecipe):
    """A layer of the student goes on through the rest of the role, to the role's own logits."""

    title = "Block-wise logit distillation"
    source = "Yang et al. arXiv:2504.13825, section on feature alignment (a survey)"
    equation = "L = w sum over layers of T^2 KL(p || head(rest(r(F_S)))) + c CE + k T^2 KL"
    kind: Literal["blockwise_logits"]
    layers: Layers = EVERY_LAYER
    """Layers of the student, and the layer of the role whose place each takes."""
    projector: Literal["none", "linear", "orthogonal"] = "linear"
    """What r is: none for layers of one width."""
    weight: Weight = 1.0
    """Weight w of all hybrids together."""

    def inside_terms(self) -> list[TermSpec]:
        return [
            BlockwiseLogitsSpec(
                kind="blockwise_logits",
                role=self.role,
                weight=self.weight,
                layers=pairs(self.layers),
                projector=self.projector,
                temperature=self.temperature,
            )
        ]
