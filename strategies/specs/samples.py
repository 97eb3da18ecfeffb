"""Which samples roles are asked about, and which stay in the data from epoch to epoch. Pydantic."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from .base import Spec
from .moving import AscendSpec, BoundarySpec

OFTEN_UNSURE = ("student_entropy", "student_loss", "random")


class SelectSpec(Spec):
    """The student answers first; roles are asked about the share of samples it is least sure of.

    A sample's score is the mean over its positions. Label terms still see every sample.
    Li et al., arXiv:2109.11295, section 4.
    """

    measure: Literal[
        "student_entropy", "student_confidence", "student_margin", "student_loss", "random"
    ] = "student_entropy"
    """`random` is the control: a hash of sample and step."""
    share: Annotated[float, Field(gt=0, le=1)]
    """Of a group's samples, rounded up."""
    group: PositiveInt
    """Rows whose samples are ranked together; divides training.micro_batch."""

    @property
    def largest(self) -> bool:
        """Whether a large value is chosen: sureness and margin choose the small ones."""
        return self.measure in OFTEN_UNSURE


class CondenseSpec(Spec):
    """Between epochs the samples with the least to teach are dropped, for good.

    Every visit adds the student's entropy to a sample's value; its score is value / visits *
    (visits / every)^cost_power. After each `every` epochs the set shrinks by an equal share until
    `keep` of it is left. With `mix`, each dropped sample is blended into one of the lowest kept:
    eps * kept + (1 - eps) * dropped, eps from 1 down to `mix` along the ranking; the label stays
    the kept one's. Li et al., arXiv:2207.05409.
    """

    kind: Literal["condense"]
    every: PositiveInt
    """Epochs."""
    keep: Annotated[float, Field(gt=0, lt=1)]
    """Share of the samples that is left after the last stage."""
    stages: PositiveInt
    """How many times the set shrinks."""
    by: Literal["student_entropy", "random"] = "student_entropy"
    """`random` is the control."""
    cost_power: NonNegativeFloat = 0.03
    mix: Annotated[float, Field(gt=0, le=1)] | None = None
    """Least share of the kept sample in a blend; absent: nothing is blended. Features only."""
    seed: NonNegativeInt = 0


class HookSpec(Spec):
    """`package.module:function` called between epochs with a `strategies.samples.Epoch`.

    It returns a `strategies.samples.Change`: the members, what is blended, what each counts.
    """

    kind: Literal["import"]
    every: PositiveInt = 1
    """Epochs."""
    measure: Literal[
        "student_entropy", "student_confidence", "student_margin", "student_doubt", "student_loss"
    ] = "student_entropy"
    """What is noted of each visit to a sample: the mean over its positions."""
    target: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    arguments: dict[str, Any] = {}


BetweenEpochs = Annotated[
    CondenseSpec | HookSpec | AscendSpec | BoundarySpec, Field(discriminator="kind")
]
