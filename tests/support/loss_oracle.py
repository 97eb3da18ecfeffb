"""Vocabulary terms written once more, plainly: float64 probabilities over the whole vocabulary.

Shares no code with `strategies`. Gradients come from autograd.
"""

import torch
from torch import Tensor


def oracle(
    kind: str,
    student: Tensor,
    teacher: Tensor | None,
    targets: Tensor,
    temperature: float = 1.0,
    beta: float = 0.5,
    label_smoothing: float = 0.0,
    kept: Tensor | None = None,
) -> Tensor:
    """Sum over positions of one term.

    Args:
        kind: of the term.
        student: [N, V] logits.
        teacher: [N, V'] logits, for all but cross entropy.
        targets: [N], for cross entropy.
        temperature, beta, label_smoothing: the term's numbers.
        kept: [N, K] ids of a top-k teacher.
    """
    student = student.double()
    if kind == "cross_entropy":
        width = student.shape[1]
        wanted = torch.nn.functional.one_hot(targets, width) * (1 - label_smoothing)
        wanted = wanted + label_smoothing / width
        return -(wanted * student.softmax(1).log()).sum()
    assert teacher is not None
    teacher = teacher.detach().double()
    if kept is None:
        q, p = _dense(student, teacher, temperature, conditioned=kind == "reverse_kl")
    else:
        q, p = _coarse(student, teacher, temperature, kept)
    return temperature**2 * _divergence(kind, p, q, beta)


def _dense(
    student: Tensor, teacher: Tensor, temperature: float, conditioned: bool
) -> tuple[Tensor, Tensor]:
    shared = min(student.shape[1], teacher.shape[1])
    p = (teacher[:, :shared] / temperature).softmax(1)
    if conditioned:
        return (student[:, :shared] / temperature).softmax(1), p
    lacking = torch.zeros(len(p), student.shape[1] - shared, dtype=p.dtype)
    return (student / temperature).softmax(1), torch.cat([p, lacking], 1)


def _coarse(
    student: Tensor, teacher: Tensor, temperature: float, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Outcome by outcome, row by row: each kept id that the student has, then all others."""
    q_whole, p_whole = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    width = kept.shape[1] + 1
    q_rows, p_rows = [], []
    for q, p, ids in zip(q_whole, p_whole, kept.tolist(), strict=True):
        known = [i for i in ids if i < len(q)]
        q_rest = torch.stack([q[i] for i in range(len(q)) if i not in known]).sum()
        p_rest = torch.stack([p[i] for i in range(len(p)) if i not in ids]).sum()
        p_row = torch.stack([*(p[i] for i in known), p_rest])
        absent = torch.zeros(width - len(p_row), dtype=p.dtype)
        p_rows.append(torch.cat([p_row / p_row.sum(), absent]))
        q_rows.append(torch.cat([torch.stack([*(q[i] for i in known), q_rest]), absent]))
    return torch.stack(q_rows), torch.stack(p_rows)


def _divergence(kind: str, p: Tensor, q: Tensor, beta: float) -> Tensor:
    match kind:
        case "forward_kl":
            return _kl(p, q)
        case "reverse_kl":
            return _kl(q, p)
        case "jensen_shannon":
            m = beta * p + (1 - beta) * q
            return beta * _kl(p, m) + (1 - beta) * _kl(q, m)
    raise ValueError(kind)


def _kl(a: Tensor, b: Tensor) -> Tensor:
    held = a > 0
    return (a[held] * (a[held].log() - b[held].log())).sum()
