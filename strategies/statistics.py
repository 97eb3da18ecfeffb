"""Sums over positions for evaluation: likelihood, accuracy, calibration, agreement, divergence.

Chunked like the loss, never with gradients. Every value is a sum, so that chunks, batches and
ranks add up; the caller divides.

C positions of a chunk, N positions, V the student's vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .comparison import Part, compare_coarse, compare_dense
from .contract import Batch, LogitSignal, Outputs, TopKSignal
from .heads import Projection, Workspace, chunks, compute_dtype
from .teachers import TeacherReader, mismatch, positions

CALIBRATION_BINS = 15
"""Equal bins over [0, 1] of the probability of the likeliest entry."""

_ROLE = "compared"
_KL = ((0, Part("forward_kl", role=_ROLE)),)

Sums = dict[str, Tensor]


@torch.no_grad()
def position_statistics(outputs: Outputs, batch: Batch, signal: LogitSignal | None) -> Sums:
    """Sums over the batch's N loss-bearing positions, float64; N may be 0.

    Args:
        outputs: the student's.
        batch: gives the targets.
        signal: of the role to compare with, or None.

    Returns:
        Scalars `nll` (nats), `count`, `correct` (the likeliest entry is the target); and by bin of
        the likeliest entry's probability, [CALIBRATION_BINS], `calibration_count`,
        `calibration_confidence` (sum of that probability), `calibration_correct`. With a signal
        also `teacher_correct`, `agreement` (same likeliest entry), `kl` (KL(role || student) at
        temperature 1, for a top-k signal over its K + 1 outcomes), and `teacher_nll` - not for
        a top-k signal that keeps only part of its vocabulary, which does not know the
        probability of every target. The role is seen through the student's vocabulary: without
        the entries that the student lacks.

    Raises:
        ValueError: outputs, targets and signal cover different numbers of positions.
    """
    student, width, like = _student_logits(outputs)
    targets = batch.kept_targets
    _check("targets", targets.shape[0], like.shape[0])
    work = Workspace(compute_dtype(like), like.device)
    sums = _zeros(like.device)
    reader = None
    if signal is not None:
        _check("signal", positions(signal), like.shape[0])
        reader = TeacherReader(signal, width, work.dtype)
        sums |= _compared_zeros(reader, like.device)
    for rows in chunks(like.shape[0], width, like.device):
        logits = student(rows, work.take("student", rows.stop - rows.start, width))
        best = _add_student(sums, logits, targets[rows])
        if reader is None:
            continue
        if reader.topk is None:
            likeliest = _add_dense(sums, reader, logits, targets[rows], rows, work)
        else:
            likeliest = _add_topk(sums, reader.topk, logits, rows, work)
        sums["teacher_correct"] += (likeliest == targets[rows]).sum()
        sums["agreement"] += (likeliest == best).sum()
    return sums


def _check(name: str, count: int, student_count: int) -> None:
    if count != student_count:
        raise ValueError(mismatch(name, count, student_count))


def _student_logits(
    outputs: Outputs,
) -> tuple[Callable[[slice, Tensor], Tensor], int, Tensor]:
    """How to write a chunk's logits, their width, and a tensor with N rows."""
    if outputs.hidden is not None and outputs.head is not None:
        hidden = outputs.hidden
        dtype = compute_dtype(hidden, outputs.head.weight)
        projection = Projection(outputs.head, hidden.dtype, dtype)
        return lambda rows, out: projection.logits(hidden[rows], out), projection.width, hidden
    if outputs.logits is None:
        raise ValueError("outputs hold neither (hidden, head) nor logits; the model must give one")
    logits = outputs.logits
    return lambda rows, out: out.copy_(logits[rows]), logits.shape[1], logits


def _zeros(device: torch.device) -> Sums:
    bins = ("calibration_count", "calibration_confidence", "calibration_correct")
    scalars = {name: _zero(device) for name in ("nll", "count", "correct")}
    return scalars | {name: _zero(device, CALIBRATION_BINS) for name in bins}


def _compared_zeros(reader: TeacherReader, device: torch.device) -> Sums:
    known = ("teacher_nll",) if reader.topk is None else ()
    return {name: _zero(device) for name in ("teacher_correct", "agreement", "kl", *known)}


def _zero(device: torch.device, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=device)


def _add_student(sums: Sums, logits: Tensor, targets: Tensor) -> Tensor:
    """Add what the student alone shows; returns its likeliest entries, [C]."""
    log_normaliser = torch.logsumexp(logits, 1)
    top, best = logits.max(1)
    correct = (best == targets).double()
    confidence = (top - log_normaliser).exp().double()
    bins = (confidence * CALIBRATION_BINS).long().clamp_(max=CALIBRATION_BINS - 1)
    sums["nll"] += (log_normaliser - _at(logits, targets)).sum(dtype=torch.float64)
    sums["count"] += targets.shape[0]
    sums["correct"] += correct.sum()
    sums["calibration_count"].index_add_(0, bins, torch.ones_like(confidence))
    sums["calibration_confidence"].index_add_(0, bins, confidence)
    sums["calibration_correct"].index_add_(0, bins, correct)
    return best


def _add_dense(
    sums: Sums, reader: TeacherReader, logits: Tensor, targets: Tensor, rows: slice, work: Workspace
) -> Tensor:
    """Add KL and likelihood of a role with logits; returns its likeliest entries, [C]."""
    theirs = reader.logits(rows, work.take("teacher", *logits.shape))
    compare_dense(
        logits, targets, {_ROLE: reader}, {_ROLE: theirs}, _KL, work, None, sums["kl"].view(1)
    )
    nll = torch.logsumexp(theirs, 1) - _at(theirs, targets)
    sums["teacher_nll"] += nll.sum(dtype=torch.float64)
    return theirs.argmax(1)


def _add_topk(
    sums: Sums, signal: TopKSignal, logits: Tensor, rows: slice, work: Workspace
) -> Tensor:
    """Add the KL of a top-k role; returns its likeliest entries, [C]."""
    compare_coarse(logits, signal, rows, _KL, work, None, sums["kl"].view(1))
    best = signal.logprobs[rows].argmax(1)
    return _at(signal.ids[rows], best)


def _at(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(1, ids.unsqueeze(1)).squeeze(1)
