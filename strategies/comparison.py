"""All vocabulary terms on a few positions: each temperature's softmax once, each teacher's once.

`compare` takes logits and returns the gradient by them; it writes the value of every position,
plain of weights and scales, into the pass's `values`. It keeps nothing of [b, V] alive, so that
callers who pass few rows at a time have all of it in a fast cache. Its core, `compare_at`, has
another form for GPUs in `fused`.

b rows, N positions of the whole pass, V the student's vocabulary, K kept entries, S draws,
M = V or K + 1 outcomes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import kernels
from .kernels import Answer, Pair
from .parts import Part
from .pull import Pull
from .softening import Softened, conditioned, soften
from .sparse import ABSENT, removal
from .teachers import CoarseReader, DenseReader, DrawReader, Reader
from .view import View

SMALLEST_MASS = 1e-30
"""Below this the student's bucket is summed again, relative to its own largest entry."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one pass compares, and where the values go."""

    parts: Sequence[Part]
    targets: Tensor  # [N] int64
    readers: Mapping[str, Reader]
    values: Tensor  # [parts, N], filled in
    with_gradient: bool
    core: "Core"
    directions: Mapping[str, Tensor] = field(default_factory=dict)  # for targets; see `View`
    places: Tensor | None = None  # [N] int64, for targets; see `View`


def compare(
    whole: Comparison,
    rows: slice,
    logits: Tensor,
    theirs: Mapping[str, Tensor],
    out: Tensor | None = None,
) -> Tensor | None:
    """Write the values of `rows`; the gradient of the scaled sum by their logits, if wanted.

    Args:
        whole: the pass.
        rows: which of the N positions these are.
        logits: [b, V], the student's; left as they are.
        theirs: by role, [b, V] logits of those with a dense reader; wider where ranks count.
        out: [b, V], where the gradient may be written, in whatever dtype; `logits` may be it.
    """
    gradient: Tensor | None = None
    groups = _by_temperature(whole.parts)
    place = out if len(groups) == 1 else None
    for temperature, indices in groups:
        column = _column(temperature, rows, logits.dtype)
        view = _view(whole, rows, logits, theirs, column)
        known: dict[str, Tensor] = {}
        asked = [_ask(whole, rows, view, theirs, known, whole.parts[i]) for i in indices]
        values, here = whole.core(logits, column, asked, place)
        for index, value in zip(indices, values, strict=True):
            whole.values[index, rows] = value
        if here is not None:
            gradient = here if gradient is None else gradient.add_(here)
    if gradient is None and whole.with_gradient:
        return torch.zeros_like(logits)
    return gradient


def _by_temperature(parts: Sequence[Part]) -> list[tuple[float | Tensor, list[int]]]:
    """Indices of parts of equal temperature; tensors are equal if they are the same one."""
    groups: dict[float | int, tuple[float | Tensor, list[int]]] = {}
    for index, part in enumerate(parts):
        temperature = part.temperature
        key = id(temperature) if isinstance(temperature, Tensor) else temperature
        groups.setdefault(key, (temperature, []))[1].append(index)
    return list(groups.values())


def _column(number: float | Tensor, rows: slice, dtype: torch.dtype) -> float | Tensor:
    """[N] as [b, 1] in the arithmetic's own dtype; a number as it is."""
    return number[rows].unsqueeze(1).to(dtype) if isinstance(number, Tensor) else number


def _view(
    whole: Comparison,
    rows: slice,
    logits: Tensor,
    theirs: Mapping[str, Tensor],
    temperature: float | Tensor,
) -> View:
    labels = whole.targets[rows]
    places = torch.zeros_like(labels) if whole.places is None else whole.places[rows]
    width = logits.shape[1]
    aligned = {role: of_role[:, :width] for role, of_role in theirs.items()}
    return View(labels, logits, aligned, whole.directions, temperature, places)


@dataclass(frozen=True, slots=True)
class Dense:
    """A role's answer over the whole vocabulary."""

    logits: Tensor  # [b, V], or wider where ranks count
    has_holes: bool
    name: str  # equal ones are the same answer


@dataclass(frozen=True, slots=True)
class Coarse:
    """A role's answer over K + 1 outcomes."""

    outcomes: Softened  # [b, K + 1]
    ids: Tensor  # [b, K]
    inside: Tensor  # [b, K] bool
    has_holes: bool


@dataclass(frozen=True, slots=True)
class Draws:
    """A role's answer as draws."""

    ids: Tensor  # [b, S]
    weights: Tensor  # [b, S]
    entropy: Tensor  # [b]


@dataclass(frozen=True, slots=True)
class Labels:
    """The data's own answer."""

    ids: Tensor  # [b, 1]


@dataclass(frozen=True, slots=True)
class Asked:
    """One part on one block: its numbers, its factor in the gradient, what it learns from."""

    part: Part
    factor: float | Tensor  # or [b, 1]
    answer: Dense | Coarse | Draws | Labels
    labels: Tensor  # [b, 1]
    wanted: bool  # whether its gradient is


def _ask(
    whole: Comparison,
    rows: slice,
    view: View,
    theirs: Mapping[str, Tensor],
    known: dict[str, Tensor],
    part: Part,
) -> Asked:
    """`known` are targets of this block by name, each computed once."""
    wanted = whole.with_gradient and part.scale != 0.0
    factor = _column(part.pull_factor(), rows, whole.values.dtype)
    labels = whole.targets[rows].unsqueeze(1)
    if part.role is None:
        return Asked(part, factor, Labels(labels), labels, wanted)
    match whole.readers[part.role]:
        case DenseReader() if part.target is not None:
            holes = part.target.makes_holes or any(_has_holes(whole, role) for role in part.roles)
            name = f"{part.role} {id(part.target)}"
            if name not in known:
                known[name] = part.target(view, part.role)
            answer = Dense(known[name], holes, name)
        case DenseReader() as reader if part.kind == "universal":
            answer = Dense(theirs[part.role], reader.has_holes, f"{part.role} ranks")
        case DenseReader() as reader:
            answer = Dense(view.role(part.role), reader.has_holes, part.role)
        case CoarseReader() as reader:
            outcomes = reader.outcomes(part.temperature, rows)
            answer = Coarse(outcomes, reader.ids[rows], reader.inside[rows], reader.has_holes)
        case DrawReader() as reader:
            answer = Draws(reader.ids[rows], reader.weights[rows], reader.entropy[rows])
    return Asked(part, factor, answer, labels, wanted)


def _has_holes(whole: Comparison, role: str) -> bool:
    reader = whole.readers[role]
    return isinstance(reader, DenseReader) and reader.has_holes


def compare_at(
    logits: Tensor,
    temperature: float | Tensor,
    asked: Sequence[Asked],
    out: Tensor | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """Parts of one temperature: their values [b], and the gradient by logits if one is wanted.

    Pure: it only reads its arguments.

    Args:
        logits: [b, V], the student's.
        temperature: a number, or [b, 1].
        asked: the parts.
        out: unused; other forms may write the gradient there, and then return it.
    """
    student = soften(logits, temperature)
    pull = Pull(student.probability)
    dense: dict[str, Softened] = {}
    coarse: dict[str | None, _CoarseStudent] = {}
    values: list[Tensor] = []
    for one in asked:
        part, role = one.part, one.part.role
        match one.answer:
            case Labels() as answer:
                value = _labels(student, answer.ids, one, pull)
            case Draws() as answer:
                value = _draws(student, answer, one, pull)
            case Dense() as answer if part.kind == "logits_distance":
                value, gradient = _distance(part, logits, answer, one.wanted)
                if gradient is not None:
                    pull.add_on_logits(gradient * one.factor)
            case Dense() as answer if part.kind == "universal":
                p = soften(answer.logits, temperature).probability
                value, pulled = kernels.universal(p, student.probability, one.wanted)
                if pulled is not None:
                    pull.add(pulled, one.factor)
            case Dense() as answer:
                if answer.name not in dense:
                    dense[answer.name] = soften(answer.logits, temperature)
                value, pulled = diverge(
                    part, dense[answer.name], student, answer.has_holes, one.wanted, one.labels
                )
                if pulled is not None:
                    pull.add(pulled, one.factor)
            case Coarse() as answer:
                if role not in coarse:
                    coarse[role] = _coarsen(student, answer.ids, answer.inside)
                ours = coarse[role]
                value, pulled = diverge(
                    part, answer.outcomes, ours.outcomes, answer.has_holes, one.wanted
                )
                if pulled is not None:
                    ours.spread(pulled * one.factor, pull)
        values.append(value)
    return values, pull.by_logits() if any(one.wanted for one in asked) else None


Core = Callable[
    [Tensor, float | Tensor, Sequence[Asked], Tensor | None],
    tuple[list[Tensor], Tensor | None],
]
"""`compare_at`, or `fused.compare_at`."""


def diverge(
    part: Part,
    teacher: Softened,
    student: Softened,
    has_holes: bool,
    wanted: bool,
    labels: Tensor | None = None,
) -> Answer:
    """A part's divergence between two distributions over the same outcomes: values and pull.

    Rounding may not make a value negative.

    Args:
        part: which, and its numbers.
        teacher: [b, M]; -inf where it has no entry.
        student: [b, M], finite.
        has_holes: whether the teacher may hold -inf.
        wanted: whether the pull is.
        labels: [b, 1], for the divergences that look at them.
    """
    if has_holes and part.needs_support:
        value, pull = _on_support(part, teacher, student, wanted)
    else:
        ratio = teacher.log - student.log
        if has_holes:
            ratio.clamp_min_(torch.finfo(ratio.dtype).min)
        pair = Pair(teacher.probability, teacher.log, student.probability, student.log, ratio)
        value, pull = _kernel(part, pair, wanted, labels)
    return value.clamp_min(0.0), pull


def _distance(part: Part, logits: Tensor, answer: Dense, wanted: bool) -> Answer:
    """[b] hinged squared distances of logits, and their derivative by the student's."""
    gap = logits - part.logit_scale * answer.logits
    if answer.has_holes:
        gap = gap.masked_fill_(torch.isneginf(answer.logits), 0.0)
    share = 1.0 if part.over == "sum" else 1.0 / logits.shape[1]
    beyond = gap.square().sum(1).mul_(share).sub_(part.margin * part.logit_scale)
    outside = (beyond > 0).unsqueeze(1)
    return beyond.clamp_min(0.0), gap.mul_(outside).mul_(2 * share) if wanted else None


def _on_support(part: Part, teacher: Softened, student: Softened, wanted: bool) -> Answer:
    """The same with the student conditioned on the outcomes that the teacher has."""
    holes = torch.isneginf(teacher.log)
    within = conditioned(student, holes)
    q = within.probability
    log_p, log_q = teacher.log.masked_fill(holes, 0.0), within.log.masked_fill(holes, 0.0)
    pair = Pair(teacher.probability, log_p, q, log_q, log_p - log_q)
    value, pull = _kernel(part, pair, wanted)
    if pull is not None:  # what moves the student's logits must not see what lies in the holes
        pull = torch.addcmul(pull, q, pull.sum(1, keepdim=True), value=-1.0)
    return value, pull


def _kernel(part: Part, pair: Pair, wanted: bool, labels: Tensor | None = None) -> Answer:
    match part.kind:
        case "forward_kl":
            return kernels.forward_kl(pair, wanted)
        case "reverse_kl":
            return kernels.reverse_kl(pair, wanted)
        case "jensen_shannon":
            return kernels.jensen_shannon(pair, part.beta, wanted)
        case "skewed_forward_kl":
            return kernels.skewed_forward_kl(pair, part.skew, wanted)
        case "skewed_reverse_kl":
            return kernels.skewed_reverse_kl(pair, part.skew, wanted)
        case "total_variation":
            return kernels.total_variation(pair, wanted)
        case "alpha_beta":
            return kernels.alpha_beta(pair, part.alpha, part.beta, wanted)
        case "adaptive_kl":
            return kernels.adaptive_kl(pair, part.head_mass, wanted)
        case "decoupled":
            assert labels is not None
            weights = part.label_weight, part.others_weight
            return kernels.decoupled(pair, labels, *weights, wanted)
        case "cross_entropy" | "logits_distance" | "universal":
            raise AssertionError(f"{part.kind} compares no distributions")


def _labels(student: Softened, ids: Tensor, asked: Asked, pull: Pull) -> Tensor:
    """[b] cross entropy against the data's labels."""
    smoothing = asked.part.label_smoothing
    value = student.log.gather(1, ids).squeeze(1) * (smoothing - 1)
    if smoothing:
        value = value - smoothing * student.log.mean(1)
    if asked.wanted:
        hit = torch.full_like(ids, smoothing - 1, dtype=student.log.dtype)
        pull.add_at(ids, hit * asked.factor)
        if smoothing:
            pull.add_everywhere(asked.factor * (-smoothing / student.log.shape[1]))
    return value


def _draws(student: Softened, draws: Draws, asked: Asked, pull: Pull) -> Tensor:
    """[b] estimates of forward KL at temperature 1."""
    if asked.wanted:
        pull.add_at(draws.ids, draws.weights * asked.factor * -1.0)
    return -(draws.weights * student.log.gather(1, draws.ids)).sum(1) - draws.entropy


@dataclass(frozen=True, slots=True)
class _CoarseStudent:
    """The student over the K + 1 outcomes of a top-k teacher, and the way back."""

    outcomes: Softened  # [b, K + 1]
    ids: Tensor  # [b, K]
    inside: Tensor  # [b, K]
    others: Tensor  # [b, V]: proportional to the entries of the bucket, 0 at kept ones
    others_mass: Tensor  # [b, 1]: their sum

    def spread(self, pull: Tensor, total: Pull) -> None:
        """Add a pull on the outcomes' logarithms to that on the vocabulary's."""
        total.add_at(self.ids, pull[:, :-1].masked_fill(~self.inside, 0.0))
        total.add(self.others, pull[:, -1:] / self.others_mass)


def _coarsen(student: Softened, ids: Tensor, inside: Tensor) -> _CoarseStudent:
    """Gather the kept entries and sum up the others, accurately however little they are."""
    q, dropped = student.probability, ~inside
    kept = student.log.gather(1, ids).masked_fill_(dropped, ABSENT)
    others = q.scatter_add(1, ids, q.gather(1, ids).masked_fill_(dropped, 0.0).neg_())
    mass = others.sum(1, keepdim=True)
    log_mass, small = mass.log(), mass < SMALLEST_MASS
    if small.any():
        log_others = student.log.scatter_add(1, ids, removal(inside, q.dtype))
        peak = log_others.amax(1, keepdim=True)
        anew = log_others.sub_(peak).exp_()
        anew_mass = anew.sum(1, keepdim=True)
        others, mass = torch.where(small, anew, others), torch.where(small, anew_mass, mass)
        log_mass = torch.where(small, peak + anew_mass.log(), log_mass)
    return _CoarseStudent(soften(torch.cat([kept, log_mass], 1)), ids, inside, others, mass)
