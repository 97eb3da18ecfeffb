"""Similarity-preserving distillation: samples alike to the role are alike to the student."""

from typing import Literal

from pydantic import PositiveInt

from ..specs.features import SimilarityPreservingSpec
from ..specs.terms import TermSpec
from .base import Weight
from .inside import EVERY_LAYER, InsideRecipe, Layers, pairs


class SimilarityPreserving(InsideRecipe):
    """Samples of a group that are alike in the role's layer are alike in the student's."""

    title = "Similarity-preserving distillation (SP)"
    source = "Tung and Mori. arXiv:1907.09682, equations 1 to 5"
    equation = "L = c CE + w sum over layers of |G_S - G_T|^2 / b^2, G = rows of F F^T at length 1"
    kind: Literal["similarity_preserving"]
    layers: Layers = EVERY_LAYER
    """Layers of the student, and the layer of the role that each learns from."""
    group: PositiveInt = 4
    """Rows whose samples are compared with each other; divides training.micro_batch."""
    weight: Weight = 3000.0
    """Weight w."""

    def inside_terms(self) -> list[TermSpec]:
        return [
            SimilarityPreservingSpec(
                kind="similarity_preserving",
                role=self.role,
                weight=self.weight,
                layers=pairs(self.layers),
                group=self.group,
            )
        ]
