"""Backward-pass knowledge: the role is asked where the student differs from it most."""

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from ..specs.moving import AscendSpec
from ..specs.schedules import Number
from ..specs.terms import ForwardKLSpec, TermSpec
from .base import RoleRecipe, Share, Temperature


class BackwardPass(RoleRecipe):
    """Samples are moved to where student and role differ most, and learned from there."""

    title = "Backward-pass knowledge"
    source = "Jafari, Rezagholizadeh, Ghodsi. arXiv:2301.12006; the form of its rounds is inferred"
    equation = (
        "L = a CE(y, q) + (1 - a) T^2 KL(p || q), KL over x and x' = x + s g / |g|, "
        "g = d |z_S - z_T|^2 / dx"
    )
    of_classifiers = True
    kind: Literal["backward_pass"]
    label_share: Share = 0.1
    """Share of the loss that is cross entropy against the labels, which moved samples lack."""
    temperature: Temperature = 4.0
    """Softens both sides."""
    every: PositiveInt = 5
    """Epochs of a round."""
    rounds: PositiveInt = 10
    """How many times samples are moved."""
    steps: PositiveInt = 5
    """Of a sample in one round."""
    size: PositiveFloat = 0.25
    """Length s of a step, in the units of the features, or of the student's embeddings."""
    normalised: bool = True
    """False: the gradient itself is multiplied by `size`."""
    output: Literal["logits", "probabilities"] = "logits"
    """What is compared while samples are moved; probabilities are at temperature T, a number."""
    samples: PositiveInt | None = None
    """How many are moved in a round, drawn anew each time; absent: all."""
    by: Literal["difference", "random"] = "difference"
    """`random` is the control: steps * size in a random direction."""

    @model_validator(mode="after")
    def _one_temperature_moves_samples(self) -> "BackwardPass":
        if self.output == "probabilities" and not isinstance(self.temperature, int | float):
            raise ValueError(
                "temperature is a schedule, and output is probabilities, which need one for all "
                "rounds; give a number, or set output to logits"
            )
        return self

    def role_terms(self, weight: Number) -> list[TermSpec]:
        return [ForwardKLSpec(kind="forward_kl", **self.softened(weight))]

    def between_epochs(self) -> AscendSpec:
        temperature = 1.0
        if self.output == "probabilities" and isinstance(self.temperature, int | float):
            temperature = float(self.temperature)
        return AscendSpec(
            kind="ascend",
            role=self.role,
            every=self.every,
            rounds=self.rounds,
            steps=self.steps,
            size=self.size,
            normalised=self.normalised,
            output=self.output,
            temperature=temperature,
            samples=self.samples,
            by=self.by,
        )
