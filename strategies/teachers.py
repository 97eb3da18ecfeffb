"""A role's signal as the student sees it: cut to, or filled up to, the student's vocabulary.

`read` makes one of three readers, once for a whole pass. Dense readers give logits of one chunk
of positions at a time, never [N, V] at once; the others hold [N, K] and [N, S].

C positions of a chunk, N positions, V the student's vocabulary.
"""

import torch
from torch import Tensor

from .contract import DenseSignal, HiddenSignal, LogitSignal, SampledSignal, TopKSignal
from .heads import Projection, compute_dtype
from .sampled import known_draws
from .softening import Softened
from .sparse import ABSENT, as_dense, coarse_teacher, split_ids


def positions(signal: LogitSignal) -> int:
    """N: how many positions the signal covers."""
    match signal:
        case HiddenSignal():
            return signal.hidden.shape[0]
        case TopKSignal() | SampledSignal():
            return signal.ids.shape[0]
        case DenseSignal():
            return signal.logits.shape[0]


def mismatch(name: str, count: int, student_count: int) -> str:
    """The message for something that does not cover the student's positions."""
    return (
        f"{name} covers {count} positions, the student's outputs {student_count}; "
        f"both must cover the loss-bearing positions of one batch, in order"
    )


def dense_logits(signal: LogitSignal) -> Tensor | None:
    """[N, V'] logits of a signal for small vocabularies; None for a top k below V' and draws."""
    match signal:
        case HiddenSignal():
            dtype = compute_dtype(signal.hidden)
            return signal.head.logits(signal.hidden.to(dtype)).detach()
        case DenseSignal():
            return signal.logits
        case TopKSignal():
            return as_dense(signal)
        case SampledSignal():
            return None


def dense_width(signal: LogitSignal, role: str) -> int:
    """V' of a signal that has every entry.

    Raises:
        ValueError: it has only some.
    """
    match signal:
        case HiddenSignal():
            return signal.head.weight.shape[0]
        case DenseSignal():
            return signal.logits.shape[1]
    raise ValueError(
        f"the signal of role {role!r} has only some entries ({type(signal).__name__}); serve it in "
        "encoding hidden or full"
    )


class DenseReader:
    """Logits of every entry: encodings `hidden` and `full`, and a top k that keeps everything.

    Attributes:
        width: V.
        has_holes: whether a logit of the student's vocabulary is -inf.
    """

    def __init__(self, source: Tensor, projection: Projection | None, student_width: int) -> None:
        self._projection, self.width = projection, student_width
        if projection is None:
            source = source[:, :student_width]
        self._source = source
        self._width = source.shape[1] if projection is None else projection.width
        self.has_holes = self._width < student_width or (
            projection is None and bool(torch.isneginf(source).any())
        )

    def logits(self, rows: slice, out: Tensor) -> Tensor:
        """Write the logits of `rows` into `out` [C, V], -inf where the teacher has no entry."""
        shared = out[:, : self._width]
        if self._projection is not None:
            self._projection.logits(self._source[rows].detach(), shared)
        else:
            shared.copy_(self._source[rows])
        if self._width < out.shape[1]:
            out[:, self._width :] = -torch.inf
        return out


class CoarseReader:
    """The K + 1 outcomes of a top-k signal that keeps only part of its vocabulary.

    Attributes:
        signal: as it came.
        ids: [N, K] int64, safe to index the student with.
        inside: [N, K] bool: ids that the student has.
        has_holes: whether an outcome may have probability 0.
    """

    def __init__(self, signal: TopKSignal, student_width: int, dtype: torch.dtype) -> None:
        self.signal = signal
        self.ids, self.inside = split_ids(signal.ids, student_width)
        self.has_holes = bool(torch.isneginf(signal.rest).any()) or not bool(self.inside.all())
        self._student_width, self._dtype = student_width, dtype
        self._known: dict[float | int, Softened] = {}

    def outcomes(self, temperature: float | Tensor, rows: slice) -> Softened:
        """[C, K + 1] of `rows` at `temperature`, which is one number or [N]; computed once."""
        key = id(temperature) if isinstance(temperature, Tensor) else temperature
        if key not in self._known:
            log_p = coarse_teacher(self.signal, temperature, self._student_width).to(self._dtype)
            log_p = log_p.masked_fill(log_p < ABSENT / 2, -torch.inf)
            self._known[key] = Softened(log_p, log_p.exp())
        known = self._known[key]
        return Softened(known.log[rows], known.probability[rows])


class DrawReader:
    """The draws of a sampled signal.

    Attributes:
        ids: [N, S] int64, safe to index the student with.
        weights: [N, S], 0 at draws that the student lacks.
        entropy: [N].
    """

    def __init__(self, signal: SampledSignal, student_width: int, dtype: torch.dtype) -> None:
        self.ids, weights = known_draws(signal, student_width)
        self.weights, self.entropy = weights.to(dtype), signal.entropy.to(dtype)


Reader = DenseReader | CoarseReader | DrawReader


def read(signal: LogitSignal, student_width: int, dtype: torch.dtype) -> Reader:
    """The reader of a signal.

    Args:
        signal: any.
        student_width: V.
        dtype: of the arithmetic.
    """
    match signal:
        case HiddenSignal():
            head = Projection(signal.head, signal.hidden.dtype, dtype, width=student_width)
            return DenseReader(signal.hidden, head, student_width)
        case DenseSignal():
            return DenseReader(signal.logits, None, student_width)
        case TopKSignal():
            dense = as_dense(signal)
            if dense is None:
                return CoarseReader(signal, student_width, dtype)
            return DenseReader(dense, None, student_width)
        case SampledSignal():
            return DrawReader(signal, student_width, dtype)
