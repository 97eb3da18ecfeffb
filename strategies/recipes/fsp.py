"""FSP: how features change from layer to layer."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from ..specs.features import FlowPair, FlowSpec
from ..specs.terms import TermSpec
from .base import Weight
from .inside import InsideRecipe


class Fsp(InsideRecipe):
    """The flow from one layer of the student to the next is the role's: first stage of two."""

    title = "Flow of the solution procedure (FSP)"
    source = "Yim, Joo, Bae, Kim. CVPR 2017, equations 1 and 2"
    equation = "L = w sum over flows of |G_S - G_T|^2 + c CE, G = mean over positions of F1 F2^T"
    kind: Literal["fsp"]
    layers: Annotated[dict[str, str], Field(min_length=2)] = {
        "model.layers.0": "model.layers.0",
        "model.layers.1": "model.layers.1",
    }
    """Layers of the student and of the role, in order: a flow leads from each to the next."""
    weight: Weight = 1.0
    """Weight w."""
    labels: Weight = 0.0
    """Weight c of cross entropy against the data's labels; in the paper the second stage."""

    def inside_terms(self) -> list[TermSpec]:
        flows = [
            FlowPair(student=(one[0], two[0]), role=(one[1], two[1]))
            for one, two in pairwise(self.layers.items())
        ]
        return [FlowSpec(kind="fsp", role=self.role, weight=self.weight, flows=flows)]
