"""A role's signal as logits of one chunk of positions at a time. Never [N, V] at once.

C positions of a chunk, N positions, V the student's vocabulary.
"""

import torch
from torch import Tensor

from .contract import DenseSignal, HiddenSignal, LogitSignal, TopKSignal
from .heads import Projection, compute_dtype
from .sparse import as_dense


def positions(signal: LogitSignal) -> int:
    """N: how many positions the signal covers."""
    match signal:
        case HiddenSignal():
            return signal.hidden.shape[0]
        case TopKSignal():
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
    """[N, V'] logits of a signal for small vocabularies; None for a top k below V'."""
    match signal:
        case HiddenSignal():
            dtype = compute_dtype(signal.hidden)
            return signal.head.logits(signal.hidden.to(dtype)).detach()
        case DenseSignal():
            return signal.logits
        case TopKSignal():
            return as_dense(signal)


class TeacherReader:
    """Reads a signal as the student sees it: cut to, or filled up to, the student's vocabulary.

    Attributes:
        topk: the signal, if it keeps only part of its vocabulary; then there are no logits.
        width: entries that both vocabularies have.
        has_holes: whether logits may hold -inf.
    """

    def __init__(self, signal: LogitSignal, student_width: int, dtype: torch.dtype) -> None:
        self.topk: TopKSignal | None = None
        self.width, self.has_holes = student_width, True
        match signal:
            case HiddenSignal():
                self._source = signal.hidden
                self._projection = Projection(
                    signal.head, signal.hidden.dtype, dtype, width=student_width
                )
                self.width = self._projection.width
                self.has_holes = self.width < student_width
            case DenseSignal():
                self._read_dense(signal.logits)
            case TopKSignal():
                dense = as_dense(signal)
                if dense is None:
                    self.topk = signal
                else:
                    self._read_dense(dense)

    def _read_dense(self, logits: Tensor) -> None:
        self._source, self._projection = logits[:, : self.width], None
        self.width = self._source.shape[1]

    def logits(self, rows: slice, out: Tensor) -> Tensor:
        """Write the logits of `rows` into `out` [C, V], -inf where the teacher has no entry."""
        shared = out[:, : self.width]
        if self._projection is not None:
            self._projection.logits(self._source[rows].detach(), shared)
        else:
            shared.copy_(self._source[rows])
        if self.width < out.shape[1]:
            out[:, self.width :] = -torch.inf
        return out
