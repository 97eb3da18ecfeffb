"""Sequence-level distillation: the student reads what the role has written."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..specs.terms import CrossEntropySpec, TermSpec
from .base import Recipe


class SequenceKD(Recipe):
    """For a role that is too large to be asked at each step, or that only writes.

    The data have a source `{kind: generated}`: its temperature is how sharp the role is seen.
    """

    title = "Sequence-level distillation (SeqKD)"
    source = "Kim and Rush. arXiv:1606.07947, section 3.2; Cha and Cho. arXiv:2505.13111, section 3"
    equation = "L = CE(y, q), y drawn from p at the temperature of the generated source"
    learns_written_text: ClassVar[bool] = True
    kind: Literal["sequence_kd"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a token's weight that is spread evenly over the vocabulary."""

    def terms(self) -> list[TermSpec]:
        return [CrossEntropySpec(kind="cross_entropy", label_smoothing=self.label_smoothing)]
