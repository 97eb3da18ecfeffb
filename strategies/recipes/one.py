"""ONE: branches of one student learn from what a gate makes of all of them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..specs.term import PEER
from ..specs.terms import CrossEntropySpec, ForwardKLSpec, TermSpec
from .base import Recipe, Temperature, Weight


class One(Recipe):
    """Branches on a shared trunk learn the labels and a gated ensemble of themselves."""

    title = "On-the-fly native ensemble (ONE)"
    source = "Lan, Zhu, Gong. arXiv:1806.04606, section 3"
    equation = "L = sum over k of c CE(y, q_k) + c CE(y, q_e) + w sum over k of T^2 KL(q_e || q_k)"
    of_classifiers = True
    kind: Literal["one"]
    branches: Annotated[list[str], Field(min_length=2)] = ["branch_0", "branch_1", "branch_2"]
    """The student's branches: names among student.outputs."""
    ensemble: str = "ensemble"
    """The output that the gate makes of all branches; it learns the labels too."""
    labels: Weight = 1.0
    """Weight c of each output's cross entropy against the data's labels."""
    weight: Weight = 1.0
    """Weight w of what each branch learns from the ensemble, which is held fixed."""
    temperature: Temperature = 3.0
    """Of that KL."""

    @model_validator(mode="after")
    def _outputs_differ(self) -> "One":
        names = [*self.branches, self.ensemble]
        if len(set(names)) != len(names):
            raise ValueError(f"branches and ensemble are {names}; name each once")
        return self

    def terms(self) -> list[TermSpec]:
        labels = [
            CrossEntropySpec(
                kind="cross_entropy", name=f"labels_{own}", member=own, weight=self.labels
            )
            for own in (*self.branches, self.ensemble)
        ]
        taught = [
            ForwardKLSpec(
                kind="forward_kl",
                name=f"{own}_from_{self.ensemble}",
                member=own,
                role=f"{PEER}{self.ensemble}",
                weight=self.weight,
                temperature=self.temperature,
            )
            for own in self.branches
        ]
        return [*labels, *taught]
