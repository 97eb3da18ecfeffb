"""Divergences between two vocabularies' distributions at every position: the readable definition.

Plain torch, differentiable, float32 or better. Classifiers and the tests use these; language
models use the same formulas in chunks (`strategies.linear`).

`V` is the vocabulary (or classes). The teacher is a constant. Widths may differ: entries beyond
the student's width are cut from the teacher, which is renormalised; entries the teacher lacks
have teacher probability 0, but `reverse_kl`, which would be infinite there, compares the student
conditioned on the entries that both have. An entry of -inf in the teacher also means 0.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-log q[target], of which `label_smoothing` is spread evenly over all V entries.

    Args:
        logits: [..., V], the student's.
        targets: [...] int64 in [0, V).
        label_smoothing: in [0, 1).

    Returns:
        [...] float32 (float64 for float64 logits).
    """
    log_q = _log_softmax(logits, 1.0)
    picked = log_q.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return -(1 - label_smoothing) * picked - label_smoothing * log_q.mean(-1)


def forward_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """temperature**2 * KL(teacher || student), both softened by `temperature`, in nats.

    The square keeps gradients of one size across temperatures.

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V'] with the same leading shape.
        temperature: above 0.

    Returns:
        [...], 0 only at equality.

    Source:
        Hinton, Vinyals, Dean. "Distilling the Knowledge in a Neural Network."
        arXiv:1503.02531, section 2.
    """
    student_logits, teacher_logits = _same_width(student_logits, teacher_logits)
    log_q, log_p = _log_softmax(student_logits, temperature), _teacher(teacher_logits, temperature)
    return temperature**2 * _expectation(log_p, log_p - log_q)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """temperature**2 * KL(student || teacher), both softened by `temperature`, in nats.

    Arguments and result as in `forward_kl`.

    Source:
        Gu, Dong, Wei, Huang. "MiniLLM: Knowledge Distillation of Large Language Models."
        arXiv:2306.08543, section 2.1 (here per token, without sampling from the student).
    """
    width = min(student_logits.shape[-1], teacher_logits.shape[-1])
    log_q = _log_softmax(student_logits[..., :width], temperature)
    log_p = _teacher(teacher_logits[..., :width], temperature)
    return temperature**2 * _expectation(log_q, log_q - log_p)


def jensen_shannon(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, beta: float = 0.5
) -> Tensor:
    """temperature**2 * (beta KL(p || m) + (1 - beta) KL(q || m)), m = beta p + (1 - beta) q.

    p is the teacher, q the student, both softened by `temperature`; `beta` in (0, 1). Other
    arguments and result as in `forward_kl`.

    Source:
        Agarwal et al. "On-Policy Distillation of Language Models." arXiv:2306.13649, section 2.
    """
    student_logits, teacher_logits = _same_width(student_logits, teacher_logits)
    log_q, log_p = _log_softmax(student_logits, temperature), _teacher(teacher_logits, temperature)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    from_teacher = _expectation(log_p, log_p - log_m)
    from_student = _expectation(log_q, log_q - log_m)
    return temperature**2 * (beta * from_teacher + (1 - beta) * from_student)


def _same_width(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    missing = student.shape[-1] - teacher.shape[-1]
    if missing > 0:
        return student, functional.pad(teacher, (0, missing), value=-math.inf)
    return student, teacher[..., : student.shape[-1]]


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.log_softmax(logits.to(dtype) / temperature, dim=-1)


def _teacher(logits: Tensor, temperature: float) -> Tensor:
    return _log_softmax(logits.detach(), temperature)


def _expectation(log_weight: Tensor, values: Tensor) -> Tensor:
    """Sum of exp(log_weight) * values, where a weight of 0 silences an infinite value."""
    weight = log_weight.exp()
    return (weight * torch.where(weight > 0, values, 0.0)).sum(-1)
