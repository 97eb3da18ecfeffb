"""Attention transfer: where features are large, not what they are."""

from typing import Literal

from ..specs.features import AttentionTransferSpec
from ..specs.terms import TermSpec
from .base import Weight
from .inside import EVERY_LAYER, InsideRecipe, Layers, pairs


class AttentionTransfer(InsideRecipe):
    """Features are large at the positions where the role's are, whatever the widths."""

    title = "Attention transfer (AT)"
    source = "Zagoruyko and Komodakis. arXiv:1612.03928, equation 2, squared"
    equation = "L = c CE + w sum over layers of |A_S / |A_S| - A_T / |A_T||^2, A = mean of F^2"
    kind: Literal["attention_transfer"]
    layers: Layers = EVERY_LAYER
    """Layers of the student, and the layer of the role that each learns from."""
    weight: Weight = 1.0
    """Weight w of a sum over positions; the authors' code has their mean, and 1000."""

    def inside_terms(self) -> list[TermSpec]:
        return [
            AttentionTransferSpec(
                kind="attention_transfer",
                role=self.role,
                weight=self.weight,
                layers=pairs(self.layers),
            )
        ]
