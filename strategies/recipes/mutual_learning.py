"""Deep mutual learning: students that are each other's teachers."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..specs.term import PEER
from ..specs.terms import CrossEntropySpec, ForwardKLSpec, TermSpec
from .base import Recipe, Temperature, Weight
from .numbers import product


class MutualLearning(Recipe):
    """Several students learn the labels and each other's answers, without a teacher."""

    title = "Deep mutual learning (DML)"
    source = "Zhang, Xiang, Hospedales, Lu. arXiv:1706.00384, section 2"
    equation = (
        "L = sum over members k of c CE(y, q_k) + w / (K - 1) sum over j of T^2 KL(q_j || q_k)"
    )
    of_classifiers = True
    kind: Literal["mutual_learning"]
    members: Annotated[list[str], Field(min_length=2)] = ["a", "b"]
    """The student's members: names of student.members."""
    labels: Weight = 1.0
    """Weight c of each member's cross entropy against the data's labels."""
    weight: Weight = 1.0
    """Weight w of what each member learns from the mean of its peers."""
    temperature: Temperature = 1.0
    """Of that KL; 1 in the paper."""

    @model_validator(mode="after")
    def _members_differ(self) -> "MutualLearning":
        if len(set(self.members)) != len(self.members):
            raise ValueError(f"members are {self.members}; name each once")
        return self

    def terms(self) -> list[TermSpec]:
        share = product(1 / (len(self.members) - 1), self.weight)
        labels = [
            CrossEntropySpec(
                kind="cross_entropy", name=f"labels_{own}", member=own, weight=self.labels
            )
            for own in self.members
        ]
        mutual = [
            ForwardKLSpec(
                kind="forward_kl",
                name=f"{own}_from_{peer}",
                member=own,
                role=f"{PEER}{peer}",
                weight=share,
                temperature=self.temperature,
            )
            for own in self.members
            for peer in self.members
            if peer != own
        ]
        return [*labels, *mutual]
