"""FitNets: a guided layer learns a hint, through a map that is trained beside it."""

from typing import Literal

from ..specs.features import HiddenStatesSpec
from ..specs.terms import TermSpec
from .base import Weight
from .inside import EVERY_LAYER, InsideRecipe, Layers, pairs


class FitNet(InsideRecipe):
    """Layers of the student become those of the role, up to a learned linear map."""

    title = "FitNets (hints)"
    source = "Romero et al. arXiv:1412.6550, equation 3"
    equation = "L = w sum over layers of mean (r(F_S) - F_T)^2 + c CE + k T^2 KL, r learned"
    kind: Literal["fitnet"]
    layers: Layers = EVERY_LAYER
    """Layers of the student, and the layer of the role that each learns from."""
    projector: Literal["none", "linear", "orthogonal"] = "linear"
    """What r is."""
    weight: Weight = 1.0
    """Weight w of the hints."""
    labels: Weight = 0.0
    """Weight c of cross entropy against the data's labels; in the paper a second stage."""

    def inside_terms(self) -> list[TermSpec]:
        return [
            HiddenStatesSpec(
                kind="hidden_states",
                role=self.role,
                weight=self.weight,
                layers=pairs(self.layers),
                projector=self.projector,
            )
        ]
