"""All vocabulary terms on one chunk: each temperature's softmax once, each teacher's once.

Adds to the totals and to the gradient by the student's logits; in place, in reused buffers.

C positions of a chunk, V the student's vocabulary, K kept entries, M = V or K + 1 outcomes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from . import kernels
from .contract import TopKSignal
from .heads import Workspace
from .kernels import Gradient
from .sparse import ABSENT, coarse_teacher, removal, split_ids
from .teachers import TeacherReader


@dataclass(frozen=True, slots=True)
class Part:
    """One vocabulary term with the numbers of this step. Fields that a kind lacks are unused."""

    kind: Literal["cross_entropy", "forward_kl", "reverse_kl", "jensen_shannon"]
    scale: float = 1.0
    """What the term's sum is multiplied by in the loss; 0: reported, but without a gradient."""
    role: str | None = None
    temperature: float = 1.0
    beta: float = 0.5
    label_smoothing: float = 0.0

    @property
    def factor(self) -> float:
        """scale * T^2 for the value, by T for a = logits / T."""
        return self.scale * self.temperature


Numbered = Sequence[tuple[int, Part]]
"""Parts with their place in the totals."""


def compare_chunk(
    logits: Tensor,
    targets: Tensor,
    rows: slice,
    teachers: Mapping[str, TeacherReader],
    parts: Sequence[Part],
    work: Workspace,
    gradient: Gradient | None,
    totals: Tensor,
) -> None:
    """Add the chunk's sums to `totals` [parts] and its gradient by logits to `gradient`.

    Args:
        logits: [C, V], the student's; left as they are.
        targets: [C] int64.
        rows: which positions of the signals the chunk covers.
        teachers: by role.
        parts: the terms.
        work: buffers; every name but "student" and "gradient" is free for use here.
        gradient: None if nobody wants it.
        totals: [parts] float64.
    """
    teacher_logits: dict[str, Tensor] = {}
    for temperature in dict.fromkeys(part.temperature for part in parts):
        here = [(i, part) for i, part in enumerate(parts) if part.temperature == temperature]
        dense = []
        for role in dict.fromkeys(part.role for _, part in here):
            of_role = [pair for pair in here if pair[1].role == role]
            signal = teachers[role].topk if role is not None else None
            if signal is None:
                dense += of_role
            else:
                compare_coarse(logits, signal, rows, of_role, work, gradient, totals)
            if role is not None and signal is None and role not in teacher_logits:
                buffer = work.take(f"teacher {role}", *logits.shape)
                teacher_logits[role] = teachers[role].logits(rows, buffer)
        if dense:
            compare_dense(logits, targets, teachers, teacher_logits, dense, work, gradient, totals)


def compare_dense(
    logits: Tensor,
    targets: Tensor,
    teachers: Mapping[str, TeacherReader],
    teacher_logits: Mapping[str, Tensor],
    parts: Numbered,
    work: Workspace,
    gradient: Gradient | None,
    totals: Tensor,
) -> None:
    """Parts of one temperature that see the whole vocabulary."""

    def take(name: str) -> Tensor:
        return work.take(name, *logits.shape)

    temperature = parts[0][1].temperature
    log_q = _log_softmax(logits, temperature, take("student log"), take("scratch"))
    labels = [pair for pair in parts if pair[1].role is None]
    log_ps: dict[str, Tensor] = {}
    shared: list[tuple[int, Part]] = []
    for index, part in parts:
        if part.role is None:
            continue
        if part.role not in log_ps:
            log_ps[part.role] = _log_softmax(
                teacher_logits[part.role], temperature, take(f"ratio {part.role}"), take("scratch")
            )
        width = teachers[part.role].width
        if part.kind == "reverse_kl" and width < logits.shape[1]:
            log_p = log_ps[part.role][:, :width]
            _reverse_kl_on_shared(log_q[:, :width], log_p, index, part, gradient, totals)
        else:
            shared.append((index, part))
    _label_values(log_q, targets, labels, totals)
    share_of_q = sum(part.factor for _, part in labels)
    holes = any(teachers[role].has_holes for role in log_ps)
    _compare_outcomes(log_q, log_ps, shared, take, holes, share_of_q, gradient, totals)
    if gradient is not None:
        _label_gradients(targets, labels, gradient)


def compare_coarse(
    logits: Tensor,
    signal: TopKSignal,
    rows: slice,
    parts: Numbered,
    work: Workspace,
    gradient: Gradient | None,
    totals: Tensor,
) -> None:
    """Parts of one temperature and a top-k role: K + 1 outcomes, then back to the vocabulary."""
    role, temperature = parts[0][1].role, parts[0][1].temperature
    assert role is not None
    signal = replace(
        signal, ids=signal.ids[rows], logprobs=signal.logprobs[rows], log_z=signal.log_z[rows]
    )
    log_p = coarse_teacher(signal, temperature, logits.shape[1]).to(logits.dtype)
    ids, inside = split_ids(signal.ids, logits.shape[1])

    others = torch.div(logits, temperature, out=work.take("scratch", *logits.shape))
    kept = others.gather(1, ids).masked_fill_(~inside, ABSENT)
    others.scatter_add_(1, ids, removal(inside, others.dtype))
    peak = others.amax(1, keepdim=True)
    mass = others.sub_(peak).exp_().sum(1, keepdim=True)
    log_q = torch.log_softmax(torch.cat([kept, peak + mass.log()], 1), 1)

    coarse = Gradient(torch.empty_like(log_q)) if gradient is not None else None
    _compare_outcomes(
        log_q, {role: log_p}, parts, lambda _: torch.empty_like(log_q), False, 0.0, coarse, totals
    )
    if gradient is not None and coarse is not None:
        gradient.add_product(others, coarse.total()[:, -1:] / mass, 1.0)
        gradient.add_at(ids, coarse.total()[:, :-1].masked_fill(~inside, 0.0))


def _compare_outcomes(
    log_q: Tensor,
    log_ps: Mapping[str, Tensor],
    parts: Numbered,
    take: Callable[[str], Tensor],
    holes: bool,
    share_of_q: float,
    gradient: Gradient | None,
    totals: Tensor,
) -> None:
    """Divergences over M outcomes at one temperature; overwrites `log_q` and `log_ps`.

    Args:
        log_q: [C, M].
        log_ps: by role, [C, M].
        parts: divergences at one temperature.
        take: a [C, M] buffer by name.
        holes: whether log_ps may hold -inf.
        share_of_q: factor of q in the gradient that the caller's own terms add.
        gradient: by logits of the M outcomes.
        totals: of all parts.
    """
    ps: dict[str, Tensor] = {}
    for _, part in parts:
        assert part.role is not None
        if part.kind != "reverse_kl" and part.role not in ps:
            ps[part.role] = torch.exp(log_ps[part.role], out=take(f"p {part.role}"))
    ratios = {role: log_p.sub_(log_q) for role, log_p in log_ps.items()}
    share_of_q += sum(part.factor for _, part in parts if part.kind == "forward_kl")
    needs_q = any(part.kind != "forward_kl" for _, part in parts)
    gradient_needs_q = gradient is not None and share_of_q != 0.0
    q = log_q.exp_() if needs_q or gradient_needs_q else log_q
    # Reverse KL first: it must see -inf as it is.
    for index, part in sorted(parts, key=lambda pair: pair[1].kind != "reverse_kl"):
        assert part.role is not None
        ratio, scratch = ratios[part.role], take("scratch")
        wanted = gradient if part.scale != 0.0 else None
        if holes and part.kind == "forward_kl":
            ratio.clamp_min_(torch.finfo(ratio.dtype).min)
        match part.kind:
            case "forward_kl":
                value = kernels.forward_kl(ps[part.role], ratio, scratch)
                if wanted is not None:
                    wanted.add(ps[part.role], -part.factor)
            case "reverse_kl":
                value = kernels.reverse_kl(q, ratio, scratch, wanted, part.factor)
            case "jensen_shannon":
                buffers = scratch, take("mixture")
                value = kernels.jensen_shannon(
                    ps[part.role], q, ratio, part.beta, buffers, wanted, part.factor
                )
            case "cross_entropy":
                raise AssertionError("labels are not a role")
        _add_total(totals, index, value, part)
    if gradient is not None and share_of_q != 0.0:
        gradient.add(q, share_of_q)


def _reverse_kl_on_shared(
    log_q: Tensor,
    log_p: Tensor,
    index: int,
    part: Part,
    gradient: Gradient | None,
    totals: Tensor,
) -> None:
    """Reverse KL of the student conditioned on the entries that a narrower teacher has."""
    log_q = torch.log_softmax(log_q, 1)
    shared = Gradient(torch.empty_like(log_q)) if gradient is not None else None
    value = kernels.reverse_kl(
        log_q.exp(), log_p - log_q, torch.empty_like(log_q), shared, part.factor
    )
    _add_total(totals, index, value, part)
    if gradient is not None and shared is not None:
        gradient.total()[:, : log_q.shape[1]].add_(shared.total())


def _label_values(log_q: Tensor, targets: Tensor, parts: Numbered, totals: Tensor) -> None:
    for index, part in parts:
        value = log_q.gather(1, targets.unsqueeze(1)).mul_(part.label_smoothing - 1)
        if part.label_smoothing:
            value.sub_(log_q.mean(1, keepdim=True), alpha=part.label_smoothing)
        _add_total(totals, index, value, part)


def _label_gradients(targets: Tensor, parts: Numbered, gradient: Gradient) -> None:
    """What cross entropy adds beside its share of q."""
    width = gradient.total().shape[1]
    for _, part in parts:
        if part.label_smoothing:
            gradient.add_constant(-part.factor * part.label_smoothing / width)
        hit = gradient.total().new_full((targets.shape[0], 1), part.factor)
        gradient.add_at(targets.unsqueeze(1), hit.mul_(part.label_smoothing - 1))


def _add_total(totals: Tensor, index: int, value: Tensor, part: Part) -> None:
    """Add T^2 * value summed over rows; rounding may not make a row negative."""
    totals[index] += value.clamp_min(0.0).sum(dtype=totals.dtype) * part.temperature**2


def _log_softmax(logits: Tensor, temperature: float, out: Tensor, scratch: Tensor) -> Tensor:
    if temperature != 1.0:
        logits = torch.div(logits, temperature, out=scratch)
    return torch.ops.aten._log_softmax.out(logits, -1, False, out=out)
