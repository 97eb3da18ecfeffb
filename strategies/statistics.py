"""Sums over positions for evaluation: likelihood, accuracy, calibration, agreement, divergence.

Chunked like the loss, never with gradients. Every value is a sum, so that chunks, batches and
ranks add up; the caller divides.

C positions of a chunk, N positions, V the student's vocabulary.
"""

import torch
from torch import Tensor

from .comparison import Comparison, compare, compare_at
from .contract import Batch, LogitSignal, Outputs
from .heads import Workspace, blocks, chunks
from .parts import Part
from .student import StudentLogits
from .teachers import CoarseReader, DenseReader, Reader, mismatch, positions, read

CALIBRATION_BINS = 15
"""Equal bins over [0, 1] of the probability of the likeliest entry."""

_ROLE = "compared"
_KL = Part("forward_kl", role=_ROLE)

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
        also `kl` (KL(role || student) at temperature 1; for a top-k signal over its K + 1
        outcomes, for draws their unbiased estimate); with one that knows the role's likeliest
        entry, so not draws, `teacher_correct` and `agreement` (same likeliest entry); with one
        that knows the probability of every target, so neither draws nor part of a vocabulary,
        `teacher_nll`. The role is seen through the student's vocabulary: without the entries
        that the student lacks.

    Raises:
        ValueError: outputs, targets and signal cover different numbers of positions.
    """
    student = StudentLogits(outputs)
    targets, width, like = batch.kept_targets, student.width, student.like
    _check("targets", targets.shape[0], like.shape[0])
    work = Workspace(student.dtype, like.device)
    sums = _zeros(like.device)
    whole = None
    if signal is not None:
        _check("signal", positions(signal), like.shape[0])
        reader = read(signal, width, work.dtype)
        values = torch.empty(1, like.shape[0], dtype=work.dtype, device=like.device)
        whole = Comparison((_KL,), targets, {_ROLE: reader}, values, False, compare_at)
        sums |= {name: _zero(like.device) for name in _known(reader)}
    for rows in chunks(like.shape[0], width, like.device):
        logits = student.write(rows, work.take("student", rows.stop - rows.start, width))
        best = _add_student(sums, logits, targets[rows])
        if whole is not None:
            _add_role(sums, whole, rows, logits, best, work)
    if whole is not None:
        sums["kl"] += whole.values.sum(dtype=torch.float64)
    return sums


def _check(name: str, count: int, student_count: int) -> None:
    if count != student_count:
        raise ValueError(mismatch(name, count, student_count))


def _zeros(device: torch.device) -> Sums:
    bins = ("calibration_count", "calibration_confidence", "calibration_correct")
    scalars = {name: _zero(device) for name in ("nll", "count", "correct")}
    return scalars | {name: _zero(device, CALIBRATION_BINS) for name in bins}


def _known(reader: Reader) -> tuple[str, ...]:
    """The sums that a role's signal can answer."""
    match reader:
        case DenseReader():
            return "kl", "teacher_correct", "agreement", "teacher_nll"
        case CoarseReader():
            return "kl", "teacher_correct", "agreement"
    return ("kl",)


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


def _add_role(
    sums: Sums, whole: Comparison, rows: slice, logits: Tensor, best: Tensor, work: Workspace
) -> None:
    """Write the chunk's KL and add what the role's signal knows beside it.

    Args:
        sums: added to.
        whole: the comparison with the role.
        rows: of the chunk.
        logits: [C, V], the student's.
        best: [C], its likeliest entries.
        work: buffers.
    """
    targets, reader = whole.targets[rows], whole.readers[_ROLE]
    theirs, likeliest = None, None
    if isinstance(reader, DenseReader):
        theirs = reader.logits(rows, work.take("teacher", logits.shape[0], logits.shape[1]))
        nll = torch.logsumexp(theirs, 1) - _at(theirs, targets)
        sums["teacher_nll"] += nll.sum(dtype=torch.float64)
        likeliest = theirs.argmax(1)
    elif isinstance(reader, CoarseReader):
        likeliest = _at(reader.signal.ids[rows], reader.signal.logprobs[rows].argmax(1))
    if likeliest is not None:
        sums["teacher_correct"] += (likeliest == targets).sum()
        sums["agreement"] += (likeliest == best).sum()
    for block in blocks(logits.shape[0], logits.shape[1], logits.device):
        inside = slice(rows.start + block.start, rows.start + block.stop)
        compare(whole, inside, logits[block], {} if theirs is None else {_ROLE: theirs[block]})


def _at(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(1, ids.unsqueeze(1)).squeeze(1)
