"""The records that terms, models and students exchange.

Shape letters: R rows, T positions in a row, N loss-bearing positions of a batch in row-major
order, d width of the last hidden state, V vocabulary (or classes), K kept entries.

A term is a pure function of student outputs and signals. It returns a sum and the count to divide
by; the count comes from batch and signals only, so it is known before the first backward, and
the worker divides by the count summed over all ranks and micro-batches. So the loss does not
depend on how a batch was cut.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

import torch
from torch import Tensor

from .specs import Number
from .specs.term import LooksAt

IGNORED = -100
"""Target of a position that bears no loss."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch on one rank.

    Causal models: `inputs` are `input_ids` and `position_ids`, [R, T] int64, the latter restarting
    at 0 in each sample; targets are shifted once, at collation: `targets[r, t]` is what position t
    predicts. Classifiers: T is 1, a row is one sample and its target the class; `inputs` are
    `input_ids` and `attention_mask` of text, or one float32 tensor [R, ...] of features. Rankers
    are classifiers whose samples are users and whose classes are items: `inputs` are `users`, [R]
    int64, and `items`, [R, most] int64, what each user is trained on, rising, -1 past its end.
    """

    inputs: Mapping[str, Tensor]  # keyword arguments of the model
    targets: Tensor  # [R, T] int64; IGNORED where no loss is borne
    sample_index: Tensor  # [R, T] int64: index of the sample in its store; -1 in padding
    epoch: int = 0  # of what is drawn anew in each; 0 outside training
    labelled: Tensor | None = None  # [R, T] bool: where targets are labels; None: everywhere
    weights: Tensor | None = None  # [R, T] float32: what positions count; None: 1 each

    @property
    def mask(self) -> Tensor:
        """[R, T] bool: positions that bear loss."""
        return self.targets != IGNORED

    @property
    def with_labels(self) -> "Batch":
        """With loss only where the targets are labels; itself where they all are."""
        if self.labelled is None:
            return self
        targets = self.targets.masked_fill(~self.labelled, IGNORED)
        return replace(self, targets=targets, labelled=None)

    @property
    def kept_targets(self) -> Tensor:
        """[N] int64."""
        return self.targets[self.mask]

    @property
    def kept_weights(self) -> Tensor | None:
        """[N] float32; None: 1 each."""
        return None if self.weights is None else self.weights[self.mask]

    @property
    def places(self) -> Tensor:
        """[N] int64: the same for a position of a sample whenever it comes, and no other's."""
        index, positions = self.sample_index[self.mask], self.inputs.get("position_ids")
        return index if positions is None else (index << 24) + positions[self.mask]


@dataclass(frozen=True, slots=True)
class Head:
    """Everything between the last hidden state and the logits.

    logits = softcap * tanh(scale * (h @ weight.T + bias) / softcap), each step absent if None.
    """

    weight: Tensor  # [V, d]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, d] -> [N, V] in the dtype of `hidden`; use only on chunks."""
        z = torch.nn.functional.linear(hidden, self.weight.to(hidden.dtype), None)
        if self.bias is not None:
            z = z + self.bias.to(z.dtype)
        if self.scale != 1.0:
            z = z * self.scale
        if self.softcap is not None:
            z = self.softcap * torch.tanh(z / self.softcap)
        return z


@dataclass(frozen=True, slots=True)
class HiddenSignal:
    """Encoding `hidden`: exact at every temperature through the role's own head."""

    hidden: Tensor  # [N, d_t] any float dtype
    head: Head  # the role's head, resident on the rank


@dataclass(frozen=True, slots=True)
class TopKSignal:
    """Encoding `topk`: log-probabilities at temperature 1 of the k likeliest entries, and the rest.

    `rest[:, j]` is logsumexp over the entries not kept of (log-probability / ladder[j]). So at a
    ladder temperature T everything is exact and normalised whatever the wire has rounded:
    log Z_T = logaddexp(logsumexp(logprobs / T), rest_T), log p_T = logprob / T - log Z_T, and the
    rest has log-probability rest_T - log Z_T. It is -inf when all V are kept.
    """

    ids: Tensor  # [N, K] int64
    logprobs: Tensor  # [N, K] float32
    rest: Tensor  # [N, L] float32
    ladder: tuple[float, ...]  # L rising temperatures
    vocabulary: int  # V of the role


@dataclass(frozen=True, slots=True)
class SampledSignal:
    """Encoding `sampled`: S draws from the role at temperature 1, importance-weighted.

    For any f, `sum_s weights[n, s] f(ids[n, s])` is an unbiased estimate of the role's mean of f at
    position n. An id may be drawn more than once. Random-sampling distillation, arXiv:2503.16870.
    """

    ids: Tensor  # [N, S] int64
    weights: Tensor  # [N, S] float32, 1 / S each when the proposal is the role itself
    entropy: Tensor  # [N] float32: the role's entropy in nats, exact
    vocabulary: int  # V of the role


@dataclass(frozen=True, slots=True)
class DenseSignal:
    """Encoding `full`: logits as they are; for small V, images, ranking."""

    logits: Tensor  # [N, V]


@dataclass(frozen=True, slots=True)
class LayersSignal:
    """Encoding `layers`: outputs of named modules, projected if the ask said so."""

    outputs: Mapping[str, Tensor]  # by module path: [N, d], or [N, channels, ...] of feature maps


@dataclass(frozen=True, slots=True)
class AttentionSignal:
    """Encoding `attention`: attention probabilities of named modules.

    Keys are positions of the query's own sample; those past its end are 0.
    """

    probabilities: Mapping[str, Tensor]  # by module path: [N, heads, longest]


@dataclass(frozen=True, slots=True)
class GradientsSignal:
    """Encoding `gradients`: of a classifier's log max p, sample by sample."""

    gradients: Mapping[str, Tensor]  # by path: [N, d], or of a text [N, d, longest]


@dataclass(frozen=True, slots=True)
class VjpSignal:
    """Encoding `vjp`: what a classifier gives at some inputs, and a gradient by them."""

    output: Tensor  # [N, V]: logits or probabilities
    gradient: Tensor  # [N, d], by the features


LogitSignal = HiddenSignal | TopKSignal | SampledSignal | DenseSignal


class Resident(Protocol):
    """A role's own weights beside the student, frozen and in evaluation mode.

    Answers an ask of kind `resident`: about any batch, and what depends on the student too.
    """

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """By parameter name, those of tied ones once."""
        ...

    @property
    def mean_gradient(self) -> Mapping[str, Tensor] | None:
        """`gradient` of all training data over their positions; None: no term has asked for it."""
        ...

    def gradient(self, batch: "Batch") -> Mapping[str, Tensor]:
        """Of the summed cross entropy against a batch's N labels, by each of `weights`.

        Float32 or better; zeros where N = 0.
        """
        ...

    def outputs(self, batch: "Batch", given: Mapping[str, Tensor] | None = None) -> "Outputs":
        """What the role says of a batch, differentiable by what is given.

        Args:
            batch: of the student's own inputs.
            given: by module path, what takes the place of the module's output, whole, its channels
                the role's own (`Outputs.whole`).
        """
        ...

    def signal(self, batch: "Batch") -> LogitSignal:
        """The same as a constant, as if it had been served."""
        ...


Signal = LogitSignal | LayersSignal | AttentionSignal | GradientsSignal | VjpSignal | Resident
Signals = Mapping[str, Signal]
"""By `Ask.key`; every signal covers the N loss-bearing positions of its batch, in order."""


def resident_of(signals: Signals, role: str) -> Resident:
    """A role's own weights.

    Raises:
        ValueError: they are not there.
    """
    found = signals.get(Ask(role, "resident").key)
    if found is None:
        raise ValueError(
            f"the weights of role {role!r} are not beside the student; give them to build_objective"
        )
    return cast(Resident, found)  # what is under such a key


def logit_signals(signals: Signals) -> dict[str, LogitSignal]:
    """Those of them that say logits, by role."""
    return {key: one for key, one in signals.items() if isinstance(one, LogitSignal)}


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a student's forward gives for the N loss-bearing positions.

    Either (`hidden`, `head`) for models whose head can be told apart, or `logits`; and what terms
    that look inside have asked for.
    """

    hidden: Tensor | None = None  # [N, d]
    head: Head | None = None
    logits: Tensor | None = None  # [N, V]
    layers: Mapping[str, Tensor] = field(default_factory=dict)  # as `LayersSignal.outputs`
    attention: Mapping[str, Tensor] = field(default_factory=dict)  # [N, heads, T], as the signal's
    projected: Mapping[str, Tensor] = field(default_factory=dict)  # by projector, as `layers`
    gradients: Mapping[str, Tensor] = field(default_factory=dict)  # as the signal's, of a graph
    members: Mapping[str, "Outputs"] = field(default_factory=dict)
    """Of a student with several: each one's own; what is above is then its main member's."""

    def of(self, member: str | None) -> "Outputs":
        """Those of one member, beside all that was taken inside; None: of the student."""
        if member is None:
            return self
        own = self.members[member]
        return replace(self, hidden=own.hidden, head=own.head, logits=own.logits)

    def as_signal(self) -> "LogitSignal":
        """What is said here as a role would say it: held fixed, nothing lost."""
        if self.hidden is not None and self.head is not None:
            weight, bias = self.head.weight.detach(), self.head.bias
            fixed = replace(self.head, weight=weight, bias=None if bias is None else bias.detach())
            return HiddenSignal(self.hidden.detach(), fixed)
        assert self.logits is not None  # the one or the other
        return DenseSignal(self.logits.detach())

    whole: Mapping[str, Tensor] = field(default_factory=dict)
    """By module path or projector: all rows and positions, as the module or projector gave them."""
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    """By name, those that are trained; where a role's weights are beside them, and ZeRO is below 3.
    """


@dataclass(frozen=True, slots=True)
class Ask:
    """What a term wants to know of a role."""

    role: str
    kind: LooksAt = "logits"
    layers: tuple[str, ...] = ()
    """Module paths; of asks that are about layers."""

    @property
    def key(self) -> str:
        """Under which the answer is among the signals: one for all layers of a role."""
        return self.role if self.kind == "logits" else f"{self.role}.{self.kind}"


def role_of(key: str) -> str:
    """The role of an `Ask.key`."""
    return key.partition(".")[0]


class Term(Protocol):
    """One loss of an objective."""

    @property
    def name(self) -> str:
        """Unique in its objective; the key of its numbers, counts, totals and scale."""
        ...

    def asks(self) -> tuple[Ask, ...]:
        """Roles and kinds of answer needed."""
        ...

    def numbers(self) -> Mapping[str, Number]:
        """Its numbers, plain or schedules, by field name, `weight` first."""
        ...

    def count(self, batch: Batch, signals: Signals) -> Tensor:
        """Scalar float32: what to divide by, before any student forward."""
        ...


class OwnTerm(Term, Protocol):
    """A term that computes its own sum, beside those that share the pass over the vocabulary."""

    def total(
        self, outputs: Outputs, batch: Batch, signals: Signals, numbers: Mapping[str, float]
    ) -> Tensor:
        """Scalar float32 sum, differentiable; 0 that still reaches the outputs where N = 0.

        `numbers` are this step's values of the term's own schedules, by field name.
        """
        ...


class CustomFeatureTerm(Protocol):
    """What a term of one's own on layers is made of (`kind: import_features`)."""

    def count(self, batch: Batch) -> Tensor:
        """Scalar float32: what to divide by, before any student forward."""
        ...

    def total(self, ours: Tensor, theirs: Tensor, batch: Batch) -> Tensor:
        """Scalar sum of one pair of layers, differentiable; for N = 0 too.

        Args:
            ours: the student's layer, projected if the term says so: [N, C], or [N, C, ...].
            theirs: the role's, at the same positions.
            batch: theirs; `sample_index` says which positions are of one sample.
        """
        ...


class CustomTerm(Protocol):
    """What a term of one's own is made of; a job file names what makes it (`kind: import`)."""

    def count(self, batch: Batch, signals: Signals) -> Tensor:
        """Scalar float32: what to divide by, before any student forward."""
        ...

    def total(self, outputs: Outputs, batch: Batch, signals: Signals) -> Tensor:
        """Scalar float32 sum, differentiable; 0 that still reaches the outputs where N = 0."""
        ...
