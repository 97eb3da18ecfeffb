"""Terms that have a role's own weights beside the student.

The role is frozen: gradients go through it to the student, never to it. Letters: N loss-bearing
positions, R rows, C channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .contract import Ask, Batch, Outputs, OwnTerm, Resident, Signals, resident_of
from .linear import logits_loss, vocabulary_loss
from .pairs import Pair
from .parts import Part
from .specs import BlockwiseLogitsSpec, Number, RoleGradientSpec


def resident_term(
    name: str, spec: RoleGradientSpec | BlockwiseLogitsSpec, pairs: tuple[Pair, ...]
) -> OwnTerm:
    """The callables of a spec; `pairs` are the layers of one that has a map of them."""
    if isinstance(spec, RoleGradientSpec):
        return RoleGradientTerm(name, spec)
    return BlockwiseTerm(name, spec, pairs)


@dataclass(frozen=True, slots=True)
class RoleGradientTerm:
    """<theta - x, g>, g the role's own gradient of the batch: by x its gradient is -g."""

    name: str
    spec: RoleGradientSpec

    def asks(self) -> tuple[Ask, ...]:
        """The role itself."""
        return (Ask(self.spec.role, "resident"),)

    def numbers(self) -> Mapping[str, Number]:
        """The weight."""
        return self.spec.numbers()

    def count(self, batch: Batch, signals: Signals) -> Tensor:
        """Positions, as of cross entropy: so both gradients are reduced alike."""
        return batch.mask.sum().to(torch.float32)

    def total(
        self, outputs: Outputs, batch: Batch, signals: Signals, numbers: Mapping[str, float]
    ) -> Tensor:
        """Scalar sum over positions, float32 or better.

        Raises:
            ValueError: the student's parameters, the role or its gradient over all data are absent.
        """
        role = resident_of(signals, self.spec.role)
        if not outputs.parameters:
            raise ValueError(f"{self.name} needs the student's parameters, and none are given")
        gradient, positions = role.gradient(batch), int(batch.mask.sum())
        parts = []
        for name, ours in outputs.parameters.items():
            pull, theirs = gradient[name], role.weights[name]
            if self.spec.unbiased:
                pull = pull - positions * self._mean(role)[name]
            dtype = torch.promote_types(pull.dtype, ours.dtype)
            parts.append(((theirs.to(dtype) - ours.to(dtype)) * pull).sum())
        return torch.stack(parts).sum()

    def _mean(self, role: Resident) -> Mapping[str, Tensor]:
        if role.mean_gradient is None:
            raise ValueError(f"{self.name} is unbiased, and nobody has found the whole gradient")
        return role.mean_gradient


@dataclass(frozen=True, slots=True)
class BlockwiseTerm:
    """T^2 KL(role || hybrid), the student's layer inside the role, summed over the pairs.

    Without pairs it knows what it is but cannot be computed.
    """

    name: str
    spec: BlockwiseLogitsSpec
    pairs: tuple[Pair, ...]

    def asks(self) -> tuple[Ask, ...]:
        """The role itself, and where it is cut."""
        layers = tuple(dict.fromkeys(pair.role for pair in self.pairs))
        return (Ask(self.spec.role, "resident", layers),)

    def numbers(self) -> Mapping[str, Number]:
        """Weight and temperature."""
        return self.spec.numbers()

    def count(self, batch: Batch, signals: Signals) -> Tensor:
        """Positions."""
        return batch.mask.sum().to(torch.float32)

    def total(
        self, outputs: Outputs, batch: Batch, signals: Signals, numbers: Mapping[str, float]
    ) -> Tensor:
        """Scalar sum over pairs and positions, float32 or better; [N, V] is not kept.

        Raises:
            ValueError: no layers have been found, or the role is absent.
        """
        if not self.pairs:
            raise ValueError(f"{self.name} needs its layers, and none have been found for it")
        role = resident_of(signals, self.spec.role)
        theirs = {self.spec.role: role.signal(batch)}
        part = Part("forward_kl", 1.0, self.spec.role, temperature=numbers["temperature"])
        sums = []
        for pair in self.pairs:
            given = outputs.whole[pair.projector or pair.student]
            hybrid, targets = role.outputs(batch, {pair.role: given}), batch.kept_targets
            if hybrid.hidden is not None and hybrid.head is not None:
                sums.append(vocabulary_loss(hybrid.hidden, hybrid.head, targets, theirs, [part])[0])
            else:
                assert hybrid.logits is not None  # a role gives one or the other
                sums.append(logits_loss(hybrid.logits, targets, theirs, [part])[0])
        return torch.stack(sums).sum()
