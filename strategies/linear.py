"""Vocabulary terms from hidden states and output heads, in one chunked pass: [N, V] never exists.

`vocabulary_loss` computes the student's logits of one chunk once, lets every term of the objective
look at them, and turns the summed gradient by logits into gradients by hidden state, weight and
bias right away. They are ready when the forward ends; the backward only multiplies them by the
incoming gradient. The weight is not kept for the backward, so a partitioned parameter may be
released in between.

The formulas are those of `strategies.divergences`, for top-k teachers those of
`strategies.sparse`. Vocabularies of unequal width are treated as those modules say.

C positions of a chunk, N positions, V the student's vocabulary, d width, K kept entries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .comparison import Part, compare_chunk
from .contract import Head, LogitSignal
from .heads import Projection, Workspace, chunks, compute_dtype
from .kernels import Gradient
from .teachers import TeacherReader, mismatch, positions


def vocabulary_loss(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    signals: Mapping[str, LogitSignal],
    parts: Sequence[Part],
) -> tuple[Tensor, Tensor]:
    """The scaled sum of all parts, and each part's own sum over positions.

    Call it where the head's weight is whole (inside the head module's forward under ZeRO-3). With
    N = 0 the loss is 0 and still reaches hidden, weight and bias. Without grad mode, and for a
    frozen weight, bias or hidden, the gradients in question are not computed. Backward works once.

    Args:
        hidden: [N, d] student's last hidden states, any float dtype.
        head: the student's output head.
        targets: [N] int64 in [0, V).
        signals: by role; each covers the N positions.
        parts: the terms; at least one.

    Returns:
        Scalar float32 `sum of scale * total`, differentiable once; and [len(parts)] float32
        totals, constant. (float64 for float64 inputs.)

    Raises:
        ValueError: a signal covers another number of positions, or cannot answer a temperature.
    """
    _check_lengths(hidden, targets, signals, parts)
    plan = _Plan(head, targets, signals, tuple(parts), torch.is_grad_enabled())
    loss, totals = _VocabularyLoss.apply(hidden, head.weight, head.bias, plan)
    return loss, totals


def _check_lengths(
    hidden: Tensor,
    targets: Tensor,
    signals: Mapping[str, LogitSignal],
    parts: Sequence[Part],
) -> None:
    counts = {"targets": targets.shape[0]}
    for role in {part.role for part in parts if part.role is not None}:
        if role not in signals:
            raise ValueError(f"no signal for role {role!r}; signals hold {sorted(signals)}")
        counts[f"signal of {role!r}"] = positions(signals[role])
    for name, count in counts.items():
        if count != hidden.shape[0]:
            raise ValueError(mismatch(name, count, hidden.shape[0]))


@dataclass(frozen=True, slots=True)
class _Plan:
    """The arguments of one pass that autograd need not see."""

    head: Head
    targets: Tensor
    signals: Mapping[str, LogitSignal]
    parts: tuple[Part, ...]
    want_gradients: bool


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan):
        wanted = tuple(plan.want_gradients and needed for needed in ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            totals, gradients = _sweep(hidden, plan, wanted)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        scales = torch.tensor([part.scale for part in plan.parts], dtype=totals.dtype)
        loss = (totals * scales.to(totals.device)).sum()
        result = compute_dtype(hidden, weight)
        loss, totals = loss.to(result), totals.to(result)
        ctx.mark_non_differentiable(totals)
        return loss, totals

    @staticmethod
    @once_differentiable
    def backward(ctx, *output_gradients: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        # In place: a second copy of [V, d] would double the peak. Autograd notices a second use.
        ready = [
            None if gradient is None else gradient.mul_(output_gradients[0]).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *ready, None


def _sweep(
    hidden: Tensor, plan: _Plan, wanted: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """float64 totals [parts], and the wanted gradients by hidden, weight and bias, or None."""
    head = plan.head
    dtype, device = compute_dtype(hidden, head.weight), hidden.device
    student = Projection(head, hidden.dtype, dtype)
    teachers = {
        role: TeacherReader(plan.signals[role], student.width, dtype)
        for role in dict.fromkeys(part.role for part in plan.parts if part.role is not None)
    }
    by_hidden = torch.empty_like(hidden, dtype=dtype) if wanted[0] else None
    by_weight = torch.zeros_like(head.weight, dtype=dtype) if wanted[1] else None
    by_bias = (
        torch.zeros_like(head.bias, dtype=dtype) if wanted[2] and head.bias is not None else None
    )
    totals = torch.zeros(len(plan.parts), dtype=torch.float64, device=device)
    work = Workspace(dtype, device)
    for rows in chunks(hidden.shape[0], student.width, device):
        part_hidden = hidden[rows].detach()
        size = part_hidden.shape[0]
        logits = student.logits(part_hidden, work.take("student", size, student.width))
        gradient = Gradient(work.take("gradient", size, student.width)) if any(wanted) else None
        compare_chunk(
            logits, plan.targets[rows], rows, teachers, plan.parts, work, gradient, totals
        )
        if gradient is None:
            continue
        by_logits = gradient.total()
        student.undo_softcap(by_logits, logits)
        if by_hidden is not None:
            student.hidden_gradient(by_logits, by_hidden[rows])
        if by_weight is not None:
            student.add_weight_gradient(by_logits, part_hidden, by_weight)
        if by_bias is not None:
            student.add_bias_gradient(by_logits, by_bias)
    return totals, (by_hidden, by_weight, by_bias)
