"""Dynamic data selection: the role is asked about what the student is unsure of."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from ..specs.samples import SelectSpec
from ..specs.terms import ForwardKLSpec, LogitsDistanceSpec, TermSpec
from .base import Recipe, Temperature, Weight, label_terms


class DynamicSelection(Recipe):
    """The role answers for a part of each batch only, which is what saves teacher passes."""

    title = "Dynamic data selection"
    source = "Li et al. arXiv:2109.11295, section 4"
    equation = "L = c CE(all) + D(the share r with the largest doubt)"
    kind: Literal["dynamic_selection"]
    role: str = "teacher"
    """The served role to learn from."""
    measure: Literal[
        "student_entropy", "student_confidence", "student_margin", "student_loss", "random"
    ] = "student_entropy"
    """What doubt is: a large entropy or loss, a small confidence or margin. `random`: a control."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """r, of a group's samples, rounded up."""
    group: PositiveInt = 4
    """Rows whose samples are ranked together; divides training.micro_batch."""
    distance: Literal["logits", "forward_kl"] = "logits"
    """D: mean squared difference of logits, or T^2 KL."""
    labels: Weight = 1.0
    """Weight c of cross entropy against the data's labels."""
    temperature: Temperature = 5.0
    """Of forward_kl."""

    def terms(self) -> list[TermSpec]:
        learned = (
            LogitsDistanceSpec(kind="logits_distance", role=self.role, over="mean")
            if self.distance == "logits"
            else ForwardKLSpec(kind="forward_kl", role=self.role, temperature=self.temperature)
        )
        return [*label_terms(self.labels), learned]

    def select(self) -> SelectSpec:
        return SelectSpec(measure=self.measure, share=self.share, group=self.group)
