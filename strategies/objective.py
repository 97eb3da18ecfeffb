"""An objective as callables: what it asks, its numbers at a step, its counts, its loss.

The loss may be called inside a module's forward (the head's, under ZeRO-3): the head's weight
comes through `Outputs.head` and its gradient flows to that parameter. All vocabulary terms share
one chunked pass; a term of another kind is an `OwnTerm` beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import divergences, sampled, schedules, sparse
from .comparison import Part
from .contract import Ask, Batch, Outputs, OwnTerm, SampledSignal, Signals, Term, TopKSignal
from .linear import check, vocabulary_loss
from .specs import CrossEntropySpec, ObjectiveSpec, TermSpec
from .teachers import dense_logits


def build_objective(spec: ObjectiveSpec, compiled: bool = False) -> "Objective":
    """The callables of a spec. Names are the terms' kinds, with `_2`, `_3` for repeats.

    `compiled` is that of `linear.vocabulary_loss`.
    """
    seen: dict[str, int] = {}
    terms = []
    for term in spec.terms:
        seen[term.kind] = seen.get(term.kind, 0) + 1
        suffix = f"_{seen[term.kind]}" if seen[term.kind] > 1 else ""
        terms.append(VocabularyTerm(term.kind + suffix, term))
    return Objective(tuple(terms), compiled=compiled)


@dataclass(frozen=True, slots=True)
class VocabularyTerm:
    """A term on the student's distribution over its vocabulary."""

    name: str
    spec: TermSpec

    def asks(self) -> tuple[Ask, ...]:
        """The logits of the term's role, if it has one."""
        return tuple(Ask(role) for role in self.spec.served_roles)

    def numbers(self, step: int, total_steps: int) -> dict[str, float]:
        """The spec's `scheduled` fields, `weight` first."""
        return {
            field: schedules.value(getattr(self.spec, field), step, total_steps)
            for field in self.spec.scheduled
        }

    def count(self, batch: Batch, signals: Signals) -> Tensor:
        """Loss-bearing positions, scalar float32."""
        return batch.mask.sum().to(torch.float32)

    def part(self, numbers: Mapping[str, float], scale: float) -> Part:
        """The term with this step's numbers, as the shared pass takes it."""
        if isinstance(self.spec, CrossEntropySpec):
            return Part(self.spec.kind, scale, label_smoothing=self.spec.label_smoothing)
        part = Part(self.spec.kind, scale, self.spec.role, numbers["temperature"])
        own = {name: numbers[name] for name in ("alpha", "beta", "skew") if name in numbers}
        return replace(part, **own)


@dataclass(frozen=True, slots=True)
class Objective:
    """Weighted terms. Numbers are keyed `"{term}.{field}"`, all else by the term's name."""

    vocabulary: tuple[VocabularyTerm, ...]
    others: tuple[OwnTerm, ...] = ()
    compiled: bool = False

    def __post_init__(self) -> None:
        names = [term.name for term in self.terms]
        if len(set(names)) != len(names):
            raise ValueError(f"terms need distinct names, got {names}; rename the repeats")

    @property
    def terms(self) -> tuple[Term, ...]:
        """All terms, in order."""
        return (*self.vocabulary, *self.others)

    def asks(self) -> tuple[Ask, ...]:
        """What the terms want to know of which role, each once, in order of first use."""
        return tuple(dict.fromkeys(ask for term in self.terms for ask in term.asks()))

    def numbers(self, step: int, total_steps: int) -> dict[str, float]:
        """The value of every schedule at optimiser step `step` (from 0) of `total_steps`."""
        return {
            f"{term.name}.{field}": number
            for term in self.terms
            for field, number in term.numbers(step, total_steps).items()
        }

    def counts(self, batch: Batch, signals: Signals) -> dict[str, Tensor]:
        """Per term, what its sum is divided by: float32 scalars, known before any forward."""
        return {term.name: term.count(batch, signals) for term in self.terms}

    def loss(
        self,
        outputs: Outputs,
        batch: Batch,
        signals: Signals,
        numbers: Mapping[str, float],
        scales: Mapping[str, float],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch, and each term's sum.

        Args:
            outputs: the student's, for the batch's N loss-bearing positions; N may be 0.
            batch: the micro-batch.
            signals: of every role that `asks` names.
            numbers: of `numbers(...)`.
            scales: per term: its weight over the global count, times the engine's own factors.
                0 reports a term without training on it.

        Returns:
            Scalar `sum over terms of scales[term] * total`, differentiable (once); and the
            detached totals by term.

        Raises:
            ValueError: outputs, targets and signals do not cover the same positions, or a signal
                cannot answer a temperature.
        """
        own = {term.name: _numbers_of(term, numbers) for term in self.terms}
        parts = [term.part(own[term.name], float(scales[term.name])) for term in self.vocabulary]
        loss, sums = _vocabulary(outputs, batch.kept_targets, signals, parts, self.compiled)
        totals = {term.name: sums[i] for i, term in enumerate(self.vocabulary)}
        for term in self.others:
            total = term.total(outputs, batch, signals, own[term.name])
            loss = loss + float(scales[term.name]) * total
            totals[term.name] = total.detach()
        return loss, totals


def _numbers_of(term: Term, numbers: Mapping[str, float]) -> dict[str, float]:
    prefix = f"{term.name}."
    return {
        key.removeprefix(prefix): number
        for key, number in numbers.items()
        if key.startswith(prefix)
    }


def _vocabulary(
    outputs: Outputs, targets: Tensor, signals: Signals, parts: Sequence[Part], compiled: bool
) -> tuple[Tensor, Tensor]:
    """Scaled sum and [parts] totals, through the head in chunks or from logits as they are."""
    if outputs.hidden is not None and outputs.head is not None:
        return vocabulary_loss(outputs.hidden, outputs.head, targets, signals, parts, compiled)
    if outputs.logits is None:
        raise ValueError("outputs hold neither (hidden, head) nor logits; the model must give one")
    logits = outputs.logits
    check(logits.shape[0], targets, signals, parts)
    sums = [
        (_dense_values(logits, targets, signals, part) * part.value_factor()).sum()
        for part in parts
    ]
    loss = logits.new_zeros(())
    for part, total in zip(parts, sums, strict=True):
        loss = loss + part.scale * total
    return loss, torch.stack(sums).detach()


def _dense_values(logits: Tensor, targets: Tensor, signals: Signals, part: Part) -> Tensor:
    """[N] values of one part from [N, V] logits softened once, through autograd."""
    if part.role is None:
        return divergences.cross_entropy(logits, targets, part.label_smoothing)
    signal = signals[part.role]
    if isinstance(signal, SampledSignal):
        return sampled.sampled_forward_kl(logits, signal)
    theirs = dense_logits(signal)
    if theirs is not None:
        ours, theirs = (side / sparse.column(part.temperature) for side in (logits, theirs))
    else:
        assert isinstance(signal, TopKSignal)
        theirs = sparse.coarse_teacher(signal, part.temperature, logits.shape[1])
        theirs = theirs.masked_fill(theirs < sparse.ABSENT / 2, -torch.inf)
        ours = sparse.coarse_student(logits, signal.ids, part.temperature)
    return _divergence(ours, theirs, part).clamp_min(0.0)


def _divergence(ours: Tensor, theirs: Tensor, part: Part) -> Tensor:
    """[N] at temperature 1."""
    match part.kind:
        case "forward_kl":
            return divergences.forward_kl(ours, theirs)
        case "reverse_kl":
            return divergences.reverse_kl(ours, theirs)
        case "jensen_shannon":
            return divergences.jensen_shannon(ours, theirs, beta=part.beta)
        case "skewed_forward_kl":
            return divergences.skewed_forward_kl(ours, theirs, skew=part.skew)
        case "skewed_reverse_kl":
            return divergences.skewed_reverse_kl(ours, theirs, skew=part.skew)
        case "total_variation":
            return divergences.total_variation(ours, theirs)
        case "alpha_beta":
            return divergences.alpha_beta(ours, theirs, alpha=part.alpha, beta=part.beta)
        case "cross_entropy":
            raise AssertionError("labels are not a role")
