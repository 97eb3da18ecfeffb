"""Samples moved to where a role has more to say, between epochs. Pydantic only."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from .base import Spec


class MovedSpec(Spec):
    """Base of what adds moved samples to the data, in rounds.

    The first `every` epochs see the data alone. After them, and `rounds` times in all, samples are
    copied and moved by what the student and the role say then; the copies have no label, so that
    only terms that ask a role learn from them, and stay for `every` epochs, beside the data. After
    the last round the data are alone again. Features move as they are; of a text what embeds its
    tokens moves, all of them as one, by x = embedding + offset. Its offset is mapped on the role's
    embeddings by least squares between the two tables, anew each round; one role is asked then.
    """

    role: str = "teacher"
    """Whose output is differentiated; some term must ask it."""
    every: PositiveInt
    """Epochs of a round."""
    rounds: PositiveInt
    """How many times samples are moved."""
    steps: PositiveInt
    """At most, of one sample in one round."""
    samples: PositiveInt | None = None
    """How many are moved in a round, drawn anew each time; absent: all. They are kept in memory
    and in checkpoints."""
    seed: NonNegativeInt = 0
    """Of what is drawn."""


class AscendSpec(MovedSpec):
    """Samples move to where student and role differ most: x + size g / |g|, g = d |S - T|^2 / dx.

    Jafari, Rezagholizadeh, Ghodsi, arXiv:2301.12006. Features and texts.
    """

    kind: Literal["ascend"]
    size: PositiveFloat
    """Length of a step, in the units of the features, or of the student's embeddings."""
    normalised: bool = True
    """False: g itself is multiplied by `size`."""
    output: Literal["logits", "probabilities"] = "logits"
    """What S and T are."""
    temperature: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Of the probabilities."""
    by: Literal["difference", "random"] = "difference"
    """`random` is the control: steps * size in a direction drawn for each sample."""

    @model_validator(mode="after")
    def _temperature_softens(self) -> "AscendSpec":
        if self.output == "logits" and self.temperature != 1.0:
            raise ValueError(
                f"temperature is {self.temperature:g}, and logits have none; remove it, or set "
                "output to probabilities"
            )
        return self


class BoundarySpec(MovedSpec):
    """Samples move towards another class of the role until it is the likeliest one.

    x - rate (d + margin) g / |g|^2, where d is how far the role's likeliest class is ahead of
    another, which is drawn as likely as the role says, and g = dd/dx. A sample stops once it has
    flipped, and after `steps` steps where it is. Heo et al., arXiv:1805.05532, with logits in place
    of probabilities. Features and texts.
    """

    kind: Literal["boundary"]
    rate: Annotated[float, Field(gt=0, le=2)] = 0.3
    """Share of the way to the boundary, if that were straight, of one step."""
    margin: NonNegativeFloat = 0.1
    """By which the other class shall be ahead, in logits."""
