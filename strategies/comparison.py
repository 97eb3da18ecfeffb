"""All vocabulary terms on a few positions: each temperature's softmax once, each teacher's once.

`compare` takes logits and returns the gradient by them; it writes the value of every position,
plain of weights and scales, into the pass's `values`. It keeps nothing of [b, V] alive, so that
callers who pass few rows at a time have all of it in a fast cache. Its core, `compare_at`, is a
pure function of tensors, which `fusion` may compile.

b rows, N positions of the whole pass, V the student's vocabulary, K kept entries, S draws,
M = V or K + 1 outcomes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import kernels
from .kernels import Answer, Pair
from .softening import Softened, conditioned, soften
from .sparse import ABSENT, removal
from .teachers import CoarseReader, DenseReader, DrawReader, Reader

SMALLEST_MASS = 1e-30
"""Below this the student's bucket is summed again, relative to its own largest entry."""

Kind = Literal[
    "cross_entropy",
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "total_variation",
    "alpha_beta",
]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One vocabulary term with the numbers of this step. Fields that a kind lacks are unused."""

    kind: Kind
    scale: float = 1.0
    """What the term's sum is multiplied by in the loss; 0: reported, but without a gradient."""
    role: str | None = None
    temperature: float | Tensor = 1.0
    """Of all positions, or [N]; above 0."""
    beta: float = 0.5
    label_smoothing: float = 0.0
    skew: float = 0.1
    alpha: float = 0.5
    position_weight: Tensor | None = None
    """[N]: what each position's value counts in the sum; None: 1."""

    @property
    def needs_support(self) -> bool:
        """Whether the value is infinite where the teacher has probability 0 and the student not.

        Such a term compares the student conditioned on the entries that the teacher has.
        """
        if self.kind == "alpha_beta":
            return self.alpha <= 0 or self.alpha + self.beta <= 0
        return self.kind == "reverse_kl"

    def value_factor(self) -> float | Tensor:
        """What a position's value counts in the term's sum: a number, or [N].

        Weight times T^2, which keeps gradients of one size across temperatures; total variation,
        whose value falls as 1 / T only, gets T.
        """
        power = self.temperature if self.kind == "total_variation" else self.temperature**2
        return power if self.position_weight is None else power * self.position_weight

    def pull_factor(self) -> float | Tensor:
        """What a position's pull counts in the loss's derivative by logits: a number, or [N]."""
        return self.scale * (self.value_factor() / self.temperature)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one pass compares, and where the values go."""

    parts: Sequence[Part]
    targets: Tensor  # [N] int64
    readers: Mapping[str, Reader]
    values: Tensor  # [parts, N], filled in
    with_gradient: bool
    core: "Core"


def compare(
    whole: Comparison, rows: slice, logits: Tensor, theirs: Mapping[str, Tensor]
) -> Tensor | None:
    """Write the values of `rows`; the gradient of the scaled sum by their logits, if wanted.

    Args:
        whole: the pass.
        rows: which of the N positions these are.
        logits: [b, V], the student's; left as they are.
        theirs: by role, [b, V] logits of those with a dense reader.
    """
    gradient: Tensor | None = None
    for temperature, indices in _by_temperature(whole.parts):
        asked = [_ask(whole, rows, theirs, whole.parts[index]) for index in indices]
        values, here = whole.core(logits, _column(temperature, rows, logits.dtype), asked)
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


@dataclass(frozen=True, slots=True)
class Dense:
    """A role's answer over the whole vocabulary."""

    logits: Tensor  # [b, V]
    has_holes: bool


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
    wanted: bool  # whether its gradient is


def _ask(whole: Comparison, rows: slice, theirs: Mapping[str, Tensor], part: Part) -> Asked:
    wanted = whole.with_gradient and part.scale != 0.0
    factor = _column(part.pull_factor(), rows, whole.values.dtype)
    if part.role is None:
        return Asked(part, factor, Labels(whole.targets[rows].unsqueeze(1)), wanted)
    match whole.readers[part.role]:
        case DenseReader() as reader:
            answer = Dense(theirs[part.role], reader.has_holes)
        case CoarseReader() as reader:
            outcomes = reader.outcomes(part.temperature, rows)
            answer = Coarse(outcomes, reader.ids[rows], reader.inside[rows], reader.has_holes)
        case DrawReader() as reader:
            answer = Draws(reader.ids[rows], reader.weights[rows], reader.entropy[rows])
    return Asked(part, factor, answer, wanted)


class _Pull:
    """The sum of many pulls on one student's logarithms, dense ones and those at a few ids."""

    def __init__(self, q: Tensor) -> None:
        self._q = q
        self._dense: Tensor | None = None
        self._everywhere: list[float | Tensor] = []
        self._at: list[tuple[Tensor, Tensor]] = []

    def add(self, pull: Tensor, factor: float | Tensor) -> None:
        """+= factor * pull; both broadcast to [b, V]."""
        if self._dense is None:
            self._dense = pull * factor
        elif isinstance(factor, Tensor):
            self._dense.addcmul_(pull, factor)
        else:
            self._dense.add_(pull, alpha=factor)

    def add_everywhere(self, number: float | Tensor) -> None:
        """+= a number, or [b, 1], at all V entries."""
        self._everywhere.append(number)

    def add_at(self, ids: Tensor, values: Tensor) -> None:
        """[:, ids] += values; both [b, K]; repeated ids add up."""
        self._at.append((ids, values))

    def by_logits(self) -> Tensor:
        """[b, V]: pull - q * sum(pull), the derivative by the logits of q."""
        total = sum((values.sum(1, keepdim=True) for _, values in self._at), start=0.0)
        total = total + sum(number * self._q.shape[1] for number in self._everywhere)
        if self._dense is None:
            gradient = self._q * -total
        else:
            total = total + self._dense.sum(1, keepdim=True)
            gradient = self._dense.addcmul_(self._q, total, value=-1.0)
        for number in self._everywhere:
            gradient.add_(number)
        for ids, values in self._at:
            gradient.scatter_add_(1, ids, values)
        return gradient


def compare_at(
    logits: Tensor, temperature: float | Tensor, asked: Sequence[Asked]
) -> tuple[list[Tensor], Tensor | None]:
    """Parts of one temperature: their values [b], and the gradient by logits if one is wanted.

    Pure: it only reads its arguments, and does the same to tensors in place of numbers.

    Args:
        logits: [b, V], the student's.
        temperature: a number, or [b, 1].
        asked: the parts.
    """
    student = soften(logits, temperature)
    pull = _Pull(student.probability)
    dense: dict[str | None, Softened] = {}
    coarse: dict[str | None, _CoarseStudent] = {}
    values: list[Tensor] = []
    for one in asked:
        part, role = one.part, one.part.role
        match one.answer:
            case Labels() as answer:
                value = _labels(student, answer.ids, one, pull)
            case Draws() as answer:
                value = _draws(student, answer, one, pull)
            case Dense() as answer:
                if role not in dense:
                    dense[role] = soften(answer.logits, temperature)
                value, pulled = diverge(part, dense[role], student, answer.has_holes, one.wanted)
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


Core = Callable[[Tensor, float | Tensor, Sequence[Asked]], tuple[list[Tensor], Tensor | None]]
"""`compare_at`, or a compiled form of it."""


def diverge(
    part: Part, teacher: Softened, student: Softened, has_holes: bool, wanted: bool
) -> Answer:
    """A part's divergence between two distributions over the same outcomes: values and pull.

    Rounding may not make a value negative.

    Args:
        part: which, and its numbers.
        teacher: [b, M]; -inf where it has no entry.
        student: [b, M], finite.
        has_holes: whether the teacher may hold -inf.
        wanted: whether the pull is.
    """
    if has_holes and part.needs_support:
        value, pull = _on_support(part, teacher, student, wanted)
    else:
        ratio = teacher.log - student.log
        if has_holes:
            ratio.clamp_min_(torch.finfo(ratio.dtype).min)
        pair = Pair(teacher.probability, teacher.log, student.probability, student.log, ratio)
        value, pull = _kernel(part, pair, wanted)
    return value.clamp_min(0.0), pull


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


def _kernel(part: Part, pair: Pair, wanted: bool) -> Answer:
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
        case "cross_entropy":
            raise AssertionError("labels are not a role")


def _labels(student: Softened, ids: Tensor, asked: Asked, pull: _Pull) -> Tensor:
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


def _draws(student: Softened, draws: Draws, asked: Asked, pull: _Pull) -> Tensor:
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

    def spread(self, pull: Tensor, total: _Pull) -> None:
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
