"""An objective as callables: what it asks, its numbers at a step, its counts, its loss.

Its numbers may be schedules that follow what is measured: their state is the caller's, a plain
value that goes in and comes out, and that a checkpoint keeps.

The loss may be called inside a module's forward (the head's, under ZeRO-3): the head's weight
comes through `Outputs.head` and its gradient flows to that parameter. All vocabulary terms share
one chunked pass; terms that look inside, and those of another kind (`OwnTerm`), are beside them.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from . import measuring, schedules
from .adaptive import Memory, first_memory, observed, quantity_of
from .contract import (
    Ask,
    Batch,
    CustomTerm,
    LayersSignal,
    Outputs,
    OwnTerm,
    Resident,
    Signal,
    Signals,
    Term,
    logit_signals,
)
from .features import FeatureTerm
from .linear import logits_loss, vocabulary_loss
from .measuring import Wanted, measure
from .pairs import Pairs
from .parts import Part
from .progress import Progress
from .rankers import rank_term
from .resident import resident_term
from .specs import (
    PEER,
    AdaptiveSchedule,
    BlockwiseLogitsSpec,
    CrossEntropySpec,
    DivergenceSpec,
    FeatureTermSpec,
    ImportedFeaturesSpec,
    ImportedTerm,
    LogitsDistanceSpec,
    MeasureTerm,
    Number,
    ObjectiveSpec,
    RankTermSpec,
    RoleGradientSpec,
    RoleTerm,
    TermSpec,
)
from .targets import Target
from .watched import WatchedMeasure

State = dict[str, Memory]
"""What adaptive schedules remember, by the key of their number."""

Known = Mapping[Wanted, Tensor]
"""Measures of a batch, [N] each."""


@dataclass(frozen=True, slots=True)
class Edge:
    """Where a term leads inside a student with several members."""

    member: str | None = None  # that learns; None: the student has none, or its main one
    peers: tuple[str, ...] = ()  # that it learns from, as they are in the step
    reads_labels: bool = True


WHOLE = Edge()

_PART_FIELDS = {each.name for each in fields(Part)}


def build_objective(
    spec: ObjectiveSpec,
    pairs: Pairs | None = None,
    popularity: Tensor | None = None,
    residents: Mapping[str, Resident] | None = None,
) -> "Objective":
    """The callables of a spec.

    Args:
        spec: what to learn.
        pairs: the layers of each term that looks inside; without them such terms cannot be
            computed.
        popularity: [V] int64: users that are trained on each item; without it terms on the order
            of items cannot be computed.
        residents: by role, what is beside the student; terms that want another cannot be computed.
    """
    pairs = pairs or {}
    terms: list[VocabularyTerm] = []
    others: list[OwnTerm] = []
    features: list[FeatureTerm] = []
    watched: list[WatchedMeasure] = []
    for name, term in zip(spec.names, spec.terms, strict=True):
        if isinstance(term, ImportedTerm):
            others.append(OutsideTerm(name, term, _imported(term)))
        elif isinstance(term, RoleGradientSpec | BlockwiseLogitsSpec):
            others.append(resident_term(name, term, pairs.get(name, ())))
        elif isinstance(term, RankTermSpec):
            others.append(rank_term(name, term, popularity))
        elif isinstance(term, FeatureTermSpec):
            own = _imported(term) if isinstance(term, ImportedFeaturesSpec) else None
            features.append(FeatureTerm(name, term, pairs.get(name, ()), own))
        elif isinstance(term, MeasureTerm):
            watched.append(WatchedMeasure(name, term))
        else:
            terms.append(VocabularyTerm(name, term))
    edges = {
        name: Edge(term.member, term.peers, term.needs_labels)
        for name, term in zip(spec.names, spec.terms, strict=True)
        if term.member is not None or term.peers
    }
    beside = {Ask(role, "resident").key: one for role, one in (residents or {}).items()}
    return Objective(tuple(terms), tuple(others), tuple(features), tuple(watched), edges, beside)


def _imported(spec: ImportedTerm | ImportedFeaturesSpec) -> Any:
    """The term that a path names: a `CustomTerm`, or of features a `CustomFeatureTerm`.

    Raises:
        ValueError: it does not import, or takes other arguments.
    """
    module, _, name = spec.target.partition(":")
    try:
        made: Any = importlib.import_module(module)
        for part in name.split("."):
            made = getattr(made, part)
        return made(**spec.arguments)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the term {spec.target!r} cannot be made ({error}); name module:function of something "
            "that can be imported, and its arguments"
        ) from error


@dataclass(frozen=True, slots=True)
class OutsideTerm:
    """A `CustomTerm` under a name, with the weight of its spec."""

    name: str
    spec: ImportedTerm
    inner: CustomTerm

    def asks(self) -> tuple[Ask, ...]:
        """Logits of the spec's roles, and those that it wants beside the student."""
        return tuple(Ask(role, what) for role, what in self.spec.asked)

    def numbers(self) -> Mapping[str, Number]:
        """The weight."""
        return self.spec.numbers()

    def count(self, batch: Batch, signals: Signals) -> Tensor:
        """As the inner term says."""
        return self.inner.count(batch, signals)

    def total(
        self, outputs: Outputs, batch: Batch, signals: Signals, numbers: Mapping[str, float]
    ) -> Tensor:
        """As the inner term says."""
        return self.inner.total(outputs, batch, signals)


@dataclass(frozen=True, slots=True)
class VocabularyTerm:
    """A term on the student's distribution over its vocabulary."""

    name: str
    spec: TermSpec

    def asks(self) -> tuple[Ask, ...]:
        """The logits of the term's roles, if it has any."""
        return tuple(Ask(role) for role in self.spec.served_roles)

    def numbers(self) -> Mapping[str, Number]:
        """The spec's numbers that may move, `weight` first."""
        return self.spec.numbers()

    def count(self, batch: Batch, signals: Signals) -> Tensor:
        """Positions that the term looks at, scalar float32."""
        asked = [] if self.where is None else [self.where]
        return self.counted(batch, measure(asked, batch.kept_targets, logit_signals(signals)))

    def counted(self, batch: Batch, known: Known) -> Tensor:
        """The same, where `where` is known."""
        counting = self._counting(batch, known)
        return (batch.mask if counting is None else counting).sum().to(torch.float32)

    def measures(self) -> list[Wanted]:
        """What must be measured before `part`."""
        spec, found = self.spec, [self.where]
        if isinstance(spec, RoleTerm) and spec.weigh_by is not None:
            found.append(measuring.wanted(spec.weigh_by.measure, spec.role))
        if isinstance(spec, DivergenceSpec) and spec.temperature_by is not None:
            found.append(measuring.wanted(spec.temperature_by.measure, spec.role))
        return [one for one in found if one is not None]

    def part(
        self,
        numbers: Mapping[str, float],
        scale: float,
        batch: Batch,
        known: Known,
    ) -> Part:
        """The term with this step's numbers and this batch's measures, for the shared pass."""
        spec = self.spec
        own = {name: number for name, number in numbers.items() if name in _PART_FIELDS}
        if isinstance(spec, CrossEntropySpec):
            return Part(
                spec.kind,
                scale,
                label_smoothing=spec.label_smoothing,
                position_weight=batch.kept_weights,
            )
        assert isinstance(spec, RoleTerm) and not isinstance(spec, ImportedTerm)
        part = Part(spec.kind, scale, spec.role)  # type: ignore[attr-defined]
        part = replace(part, **own, target=self._target(numbers))
        if isinstance(spec, LogitsDistanceSpec):
            part = replace(part, over=spec.over)
        if hasattr(spec, "head_mass"):
            part = replace(part, head_mass=spec.head_mass)  # type: ignore[attr-defined]
        if isinstance(spec, DivergenceSpec) and spec.temperature_by is not None:
            by = spec.temperature_by
            value = known[measuring.wanted(by.measure, spec.role)]
            base = numbers["temperature"]
            part = replace(part, temperature=measuring.temperatures(by, base, value, batch))
        return replace(part, position_weight=self._position_weight(batch, known))

    @property
    def where(self) -> Wanted | None:
        """What says which positions the term looks at; None: it looks at all."""
        spec = self.spec
        if not isinstance(spec, RoleTerm) or spec.where is None:
            return None
        return measuring.wanted("role_right", spec.role)

    def _looked_at(self, right: Tensor) -> Tensor:
        """[N] 1 where the term looks."""
        assert isinstance(self.spec, RoleTerm)
        return right if self.spec.where == "role_right" else 1 - right

    def _counting(self, batch: Batch, known: Known) -> Tensor | None:
        """[N] what each position counts in the mean; None: 1."""
        weight = batch.kept_weights
        if self.where is None:
            return weight
        looked_at = self._looked_at(known[self.where])
        return looked_at if weight is None else looked_at * weight

    def _position_weight(self, batch: Batch, known: Known) -> Tensor | None:
        spec = self.spec
        weight = self._counting(batch, known)
        if isinstance(spec, RoleTerm) and spec.weigh_by is not None:
            value = known[measuring.wanted(spec.weigh_by.measure, spec.role)]
            factor = measuring.weights(spec.weigh_by, value, batch)
            weight = factor if weight is None else weight * factor
        return weight

    def _target(self, numbers: Mapping[str, float]) -> Target | None:
        if not isinstance(self.spec, RoleTerm) or not self.spec.target:
            return None
        prefix = "target."
        own = {k.removeprefix(prefix): v for k, v in numbers.items() if k.startswith(prefix)}
        return Target(tuple(self.spec.target), tuple(own.items()))


@dataclass(frozen=True, slots=True)
class Objective:
    """Weighted terms. Numbers are keyed `"{term}.{field}"`, all else by the term's name."""

    vocabulary: tuple[VocabularyTerm, ...]
    others: tuple[OwnTerm, ...] = ()
    features: tuple[FeatureTerm, ...] = ()
    watched: tuple[WatchedMeasure, ...] = ()
    edges: Mapping[str, Edge] = field(default_factory=dict)
    """By term: of those about members of the student."""
    residents: Mapping[str, Resident] = field(default_factory=dict)
    """By `Ask.key`: roles' own weights beside the student."""

    def __post_init__(self) -> None:
        names = [term.name for term in self.terms]
        if len(set(names)) != len(names):
            raise ValueError(f"terms need distinct names, got {names}; rename the repeats")

    @property
    def terms(self) -> tuple[Term, ...]:
        """All terms, in order."""
        return (*self.vocabulary, *self.others, *self.features, *self.watched)

    def asks(self) -> tuple[Ask, ...]:
        """What the terms want to know of which role, each once, in order of first use."""
        return tuple(dict.fromkeys(ask for term in self.terms for ask in term.asks()))

    def start(self) -> State:
        """The state of all adaptive schedules before the first step."""
        return {key: first_memory(number) for key, (_, number) in self._adaptive().items()}

    def numbers(self, at: Progress, state: State) -> dict[str, float]:
        """The value of every number at a step.

        Args:
            at: the step.
            state: after the steps before it: of `start`, then of `observe`.
        """
        return {
            key: schedules.value(number, at, state.get(key))
            for key, (_, number) in self._numbers().items()
        }

    def observe(self, state: State, means: Mapping[str, float], at: Progress) -> State:
        """The state after a step; the one given is left as it is.

        Args:
            state: before the step.
            means: by term, its global mean in this step; without those whose count was 0, which
                leave what follows them as it was.
            at: the step.
        """
        found = dict(state)
        for key, (term, number) in self._adaptive().items():
            quantity = quantity_of(number, term)
            if quantity in means:
                found[key] = observed(number, state[key], means[quantity], at)
        return found

    def _numbers(self) -> dict[str, tuple[str, Number]]:
        """By key: the term that has it, and the number."""
        return {
            f"{term.name}.{field}": (term.name, number)
            for term in self.terms
            for field, number in term.numbers().items()
        }

    def _adaptive(self) -> dict[str, tuple[str, AdaptiveSchedule]]:
        return {
            key: (term, number)
            for key, (term, number) in self._numbers().items()
            if isinstance(number, AdaptiveSchedule)
        }

    def known(
        self, batch: Batch, signals: Signals, asked: Mapping[str, Batch] | None = None
    ) -> Known:
        """What decides which positions terms look at, for `counts` and `loss`; `asked` as there."""
        found: dict[Wanted, Tensor] = {}
        choosing = [term for term in self.vocabulary if term.where is not None]
        for seen, _, terms in self._groups(choosing, batch, asked):
            where = [term.where for term in choosing if term in terms and term.where is not None]
            found |= measure(where, seen.kept_targets, logit_signals(signals))
        return found

    def counts(
        self,
        batch: Batch,
        signals: Signals,
        asked: Mapping[str, Batch] | None = None,
        known: Known | None = None,
    ) -> dict[str, Tensor]:
        """Per term, what its sum is divided by: float32 scalars, known before any forward.

        Args:
            batch: the micro-batch.
            signals: of every role that `asks` names.
            asked: that of `loss`.
            known: of `known`; None: it is measured here.
        """
        known = self.known(batch, signals, asked) if known is None else known
        found = {
            term.name: term.counted(seen, known)
            if isinstance(term, VocabularyTerm)
            else term.count(seen, signals)
            for seen, _, terms in self._groups(self.terms, batch, asked)
            for term in terms
        }
        return {term.name: found[term.name] for term in self.terms}

    def loss(
        self,
        outputs: Outputs,
        batch: Batch,
        signals: Signals,
        numbers: Mapping[str, float],
        scales: Mapping[str, float],
        asked: Mapping[str, Batch] | None = None,
        known: Known | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch, and each term's sum.

        Args:
            outputs: the student's, for the batch's N loss-bearing positions; N may be 0. Those of
                a student with several members say what each of them gives.
            batch: the micro-batch.
            signals: of every role that `asks` names.
            numbers: of `numbers(...)`.
            scales: per term: its weight over the global count, times the engine's own factors.
                0 reports a term without training on it.
            asked: by role, `batch` with loss only where the role was asked, which is what its
                signal then covers; terms without a role see all of `batch` that is labelled,
                and those that learn from members of the student and no label all of it. None: roles
                were asked about all.
            known: of `known`; what it lacks is measured here.

        Returns:
            Scalar `sum over terms of scales[term] * total`, differentiable (once); and the
            detached totals by term.

        Raises:
            ValueError: outputs, targets and signals do not cover the same positions, roles of one
                term were asked about different ones, or a signal cannot answer a temperature.
        """
        own = {term.name: _numbers_of(term, numbers) for term in self.terms}
        losses: list[Tensor] = []
        totals: dict[str, Tensor] = {}
        for seen, member, terms in self._groups(self.terms, batch, asked):
            shown = outputs if seen is batch else _narrowed(outputs, batch, seen)
            told = {**signals, **self._peers(terms, shown)}
            shown = shown.of(member)
            parts, sums = self._seen(shown, seen, terms, told, own, scales, known or {})
            losses += parts
            totals |= sums
        loss = sum(losses[1:], start=losses[0])  # not every term is a measure
        return loss, {term.name: totals[term.name] for term in self.terms}

    def _groups(
        self, terms: Sequence[Term], batch: Batch, asked: Mapping[str, Batch] | None
    ) -> list[tuple[Batch, str | None, list[Term]]]:
        """Terms by the batch that they see and the member of the student that learns."""
        found: dict[tuple[int, str | None], tuple[Batch, str | None, list[Term]]] = {}
        labelled = batch.with_labels
        for term in terms:
            edge = self.edges.get(term.name, WHOLE)
            if term.asks():
                seen = _seen(term, batch, asked)
            else:  # members tell each other of what has no label too
                seen = batch if edge.peers and not edge.reads_labels else labelled
            found.setdefault((id(seen), edge.member), (seen, edge.member, []))[2].append(term)
        return list(found.values())

    def _peers(self, terms: Sequence[Term], outputs: Outputs) -> dict[str, Signal]:
        """What members of the student say to others of them, as roles."""
        told: dict[str, Signal] = {}
        for term in terms:
            for peer in self.edges.get(term.name, WHOLE).peers:
                role = f"{PEER}{peer}"
                if isinstance(term, FeatureTerm):  # whose pairs name layers of the whole student
                    fixed = {path: layer.detach() for path, layer in outputs.layers.items()}
                    told[Ask(role, "layers").key] = LayersSignal(fixed)
                elif role not in told:
                    told[role] = outputs.members[peer].as_signal()
        return told

    def _seen(
        self,
        outputs: Outputs,
        batch: Batch,
        terms: Sequence[Term],
        signals: Signals,
        own: Mapping[str, Mapping[str, float]],
        scales: Mapping[str, float],
        known: Known,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Parts of the loss, and the sums, of the terms that see the same positions."""
        shared = [term for term in terms if isinstance(term, VocabularyTerm)]
        features = [term for term in terms if isinstance(term, FeatureTerm)]
        watched = [term for term in terms if isinstance(term, WatchedMeasure)]
        wanted = [one for term in (*shared, *features, *watched) for one in term.measures()]
        wanted = [one for one in wanted if one not in known]
        logits = logit_signals(signals)
        known = {**known, **measure(wanted, batch.kept_targets, logits, outputs)}
        totals = {term.name: term.total(known) for term in watched}
        losses: list[Tensor] = []
        if shared:
            loss, sums = self._vocabulary(outputs, batch, shared, known, signals, own, scales)
            losses.append(loss)
            totals |= {term.name: sums[i] for i, term in enumerate(shared)}
        for term in features:
            total = term.total(outputs, batch, signals, known)
            losses.append(float(scales[term.name]) * total)
            totals[term.name] = total.detach()
        given = {**signals, **self.residents}
        for term in self.others:
            if term not in terms:
                continue
            total = term.total(outputs, batch, given, own[term.name])
            losses.append(float(scales[term.name]) * total)
            totals[term.name] = total.detach()
        return losses, totals

    def _vocabulary(
        self,
        outputs: Outputs,
        batch: Batch,
        terms: Sequence[VocabularyTerm],
        known: Known,
        signals: Signals,
        numbers: Mapping[str, Mapping[str, float]],
        scales: Mapping[str, float],
    ) -> tuple[Tensor, Tensor]:
        """Scaled sum and [terms] totals, through the head in chunks or from logits as they are."""
        targets, signals = batch.kept_targets, logit_signals(signals)
        parts = [
            term.part(numbers[term.name], float(scales[term.name]), batch, known) for term in terms
        ]
        parts = _sharing_targets(parts)
        places = batch.places if any(part.target is not None for part in parts) else None
        if outputs.hidden is not None and outputs.head is not None:
            return vocabulary_loss(outputs.hidden, outputs.head, targets, signals, parts, places)
        if outputs.logits is None:
            raise ValueError(
                "outputs hold neither (hidden, head) nor logits; the model must give one"
            )
        return logits_loss(outputs.logits, targets, signals, parts, places)


def _seen(term: Term, batch: Batch, asked: Mapping[str, Batch] | None) -> Batch:
    """The batch that a term sees: what is beside the student only is asked about all of it."""
    if asked is None:
        return batch
    asks = [ask for ask in term.asks() if ask.kind != "resident" or ask.role in asked]
    roles = dict.fromkeys(ask.role for ask in asks)
    if not roles:
        return batch
    first, *others = (asked[role] for role in roles)
    if any(other is not first for other in others):
        raise ValueError(
            f"{term.name} compares {', '.join(roles)}, which were asked about different positions; "
            "give roles of one term one tokenizer"
        )
    return first


def _narrowed(outputs: Outputs, batch: Batch, asked: Batch) -> Outputs:
    """Outputs at the positions of `asked`, which are some of those of `batch`."""
    kept = asked.mask[batch.mask]

    def of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor[kept] for name, tensor in tensors.items()}

    return replace(
        outputs,
        hidden=None if outputs.hidden is None else outputs.hidden[kept],
        logits=None if outputs.logits is None else outputs.logits[kept],
        layers=of(outputs.layers),
        attention=of(outputs.attention),
        projected=of(outputs.projected),
        members={name: _narrowed(one, batch, asked) for name, one in outputs.members.items()},
        gradients=of(outputs.gradients),
    )


def _sharing_targets(parts: list[Part]) -> list[Part]:
    """The same parts, equal targets made one object: the pass computes each object once."""
    known: list[Target] = []
    shared = []
    for part in parts:
        if part.target is not None:
            same = next((one for one in known if one == part.target), part.target)
            known.append(same)
            part = replace(part, target=same)
        shared.append(part)
    return shared


def _numbers_of(term: Term, numbers: Mapping[str, float]) -> dict[str, float]:
    prefix = f"{term.name}."
    return {
        key.removeprefix(prefix): number
        for key, number in numbers.items()
        if key.startswith(prefix)
    }
