"""Losses written once more, plainly: float64 probabilities over the whole vocabulary, autograd.

The formulas come from the docstrings of the term specs and share no code with what they check:
of `strategies` only its records and specs are used. Runs on the CPU, a few positions and a block of
the head's rows at a time, so a vocabulary of 150,000 entries takes some hundred MiB. Gradients go
by the chain rule in two strides, each plain autograd: by logits, then by hidden state.

n positions of a chunk, N positions, V the student's vocabulary, V' the role's, K kept entries,
S draws, d width of the student's hidden state.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.contract import Head, LogitSignal, Outputs, SampledSignal, TopKSignal
from strategies.specs import CrossEntropySpec, TermSpec

CHUNK_ELEMENTS = 1 << 20
"""Logits alive in one tensor: 8 MiB."""
BLOCK_ELEMENTS = 1 << 22
"""Entries of the head's matrix in float64 at a time: 32 MiB."""

Numbers = Mapping[str, float]
"""A term's numbers at a step by field name, such as `temperature`."""
Values = Callable[[Tensor, Tensor, slice], Tensor]
"""(student logits [n, V], role logits [n, V'], rows) -> [n] values, differentiable."""
Pair = Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor]]
"""The same -> log p and log q over the outcomes that are compared; -inf in p is probability 0."""


@dataclass(frozen=True, slots=True)
class Truth:
    """A term on N positions."""

    value: float  # mean over positions
    gradient: Tensor  # [N, d] float64, of the sum over positions; [N, V] for a student of logits
    size: float  # mean magnitude of what was added up, where the value is a difference of such


def dense(spec: TermSpec, numbers: Numbers, student: Outputs, role: Outputs) -> Truth:
    """A divergence between the whole distributions.

    Entries the student lacks are cut and the role renormalised; entries the role lacks have
    probability 0.

    Args:
        spec: of a term with a role.
        numbers: its numbers.
        student: N positions.
        role: N positions, of the same tokenizer.
    """

    def pair(ours: Tensor, theirs: Tensor, _: slice) -> tuple[Tensor, Tensor]:
        width = ours.shape[1]
        shared = min(width, theirs.shape[1])
        lacking = torch.full((len(ours), width - shared), -torch.inf, dtype=torch.float64)
        softened = (part / numbers["temperature"] for part in (theirs[:, :shared], ours))
        theirs, ours = softened
        return torch.cat([theirs, lacking], 1).log_softmax(1), ours.log_softmax(1)

    return _compared(spec, numbers, student, role, pair)


def coarse(
    spec: TermSpec,
    numbers: Numbers,
    student: Outputs,
    role: Outputs,
    kept: TopKSignal,
) -> Truth:
    """The same between two distributions over K + 1 outcomes: the kept entries, and any other.

    That is what `topk` defines. The probabilities are the role's own: of the signal only the ids,
    the ladder and the vocabulary are used. A kept id that the student lacks is dropped. Between
    rungs the logarithm of the rest is linear in 1 / temperature.
    """
    if kept.ids.shape[1] == kept.vocabulary:
        return dense(spec, numbers, student, role)
    temperature, all_ids = numbers["temperature"], kept.ids.cpu()

    def pair(ours: Tensor, theirs: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        ids = all_ids[rows]
        log_p = theirs.log_softmax(1)
        p_rest = _rest(log_p.scatter(1, ids, -torch.inf), kept.ladder, temperature)
        inside = ids < ours.shape[1]
        p_kept = (log_p.gather(1, ids) / temperature).masked_fill(~inside, -torch.inf)
        log_q, known = (ours / temperature).log_softmax(1), ids.where(inside, 0)
        taken = torch.zeros_like(log_q).scatter_add_(1, known, inside.double()) > 0
        q_rest = log_q.masked_fill(taken, -torch.inf).logsumexp(1)
        q_kept = log_q.gather(1, known).masked_fill(~inside, _NOTHING)
        log_p = torch.cat([p_kept, p_rest[:, None]], 1).log_softmax(1)
        return log_p, torch.cat([q_kept, q_rest[:, None]], 1)

    return _compared(spec, numbers, student, role, pair)


def defined(
    spec: TermSpec, numbers: Numbers, student: Outputs, role: Outputs, signal: LogitSignal
) -> Truth:
    """What an encoding makes of the divergence: `coarse` for `topk`, else `dense`."""
    if isinstance(signal, TopKSignal):
        return coarse(spec, numbers, student, role, signal)
    return dense(spec, numbers, student, role)


def drawn(student: Outputs, signal: SampledSignal) -> Truth:
    """Forward KL at temperature 1 as these draws estimate it: minus the entropy, less sum w log q.

    Draws that the student lacks count nothing.
    """
    ids, weights = signal.ids.cpu(), signal.weights.cpu().double()
    entropy = signal.entropy.cpu().double()
    sizes: list[Tensor] = []

    def values(ours: Tensor, _: Tensor, rows: slice) -> Tensor:
        inside = ids[rows] < ours.shape[1]
        log_q = ours.log_softmax(1).gather(1, ids[rows].where(inside, 0))
        crossed = -(weights[rows] * log_q.where(inside, 0.0)).sum(1)
        sizes.append((crossed.detach() + entropy[rows]).sum())
        return crossed - entropy[rows]

    value, gradient = _sweep(student, None, values)
    return Truth(value, gradient, float(sum(sizes)) / max(1, len(gradient)))


def labels(spec: CrossEntropySpec, student: Outputs, targets: Tensor) -> Truth:
    """Cross entropy against the data's own labels, [N] int64."""
    wanted, smoothing = targets.cpu(), spec.label_smoothing

    def values(ours: Tensor, _: Tensor, rows: slice) -> Tensor:
        log_q = ours.log_softmax(1)
        hit = log_q.gather(1, wanted[rows, None]).squeeze(1)
        return -(1 - smoothing) * hit - smoothing * log_q.sum(1) / ours.shape[1]

    value, gradient = _sweep(student, None, values)
    return Truth(value, gradient, value)


def logits_in_chunks(outputs: Outputs) -> Iterator[tuple[slice, Tensor]]:
    """(rows, their logits [n, V] float64 on the CPU) of all N positions."""
    source = outputs.logits if outputs.hidden is None else outputs.hidden
    assert source is not None
    width = _width(outputs)
    step = max(1, CHUNK_ELEMENTS // width)
    for start in range(0, source.shape[0], step):
        rows = slice(start, min(start + step, source.shape[0]))
        yield rows, _logits(outputs, rows)


def _width(outputs: Outputs) -> int:
    if outputs.logits is not None:
        return outputs.logits.shape[1]
    assert outputs.head is not None
    return outputs.head.weight.shape[0]


@torch.no_grad()
def _logits(outputs: Outputs, rows: slice) -> Tensor:
    if outputs.logits is not None:
        return outputs.logits[rows].detach().cpu().double()
    assert outputs.hidden is not None and outputs.head is not None
    hidden = outputs.hidden[rows].detach().cpu().double()
    return torch.cat([_project(hidden, outputs.head, part) for part in _blocks(outputs.head)], 1)


def _blocks(head: Head) -> Iterator[slice]:
    vocabulary, width = head.weight.shape
    step = max(1, BLOCK_ELEMENTS // width)
    for start in range(0, vocabulary, step):
        yield slice(start, min(start + step, vocabulary))


def _project(hidden: Tensor, head: Head, part: slice) -> Tensor:
    """softcap * tanh(scale * (h W' + b) / softcap) for some rows of the matrix."""
    z = hidden @ head.weight.detach()[part].cpu().double().T
    if head.bias is not None:
        z = z + head.bias.detach()[part].cpu().double()
    z = z * head.scale
    return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)


def _sweep(student: Outputs, role: Outputs | None, values: Values) -> tuple[float, Tensor]:
    """Mean value, and the gradient of the sum by the student's hidden states (or logits)."""
    total, gradients = 0.0, []
    for rows, ours in logits_in_chunks(student):
        leaf = ours.requires_grad_()
        theirs = torch.empty(0) if role is None else _logits(role, rows)
        summed = values(leaf, theirs, rows).sum()
        summed.backward()
        total += float(summed.detach())
        assert leaf.grad is not None
        gradients.append(_by_hidden(student, rows, leaf.grad))
    gradient = torch.cat(gradients)
    return total / max(1, len(gradient)), gradient


def _compared(
    spec: TermSpec, numbers: Numbers, student: Outputs, role: Outputs, pair: Pair
) -> Truth:
    factor = numbers["temperature"] ** (1 if spec.kind == "total_variation" else 2)

    def values(ours: Tensor, theirs: Tensor, rows: slice) -> Tensor:
        return factor * _divergence(spec.kind, *pair(ours, theirs, rows), numbers)

    value, gradient = _sweep(student, role, values)
    return Truth(value, gradient, value)


def _by_hidden(student: Outputs, rows: slice, by_logits: Tensor) -> Tensor:
    if student.logits is not None:
        return by_logits
    assert student.hidden is not None and student.head is not None
    leaf = student.hidden[rows].detach().cpu().double().requires_grad_()
    for part in _blocks(student.head):
        _project(leaf, student.head, part).backward(by_logits[:, part])
    assert leaf.grad is not None
    return leaf.grad


def _rest(others: Tensor, ladder: tuple[float, ...], temperature: float) -> Tensor:
    """[n] logsumexp of what is not kept at a temperature, between rungs linear in its inverse."""
    for rung in ladder:
        if math.isclose(rung, temperature, rel_tol=1e-6):
            return (others / rung).logsumexp(1)
    low = max(rung for rung in ladder if rung < temperature)
    high = min(rung for rung in ladder if rung > temperature)
    share = (1 / low - 1 / temperature) / (1 / low - 1 / high)
    return (1 - share) * (others / low).logsumexp(1) + share * (others / high).logsumexp(1)


_NOTHING = -1e4
"""Logarithm of a probability that is 0 in float64, and has a difference."""


def _divergence(kind: str, log_p: Tensor, log_q: Tensor, numbers: Numbers) -> Tensor:
    """[n] at temperature 1, from logarithms over the same outcomes; -inf in p is probability 0."""
    held = log_p > -torch.inf
    p, q = log_p.exp(), log_q.exp()
    safe_p = log_p.where(held, 0.0)
    match kind:
        case "forward_kl":
            return (p * (safe_p - log_q)).sum(1)
        case "reverse_kl":
            log_q = _given(log_q, held)
            return (log_q.exp() * (log_q - safe_p)).where(held, 0.0).sum(1)
        case "jensen_shannon":
            share = numbers["beta"]
            log_m = _mixture(log_p, log_q, share)
            of_p = (p * (safe_p - log_m)).sum(1)
            return share * of_p + (1 - share) * (q * (log_q - log_m)).sum(1)
        case "skewed_forward_kl":
            return (p * (safe_p - _mixture(log_p, log_q, numbers["skew"]))).sum(1)
        case "skewed_reverse_kl":
            return (q * (log_q - _mixture(log_p, log_q, 1 - numbers["skew"]))).sum(1)
        case "total_variation":
            return (p - q).abs().sum(1) / 2
        case "alpha_beta":
            return _alpha_beta(safe_p, log_q, held, numbers["alpha"], numbers["beta"])
    raise ValueError(f"no oracle for a term of kind {kind}; write its formula here")


def _given(log_q: Tensor, held: Tensor) -> Tensor:
    """log q conditioned on the outcomes that p has; 0 at the others."""
    norm = log_q.masked_fill(~held, -torch.inf).logsumexp(1, keepdim=True)
    return (log_q - norm).where(held, 0.0)


def _mixture(log_p: Tensor, log_q: Tensor, share_of_p: float) -> Tensor:
    return torch.logaddexp(log_p + math.log(share_of_p), log_q + math.log1p(-share_of_p))


def _alpha_beta(log_p: Tensor, log_q: Tensor, held: Tensor, a: float, b: float) -> Tensor:
    """The published formula and its limits; an outcome that p lacks has p^x = 0 for x > 0."""
    if a <= 0 or a + b <= 0:
        log_q = _given(log_q, held)
        others = torch.zeros(len(log_q), dtype=log_q.dtype)
    else:
        others = ((a + b) * log_q).exp().where(~held, 0.0).sum(1) / (a * (a + b))
    ratio = (log_q - log_p).where(held, 0.0)
    if a == 0 and b == 0:
        inner = 0.5 * ratio**2
    elif a == 0:
        inner = ((b * log_q).exp() * (b * ratio - 1) + (b * log_p).exp()) / b**2
    elif b == 0:
        inner = ((a * log_p).exp() * (-a * ratio - 1) + (a * log_q).exp()) / a**2
    elif a + b == 0:
        inner = (a * ratio + (-a * ratio).exp() - 1) / a**2
    else:
        both = a / (a + b) * ((a + b) * log_p).exp() + b / (a + b) * ((a + b) * log_q).exp()
        inner = (both - (a * log_p + b * log_q).exp()) / (a * b)
    return inner.where(held, 0.0).sum(1) + others
