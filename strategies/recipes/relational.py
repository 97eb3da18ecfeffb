"""Relational distillation: distances and angles among samples."""

from typing import Annotated, Literal

from pydantic import Field

from ..specs.features import RelationalSpec
from ..specs.terms import TermSpec
from .base import Weight
from .inside import InsideRecipe, Layers, pairs


class Relational(InsideRecipe):
    """Samples of a group lie to each other as they do in the role, whatever the widths."""

    title = "Relational distillation (RKD)"
    source = "Park, Kim, Lu, Cho. arXiv:1904.05068, equations 6 to 10"
    equation = "L = c CE + d Huber(distances / their mean) + a Huber(cosines of angles)"
    kind: Literal["relational"]
    layers: Layers = {"model.norm": "model.norm"}
    """Layers of the student, and the layer of the role that each learns from."""
    group: Annotated[int, Field(ge=3)] = 4
    """Rows whose samples are compared with each other; divides training.micro_batch."""
    distances: Weight = 25.0
    """Weight d."""
    angles: Weight = 50.0
    """Weight a; the paper's ratio of the two is 1 to 2."""

    def inside_terms(self) -> list[TermSpec]:
        return [
            self._related("distances", "distance", self.distances),
            self._related("angles", "angle", self.angles),
        ]

    def _related(
        self, name: str, relation: Literal["distance", "angle"], weight: Weight
    ) -> RelationalSpec:
        return RelationalSpec(
            kind="relational",
            name=name,
            role=self.role,
            weight=weight,
            layers=pairs(self.layers),
            group=self.group,
            relation=relation,
        )
