"""Divergences between two vocabularies' distributions at every position: the readable definition.

Plain torch, differentiable, float32 or better, for terms of one's own and for the tests; jobs take
the same formulas in chunks (`strategies.linear`).

`V` is the vocabulary (or classes). The teacher is a constant. Widths may differ: entries beyond
the student's width are cut from the teacher, which is renormalised; entries the teacher lacks
have teacher probability 0, and so has an entry of -inf in the teacher. A divergence that would be
infinite there (`reverse_kl`, and `alpha_beta` where alpha or alpha + beta is not above 0) compares
the student conditioned on the entries that the teacher has.

Arguments of all but `cross_entropy`: student_logits [..., V]; teacher_logits [..., V'] with the
same leading shape; temperature, above 0, one number or [...]. They return [...] nats, 0 at
equality.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from .sparse import column


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


def forward_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor = 1.0
) -> Tensor:
    """temperature**2 * KL(teacher || student), both softened by `temperature`.

    The square keeps gradients of one size across temperatures.

    Source:
        Hinton, Vinyals, Dean. "Distilling the Knowledge in a Neural Network."
        arXiv:1503.02531, section 2.
    """
    log_p, log_q = _both(student_logits, teacher_logits, temperature)
    return temperature**2 * _expectation(log_p, log_p - log_q)


def reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor = 1.0
) -> Tensor:
    """temperature**2 * KL(student || teacher), both softened by `temperature`.

    Source:
        Gu, Dong, Wei, Huang. "MiniLLM: Knowledge Distillation of Large Language Models."
        arXiv:2306.08543, section 2.1 (here per token, without sampling from the student).
    """
    log_p, log_q = _on_support(student_logits, teacher_logits, temperature)
    return temperature**2 * _expectation(log_q, log_q - log_p)


def jensen_shannon(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor = 1.0,
    beta: float = 0.5,
) -> Tensor:
    """temperature**2 * (beta KL(p || m) + (1 - beta) KL(q || m)), m = beta p + (1 - beta) q.

    p is the teacher, q the student, both softened by `temperature`; `beta` in (0, 1).

    Source:
        Agarwal et al. "On-Policy Distillation of Language Models." arXiv:2306.13649, section 2.
    """
    log_p, log_q = _both(student_logits, teacher_logits, temperature)
    log_m = _mixture(log_p, log_q, beta)
    from_teacher = _expectation(log_p, log_p - log_m)
    from_student = _expectation(log_q, log_q - log_m)
    return temperature**2 * (beta * from_teacher + (1 - beta) * from_student)


def skewed_forward_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor = 1.0,
    skew: float = 0.1,
) -> Tensor:
    """temperature**2 * KL(p || skew p + (1 - skew) q), p the teacher; `skew` in (0, 1).

    Source:
        Ko, Kim, Chen, Yun. "DistiLLM: Towards Streamlined Distillation for Large Language
        Models." arXiv:2402.03898, section 3.1.
    """
    log_p, log_q = _both(student_logits, teacher_logits, temperature)
    return temperature**2 * _expectation(log_p, log_p - _mixture(log_p, log_q, skew))


def skewed_reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor = 1.0,
    skew: float = 0.1,
) -> Tensor:
    """temperature**2 * KL(q || (1 - skew) p + skew q), q the student; `skew` in (0, 1).

    Source: as `skewed_forward_kl`.
    """
    log_p, log_q = _both(student_logits, teacher_logits, temperature)
    return temperature**2 * _expectation(log_q, log_q - _mixture(log_p, log_q, 1 - skew))


def total_variation(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor = 1.0
) -> Tensor:
    """temperature * half the sum of |p - q|, both softened by `temperature`.

    Not its square: this value falls as 1 / temperature where the others fall as its square.

    Source:
        Wen, Li, Du, Mou. "f-Divergence Minimization for Sequence-Level Knowledge Distillation."
        arXiv:2307.15190, section 3.
    """
    log_p, log_q = _both(student_logits, teacher_logits, temperature)
    return temperature * 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def alpha_beta(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor = 1.0,
    alpha: float = 0.5,
    beta: float = 0.5,
) -> Tensor:
    """temperature**2 * the alpha-beta divergence of teacher p and student q, softened.

        -1 / (a b) sum (p^a q^b - a / (a + b) p^(a + b) - b / (a + b) q^(a + b))

    and its limits where a, b or a + b is 0. (1, 0) is forward KL, (0, 1) reverse KL, (0.5, 0.5)
    four times the squared Hellinger distance, (0, 0) half the sum of squared log-ratios.

    Source:
        Wang et al. "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge
        Distillation via alpha-beta-Divergence." arXiv:2505.04560, section 4.
    """
    both = alpha + beta
    softened = _on_support if alpha <= 0 or both <= 0 else _both
    log_p, log_q = (log.double() for log in softened(student_logits, teacher_logits, temperature))
    held = log_p > -math.inf
    inner = log_p.where(held, 0.0), log_q.where(held, 0.0)
    outside = 0.0
    if alpha > 0 and both > 0:  # p = 0: q^(a + b) / (a (a + b)) is left
        outside = torch.where(held, 0.0, (both * log_q).exp()).sum(-1) / (alpha * both)
    value = _alpha_beta(*inner, alpha, beta).sum(-1) + outside
    return temperature**2 * value.to(torch.promote_types(student_logits.dtype, torch.float32))


def _alpha_beta(log_p: Tensor, log_q: Tensor, a: float, b: float) -> Tensor:
    """Entry by entry, for finite logarithms."""
    ratio = log_p - log_q

    def power(of_p: float, of_q: float) -> Tensor:
        return (of_p * log_p + of_q * log_q).exp()

    if a == 0 and b == 0:
        return 0.5 * ratio.square()
    if a == 0:
        return (power(b, 0) - power(0, b) - b * ratio * power(0, b)) / b**2
    if b == 0:
        return (power(0, a) - power(a, 0) + a * ratio * power(a, 0)) / a**2
    if a + b == 0:
        return ((a * ratio).exp() - 1 - a * ratio) / a**2
    whole = a + b
    return (a * power(whole, 0) + b * power(0, whole) - whole * power(a, b)) / (a * b * whole)


def _both(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """log p and log q, [..., V]."""
    missing = student.shape[-1] - teacher.shape[-1]
    teacher = functional.pad(teacher, (0, max(0, missing)), value=-math.inf)
    return (
        _log_softmax(teacher.detach()[..., : student.shape[-1]], temperature),
        _log_softmax(student, temperature),
    )


def _on_support(
    student: Tensor, teacher: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """log p and log q, -inf in both where the teacher has no entry."""
    log_p, log_q = _both(student, teacher, temperature)
    return log_p, torch.log_softmax(log_q.masked_fill(log_p == -math.inf, -math.inf), -1)


def _mixture(log_p: Tensor, log_q: Tensor, share_of_p: float) -> Tensor:
    return torch.logaddexp(log_p + math.log(share_of_p), log_q + math.log1p(-share_of_p))


def _log_softmax(logits: Tensor, temperature: float | Tensor) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.log_softmax(logits.to(dtype) / column(temperature), dim=-1)


def _expectation(log_weight: Tensor, values: Tensor) -> Tensor:
    """Sum of exp(log_weight) * values, where a weight of 0 silences an infinite value."""
    weight = log_weight.exp()
    return (weight * torch.where(weight > 0, values, 0.0)).sum(-1)
