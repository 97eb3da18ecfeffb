"""Teachers known by draws: forward KL at temperature 1, and nothing else. Plain torch.

With draws and weights the teacher's mean of any f is estimated without bias. Forward KL is such a
mean, -sum p log q - H(p), and so is its gradient. Every other divergence needs p itself inside a
function that is not linear, where an estimate of p gives a biased answer, so other terms refuse.

The gradient by logits is q * sum(weights) - counts: the exact derivative of the estimated value,
so a constant added to all logits still changes nothing. With 1 in place of sum(weights) it would
be unbiased as well (the weights' sum has mean 1 and q does not depend on the draws), but noisier:
where teacher and student agree, each draw's share then no longer has mean 0.

Draws beyond the student's width are dropped. What is left is the gradient of forward KL against
the teacher renormalised over the entries that both have, times the mass of those entries.

N positions, S draws, V entries of the student's vocabulary.
"""

import torch
from torch import Tensor

from .contract import SampledSignal
from .sparse import split_ids


def known_draws(signal: SampledSignal, student_width: int) -> tuple[Tensor, Tensor]:
    """([N, S] ids safe to index the student with, [N, S] weights, 0 at dropped draws)."""
    ids, inside = split_ids(signal.ids, student_width)
    return ids, signal.weights.masked_fill(~inside, 0.0)


def sampled_forward_kl(logits: Tensor, signal: SampledSignal) -> Tensor:
    """Unbiased estimate of KL(teacher || student) at temperature 1; may be below 0.

    Differentiable.

    Args:
        logits: [N, V], the student's.
        signal: of the N positions.

    Returns:
        [N] nats.

    Source:
        Anshumann et al. "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs."
        arXiv:2503.16870, section 4.
    """
    ids, weights = known_draws(signal, logits.shape[1])
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_q = torch.log_softmax(logits.to(dtype), 1)
    return -(weights * log_q.gather(1, ids)).sum(1) - signal.entropy


def refusal(kind: str, temperature: float | Tensor) -> str | None:
    """Why a term cannot use the encoding `sampled`, or None if it can."""
    if kind != "forward_kl":
        return (
            f"{kind} cannot learn from the encoding sampled, whose estimate of it would be biased; "
            f"use forward_kl, or encoding hidden, topk or full"
        )
    if isinstance(temperature, Tensor) or temperature != 1.0:
        shown = "given for each position" if isinstance(temperature, Tensor) else f"{temperature:g}"
        return (
            f"forward_kl at a temperature {shown} cannot learn from the encoding sampled, which "
            f"is unbiased at temperature 1 only; set temperature to 1, or use encoding hidden, "
            f"topk or full"
        )
    return None
