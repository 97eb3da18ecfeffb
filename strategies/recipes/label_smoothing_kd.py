"""Label smoothing: distillation from a role that knows nothing, and so need not be asked."""

from typing import Annotated, Literal

from pydantic import Field

from ..specs.terms import CrossEntropySpec, TermSpec
from .base import Recipe


class LabelSmoothingKD(Recipe):
    """The control without a teacher: what of a gain is no more than smoothing."""

    title = "Label smoothing (distillation from a uniform role)"
    source = "Tang et al. arXiv:2002.03532, section on universal knowledge"
    equation = (
        "L = CE((1 - e) onehot(y) + e / V, q): (1 - e) CE + e KL(uniform || q) but for e log V"
    )
    kind: Literal["label_smoothing_kd"]
    smoothing: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """e: what the label gives away to all entries."""

    def terms(self) -> list[TermSpec]:
        return [CrossEntropySpec(kind="cross_entropy", label_smoothing=self.smoothing)]
