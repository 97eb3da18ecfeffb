"""Vocabulary terms from hidden states and output heads, in one chunked pass: [N, V] never exists.

`vocabulary_loss` computes the student's logits of one chunk once, lets every term of the objective
look at them, and turns the summed gradient by logits into gradients by hidden state, weight and
bias right away. They are ready when the forward ends; the backward only multiplies them by the
incoming gradient. The weight is not kept for the backward, so a partitioned parameter may be
released in between. `logits_loss` is the same for a student that gives logits.

Vocabularies of unequal width are treated as `strategies.teachers` says.

C positions of a chunk, N positions, V the student's vocabulary, d width, K kept entries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from . import fused
from .comparison import Comparison, compare, compare_at
from .contract import Head, HiddenSignal, LogitSignal, SampledSignal
from .heads import Projection, Workspace, blocks, chunks, compute_dtype, pieces
from .parts import Part
from .sampled import refusal
from .teachers import DenseReader, dense_width, mismatch, positions, read


def vocabulary_loss(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    signals: Mapping[str, LogitSignal],
    parts: Sequence[Part],
    places: Tensor | None = None,
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
        places: [N] int64 for targets, as `view.View` says.

    Returns:
        Scalar float32 `sum of scale * total`, differentiable once; and [len(parts)] float32
        totals, constant. (float64 for float64 inputs.)

    Raises:
        ValueError: something covers another number of positions, or a signal cannot answer a
            temperature or a term.
    """
    check(hidden.shape[0], targets, signals, parts)
    plan = _Plan(targets, signals, tuple(parts), torch.is_grad_enabled(), places)
    loss, totals = _VocabularyLoss.apply(hidden, head.weight, head.bias, head, plan)
    return loss, totals


def logits_loss(
    logits: Tensor,
    targets: Tensor,
    signals: Mapping[str, LogitSignal],
    parts: Sequence[Part],
    places: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `vocabulary_loss` for a student whose [N, V] logits are there anyway."""
    check(logits.shape[0], targets, signals, parts)
    plan = _Plan(targets, signals, tuple(parts), torch.is_grad_enabled(), places)
    loss, totals = _LogitsLoss.apply(logits, plan)
    return loss, totals


def check(
    count: int,
    targets: Tensor,
    signals: Mapping[str, LogitSignal],
    parts: Sequence[Part],
) -> None:
    """Refuse what does not fit `count` positions of the student, or a signal its term cannot use.

    Raises:
        ValueError: with the name, the value, the limit and the remedy.
    """
    counts = {"targets": targets.shape[0]}
    for part in parts:
        for name in ("temperature", "position_weight"):
            given = getattr(part, name)
            if isinstance(given, Tensor):
                counts[f"{name} of {part.kind}"] = given.shape[0]
        for role in part.roles:
            if role not in signals:
                raise ValueError(f"no signal for role {role!r}; signals hold {sorted(signals)}")
            signal = signals[role]
            counts[f"signal of {role!r}"] = positions(signal)
            drawn = isinstance(signal, SampledSignal)
            if part.needs_every_entry:
                dense_width(signal, role)
            reason = refusal(part.kind, part.temperature) if drawn else None
            if reason is not None:
                raise ValueError(f"role {role!r}: {reason}")
    for name, covered in counts.items():
        if covered != count:
            raise ValueError(mismatch(name, covered, count))


@dataclass(frozen=True, slots=True)
class _Plan:
    """The arguments of one pass that autograd need not see."""

    targets: Tensor
    signals: Mapping[str, LogitSignal]
    parts: tuple[Part, ...]
    want_gradients: bool
    places: Tensor | None

    def comparison(
        self, count: int, width: int, like: Tensor, dtype: torch.dtype, with_gradient: bool
    ) -> Comparison:
        """The pass over `count` positions of a student with `width` entries."""
        roles = list(dict.fromkeys(role for part in self.parts for role in part.roles))
        signals = {role: self.signals[role] for role in roles}
        # What compares ranks sees entries that the student lacks.
        wider = {
            role: max(width, dense_width(signals[role], role))
            for part in self.parts
            for role in part.roles
            if part.kind == "universal"
        }
        return Comparison(
            self.parts,
            self.targets,
            {role: read(s, wider.get(role, width), dtype) for role, s in signals.items()},
            torch.empty(len(self.parts), count, dtype=dtype, device=like.device),
            with_gradient,
            fused.compare_at if like.device.type == "cuda" else compare_at,
            self._directions(dtype),
            self.places,
        )

    def _directions(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """By role whose entries a target compares, its head's rows at length 1."""
        heads = {
            part.role: signal.head.weight.detach()
            for part in self.parts
            if part.target is not None and part.target.compares_entries and part.role is not None
            if isinstance(signal := self.signals[part.role], HiddenSignal)
        }
        return {role: normalize(weight.to(dtype), dim=1) for role, weight in heads.items()}

    def results(self, totals: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Loss and totals in the result's dtype."""
        # Number by number: a tensor of scales would have the processor wait for the device.
        pairs = zip(self.parts, totals, strict=True)
        loss = sum((total * part.scale for part, total in pairs), start=totals.new_zeros(()))
        return loss.to(dtype), totals.to(dtype)


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, plan: _Plan):
        wanted = tuple(plan.want_gradients and needed for needed in ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            totals, gradients = _sweep(hidden, head, plan, wanted)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        loss, totals = plan.results(totals, compute_dtype(hidden, weight))
        ctx.mark_non_differentiable(totals)
        return loss, totals

    @staticmethod
    @once_differentiable
    def backward(ctx, *output_gradients: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        # In place: a second copy of [V, d] would double the peak. Autograd notices a second use.
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ready = [_scaled(gradient, output_gradients[0], dtype) for gradient, dtype in pairs]
        return *ready, None, None


class _LogitsLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, plan: _Plan):
        wanted = plan.want_gradients and ctx.needs_input_grad[0]
        dtype, count, width = compute_dtype(logits), *logits.shape
        with torch.autocast(logits.device.type, enabled=False):
            whole = plan.comparison(count, width, logits, dtype, wanted)
            # A copy, which becomes the gradient block by block.
            gradient = logits.detach().to(dtype, copy=True)
            work = Workspace(dtype, logits.device)
            for rows in chunks(count, width, logits.device):
                compare_chunk(whole, rows, None, gradient[rows], gradient[rows], work)
        ctx.save_for_backward(gradient if wanted else None)
        ctx.dtype = logits.dtype
        loss, totals = plan.results(_totals(plan.parts, whole.values), dtype)
        ctx.mark_non_differentiable(totals)
        return loss, totals

    @staticmethod
    @once_differentiable
    def backward(ctx, *output_gradients: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return _scaled(gradient, output_gradients[0], ctx.dtype), None


def _scaled(gradient: Tensor | None, by: Tensor, dtype: torch.dtype | None) -> Tensor | None:
    """`gradient` times a scalar, in its own memory where the dtype allows."""
    if gradient is None:
        return None
    if dtype == gradient.dtype:
        return gradient.mul_(by)
    return torch.mul(gradient, by, out=torch.empty_like(gradient, dtype=dtype))


def _sweep(
    hidden: Tensor, head: Head, plan: _Plan, wanted: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """float64 totals [parts], and the wanted gradients by hidden, weight and bias, or None."""
    count = hidden.shape[0]
    dtype, device = compute_dtype(hidden, head.weight), hidden.device
    student = Projection(head, hidden.dtype, dtype)
    whole = plan.comparison(count, student.width, hidden, dtype, any(wanted))
    back = _Gradients(
        torch.empty_like(hidden, dtype=dtype) if wanted[0] else None,
        (torch.empty_like if count else torch.zeros_like)(head.weight, dtype=dtype)
        if wanted[1]
        else None,
        torch.zeros_like(head.bias, dtype=dtype) if wanted[2] and head.bias is not None else None,
    )
    work = Workspace(dtype, device)
    for rows in chunks(count, student.width, device):
        _sweep_chunk(hidden[rows].detach(), rows, student, whole, back, work)
    return _totals(plan.parts, whole.values), (back.by_hidden, back.by_weight, back.by_bias)


@dataclass(frozen=True, slots=True)
class _Gradients:
    """Filled chunk by chunk; None: not wanted."""

    by_hidden: Tensor | None  # [N, d]
    by_weight: Tensor | None  # [V, d]
    by_bias: Tensor | None  # [V]


def _sweep_chunk(
    hidden: Tensor,
    rows: slice,
    student: Projection,
    whole: Comparison,
    back: _Gradients,
    work: Workspace,
) -> None:
    """Logits piece by piece, then the products back of the whole chunk."""
    cut = list(pieces(len(hidden), student.width, hidden.device))
    most = max(piece.stop - piece.start for piece in cut)
    logits = work.take("student", most, student.width)
    # Where one piece is all, its gradient takes the place of its logits.
    dtype = student.gradient_dtype
    apart = whole.with_gradient and (len(cut) > 1 or dtype != logits.dtype)
    gradient = work.take("gradient", len(hidden), student.width, dtype) if apart else logits
    for piece in cut:
        inside = slice(rows.start + piece.start, rows.start + piece.stop)
        ours = student.logits(hidden[piece], logits[: piece.stop - piece.start])
        compare_chunk(whole, inside, student, ours, gradient[piece], work)
    if back.by_hidden is not None:
        student.hidden_gradient(gradient, back.by_hidden[rows])
    if back.by_weight is not None:
        student.add_weight_gradient(gradient, hidden, back.by_weight, first=rows.start == 0)
    if back.by_bias is not None:
        student.add_bias_gradient(gradient, back.by_bias)


def compare_chunk(
    whole: Comparison,
    rows: slice,
    student: Projection | None,
    logits: Tensor,
    out: Tensor,
    work: Workspace,
) -> None:
    """Compare `rows` block by block; a wanted gradient is written to `out` [C, V].

    `out` may be `logits` itself. The gradient is by the head's matrix product, so before its scale
    and after its soft cap; by the logits themselves without a `student`.
    """
    theirs = {
        role: reader.logits(rows, work.take(f"teacher {role}", len(logits), reader.width))
        for role, reader in whole.readers.items()
        if isinstance(reader, DenseReader)
    }
    for block in blocks(logits.shape[0], logits.shape[1], logits.device):
        inside = slice(rows.start + block.start, rows.start + block.stop)
        of_roles = {role: of_role[block] for role, of_role in theirs.items()}
        place = out[block]
        capped = student is not None and student.softcap is not None
        gradient = compare(whole, inside, logits[block], of_roles, None if capped else place)
        if gradient is None or gradient is place:
            continue
        if student is not None:
            student.undo_softcap(gradient, logits[block])
        place.copy_(gradient)


def _totals(parts: Sequence[Part], values: Tensor) -> Tensor:
    """[parts] float64: each part's weighted sum over positions."""
    pairs = zip(parts, values.double(), strict=True)
    return torch.stack([(value * part.value_factor()).sum() for part, value in pairs])
