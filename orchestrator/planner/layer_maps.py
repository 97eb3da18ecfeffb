"""Which layer learns from which, once both models are known, and what is asked for it. Pure.

Patterns of a job file become module paths; layers that do not fit each other are refused with both
shapes. Loads no torch.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol, get_args

from orchestrator.errors import SpecError
from orchestrator.signals.asks import ask_of
from orchestrator.signals.records import INPUT, AttentionAsk, GradientsAsk, LayersAsk, SignalAsk
from orchestrator.spec import JobSpec
from strategies.pairs import Pair
from strategies.specs import (
    AttentionMapsSpec,
    AttentionTransferSpec,
    BlockwiseLogitsSpec,
    FeatureTermSpec,
    FlowSpec,
    HiddenStatesSpec,
    ImportedFeaturesSpec,
    InputGradientsSpec,
)
from strategies.specs.term import LooksAt

_SHOWN = 12  # layers that a message lists


class Described(Protocol):
    """What is known of the inside of a student or role; the fields of `RoleDescription`."""

    @property
    def layers(self) -> Mapping[str, int]:
        """Width of each module's output, by path."""
        ...

    @property
    def attention(self) -> Mapping[str, int]:
        """Heads of each module that tells its attention."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of one sample's output, for modules that give maps."""
        ...

    @property
    def input_width(self) -> int:
        """Of a classifier: numbers of a sample or of an embedded token; 0: not known."""
        ...


@dataclass(frozen=True, slots=True)
class Projector:
    """A trained map of the student's channels to the role's."""

    name: str
    kind: Literal["linear", "orthogonal"]
    path: str  # of the student's module whose output it maps
    inputs: int
    outputs: int
    lineage: str = ""  # what it maps to what: by this a later stage knows it again
    whole: bool = False  # maps all positions, which go on into the role


@dataclass(frozen=True, slots=True)
class LayerMaps:
    """All that a job's terms look at inside student and roles."""

    pairs: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict)  # by term
    layers: tuple[str, ...] = ()  # of the student
    attention: tuple[str, ...] = ()  # of the student
    gradients: tuple[str, ...] = ()  # of the student: paths that gradients are taken by
    whole: tuple[str, ...] = ()  # of the student: layers that go on into a role
    projectors: tuple[Projector, ...] = ()
    asks: Mapping[str, SignalAsk] = field(default_factory=dict)  # by `Ask.key`


def logit_asks(job: JobSpec) -> dict[str, SignalAsk]:
    """What a job's terms ask of roles about their logits, by `Ask.key`."""
    return {role: ask_of(job.roles[role].encoding) for role in job.objective.logit_roles}


def layer_maps(job: JobSpec, student: Described, describe: Callable[[str], Described]) -> LayerMaps:
    """Find the layers of every term that looks inside.

    Args:
        job: the job.
        student: its inside.
        describe: a role's, by name.

    Raises:
        SpecError: a layer does not exist (those that do are listed), layers do not pair, or they
            do not fit each other (both are shown).
    """
    pairs: dict[str, tuple[Pair, ...]] = {}
    projectors: list[Projector] = []
    asked: dict[tuple[str, str], list[str]] = {}  # by role and what is looked at
    taken: dict[str, list[str]] = {what: [] for what in get_args(LooksAt)}
    objective = job.objective
    for index, (name, term) in enumerate(zip(objective.names, objective.terms, strict=True)):
        if not isinstance(term, FeatureTermSpec):
            continue
        own = _below(job, term.member)
        peer = _below(job, term.peers[0]) if term.peers else ""
        other = _part(student, peer) if term.peers else describe(term.role)
        asks_layers = term.looks_at == "layers" and not term.peers
        columns = job.roles[term.role].layers_project if asks_layers else None
        field_ = f"objective.terms.{index}"
        sent = other if columns is None else _sent(other, columns)
        finder = _Finder(job, field_, term, _part(student, own), sent, own, other)
        found = finder.pairs()
        made = finder.projectors(name, found)
        projectors += made
        names = [one.name for one in made] or [None] * len(found)
        found = [(own + ours, peer + theirs) for ours, theirs in found]
        pairs[name] = tuple(Pair(*both, one) for both, one in zip(found, names, strict=True))
        taken[term.looks_at] += [ours for ours, _ in found]
        theirs = [role for _, role in found]
        if term.peers:
            taken[term.looks_at] += theirs
        elif term.looks_at != "resident":  # whose weights are beside the student: nobody is asked
            asked.setdefault((term.role, term.looks_at), []).extend(theirs)
    return LayerMaps(
        pairs,
        tuple(dict.fromkeys(taken["layers"])),
        tuple(dict.fromkeys(taken["attention"])),
        tuple(dict.fromkeys(taken["gradients"])),
        tuple(dict.fromkeys(taken["resident"])),
        tuple(projectors),
        {f"{role}.{what}": _ask(job, role, what, paths) for (role, what), paths in asked.items()},
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """The inside of one member of a student, its paths the member's own."""

    layers: Mapping[str, int]
    attention: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    input_width: int


def _below(job: JobSpec, member: str | None) -> str:
    """What precedes a member's own paths in the student's."""
    return "" if member is None or job.student.members is None else f"members.{member}."


def _part(student: Described, prefix: str) -> Described:
    if not prefix:
        return student

    def own(found: Mapping[str, Any]) -> dict[str, Any]:
        return {
            path.removeprefix(prefix): size
            for path, size in found.items()
            if path.startswith(prefix)
        }

    inside = own(student.layers), own(student.attention), own(student.shapes)
    return _Part(*inside, student.input_width)


def _sent(role: Described, columns: int) -> Described:
    """A role's inside as it is sent once layers are projected; maps are refused."""
    layers = {path: d if path in role.shapes else columns for path, d in role.layers.items()}
    return _Part(layers, role.attention, role.shapes, role.input_width)


def _ask(job: JobSpec, role: str, what: str, paths: Sequence[str]) -> SignalAsk:
    """All layers of a role in one ask, so that one forward answers it; in order of their names."""
    layers = tuple(sorted(set(paths), key=_natural))
    dtype = job.roles[role].layers_dtype
    match what:
        case "attention":
            return AttentionAsk(layers, dtype)
        case "gradients":
            return GradientsAsk(layers, dtype, by_token=job.data.reads_text)
    return LayersAsk(layers, dtype, job.roles[role].layers_project)


@dataclass(frozen=True, slots=True)
class _Finder:
    """One term's search."""

    job: JobSpec
    field: str
    term: FeatureTermSpec
    student: Described  # or the member that learns
    role: Described
    prefix: str  # of its paths in the whole student
    unsent: Described  # the role before its layers are projected; itself where they are not

    def pairs(self) -> list[tuple[str, str]]:
        """(module of the student, module of the role), in the spec's order."""
        if isinstance(self.term, InputGradientsSpec):
            self._check_input()
            if self.term.layers is None:
                return [(INPUT, INPUT)]
        found: list[tuple[str, str]] = []
        for field_, ours, theirs in self.term.layer_pairs:
            where = f"{self.field}.{field_}"
            first = self._matching(f"{where}.student", ours, "student", self.student)
            second = self._matching(f"{where}.role", theirs, self.term.role, self.role)
            if isinstance(self.term, FlowSpec) and len(first) + len(second) > 2:
                raise SpecError(where, "names several layers at once", "Name single layers")
            found += _paired(where, first, second, self.term.role)
        for both in found:
            self._check(*both)
        if isinstance(self.term, FlowSpec):
            self._check_flows(found)
        return found

    def projectors(self, name: str, found: Sequence[tuple[str, str]]) -> list[Projector]:
        """One for each pair, where the term has them."""
        if not isinstance(self.term, HiddenStatesSpec | ImportedFeaturesSpec | BlockwiseLogitsSpec):
            return []
        kind = self.term.projector
        if kind == "none":
            return []
        widths = [
            (_shape(self.student, ours)[0], _shape(self.role, theirs)[0]) for ours, theirs in found
        ]
        return [
            Projector(
                f"{name}_{i}",
                kind,
                self.prefix + ours,
                *both,
                whole=isinstance(self.term, BlockwiseLogitsSpec),
                lineage=self._lineage(kind, ours, theirs),
            )
            for i, ((ours, theirs), both) in enumerate(zip(found, widths, strict=True))
        ]

    def _lineage(self, kind: str, ours: str, theirs: str) -> str:
        return f"{kind}: {self.prefix}{ours} -> {self.term.role}: {theirs}"

    def _matching(self, where: str, pattern: str, model: str, inside: Described) -> list[str]:
        known = inside.attention if self.term.looks_at == "attention" else inside.layers
        if not known:
            raise self._nothing(model)
        found = sorted((path for path in known if _matches(path, pattern)), key=_natural)
        if found:
            return found
        near = difflib.get_close_matches(pattern, known, _SHOWN, cutoff=0.5)
        shown = near or sorted(known, key=_natural)[:_SHOWN]
        listed = ", ".join(f"{path} ({_size(inside, path)})" for path in shown)
        more = f" and {len(known) - len(shown)} more" if len(known) > len(shown) else ""
        raise SpecError(
            where,
            f"is {pattern!r}, and {_called(model)} has no such layer; it has {listed}{more}",
            "Name one of these; `stillhouse doctor --layers FILE` lists all",
        )

    def _nothing(self, model: str) -> SpecError:
        owner = "student" if model == "student" else f"roles.{model}"
        if self.term.looks_at == "attention":
            return SpecError(
                f"{owner}.attention", "does not tell its probabilities", "Set it to eager"
            )
        return SpecError(
            owner,
            f"has no layer that can be told apart, and {self.term.kind} learns from layers",  # type: ignore[attr-defined]
            "For features give data.sources.*.format a shape, so that a role can be looked into",
        )

    def _check(self, ours: str, theirs: str) -> None:
        """Refuse layers whose sizes the term cannot compare."""
        term = self.term
        if self.unsent is not self.role:
            self._check_projected(theirs)
        if isinstance(term, AttentionMapsSpec):
            heads = self.student.attention[ours], self.role.attention[theirs]
            if term.heads == "each" and heads[0] != heads[1]:
                raise self._unlike(ours, theirs, "Set heads: mean, or choose others")
            return
        if isinstance(term, InputGradientsSpec):
            if self.student.layers[ours] != self.role.layers[theirs]:
                raise self._unlike(ours, theirs, "Choose layers of one size")
            return
        first, second = _shape(self.student, ours), _shape(self.role, theirs)
        mapped = isinstance(term, HiddenStatesSpec | BlockwiseLogitsSpec)
        by_channel = isinstance(term, FlowSpec) or (mapped and term.projector == "none")
        if by_channel and first[0] != second[0]:
            remedy = "Choose layers of one width"
            if mapped:
                remedy = "Set projector: linear, or choose layers of one width"
            raise self._unlike(ours, theirs, remedy)
        by_position = mapped or isinstance(term, AttentionTransferSpec)
        if by_position and first[1:] != second[1:]:
            raise self._unlike(ours, theirs, "Choose layers with as many positions")
        flat = len(first) == 1 and self.job.data.task == "classifier"
        if isinstance(term, AttentionTransferSpec) and flat:
            raise self._unlike(ours, theirs, "Choose layers with several positions: feature maps")

    def _check_projected(self, path: str) -> None:
        """Refuse a projection that is of no use."""
        columns = self.job.roles[self.term.role].layers_project
        if path not in self.unsent.shapes and self.role.layers[path] < self.unsent.layers[path]:
            return
        raise SpecError(
            f"roles.{self.term.role}.layers_project",
            f"is {columns}, and {path} gives {_size(self.unsent, path)}",
            "Remove it: maps are not projected"
            if path in self.unsent.shapes
            else f"Set it below {self.unsent.layers[path]}, or remove it",
        )

    def _check_input(self) -> None:
        """Both must have an input that gradients can be taken by, of one width."""
        widths = {"student": self.student.input_width, self.term.role: self.role.input_width}
        for model, width in widths.items():
            if not width:
                raise SpecError(
                    "student" if model == "student" else f"roles.{model}",
                    "does not tell what its gradients are to be taken by",
                    "For features give data.sources.*.format a shape; a text's model needs "
                    "get_input_embeddings",
                )
        if len(set(widths.values())) > 1 and self.term.layers is None:  # type: ignore[attr-defined]
            raise SpecError(
                self.field,
                f"compares gradients by the input, which is {self.student.input_width} wide for "
                f"the student and {self.role.input_width} for role {self.term.role}",
                "Name layers of one width, or use models whose embeddings are of one width",
            )

    def _check_flows(self, found: Sequence[tuple[str, str]]) -> None:
        """Both ends of a flow must have the same positions."""
        for side, inside in enumerate((self.student, self.role)):
            for begin in range(0, len(found), 2):
                one, two = found[begin][side], found[begin + 1][side]
                if _shape(inside, one)[1:] != _shape(inside, two)[1:]:
                    raise SpecError(
                        f"{self.field}.flows.{begin // 2}",
                        f"goes from {one} ({_size(inside, one)}) to {two} ({_size(inside, two)}), "
                        "which have other positions",
                        "Choose two layers with the same positions",
                    )

    def _unlike(self, ours: str, theirs: str, remedy: str) -> SpecError:
        sizes = [
            f"{inside.attention[path]} heads"
            if self.term.looks_at == "attention"
            else _size(inside, path)
            for inside, path in ((self.student, ours), (self.role, theirs))
        ]
        return SpecError(
            self.field,
            f"pairs {ours} of the student ({sizes[0]}) with {theirs} of role {self.term.role} "
            f"({sizes[1]}), which {self.term.kind} cannot compare",  # type: ignore[attr-defined]
            remedy,
        )


def _paired(
    where: str, ours: Sequence[str], theirs: Sequence[str], role: str
) -> list[tuple[str, str]]:
    """Layer i of n with layer i * m / n of m, counted from 1."""
    if len(theirs) % len(ours):
        raise SpecError(
            where,
            f"matches {len(ours)} layers of the student ({_listed(ours)}) and {len(theirs)} of "
            f"role {role} ({_listed(theirs)}), which is no multiple",
            "Name the pairs one by one",
        )
    step = len(theirs) // len(ours)
    return [(one, theirs[(i + 1) * step - 1]) for i, one in enumerate(ours)]


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths[:_SHOWN]) + (", ..." if len(paths) > _SHOWN else "")


def _matches(path: str, pattern: str) -> bool:
    """Part by part, so that `*` does not reach below a layer."""
    parts, patterns = path.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _natural(path: str) -> list[tuple[int, str]]:
    """A key that puts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def _shape(inside: Described, path: str) -> tuple[int, ...]:
    """Channels, then positions."""
    shape = inside.shapes.get(path)
    return (inside.layers[path],) if shape is None else tuple(shape)


def _size(inside: Described, path: str) -> str:
    if path in inside.attention and path not in inside.layers:
        return f"{inside.attention[path]} heads"
    shape = _shape(inside, path)
    return f"width {shape[0]}" if len(shape) == 1 else " x ".join(map(str, shape))


def _called(model: str) -> str:
    return "the student" if model == "student" else f"role {model}"
