"""A distribution at a temperature, as logarithms and as probabilities. Plain torch.

b rows, M outcomes (the vocabulary, or the K + 1 of a top-k teacher).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Softened:
    """softmax(logits / temperature), twice."""

    log: Tensor  # [b, M] log-probabilities
    probability: Tensor  # [b, M]


def soften(logits: Tensor, temperature: float | Tensor = 1.0) -> Softened:
    """Both forms of softmax(logits / temperature) with one exponential.

    Args:
        logits: [b, M] float32 or float64; left as they are. -inf means probability 0.
        temperature: of all rows, or [b, 1].
    """
    log = logits - logits.amax(1, keepdim=True)
    if isinstance(temperature, Tensor) or temperature != 1.0:
        log.div_(temperature)
    probability = log.exp()
    mass = probability.sum(1, keepdim=True)
    log.sub_(mass.log())
    return Softened(log, probability.mul_(mass.reciprocal_()))


def conditioned(whole: Softened, ruled_out: Tensor) -> Softened:
    """`whole` given that no outcome of `ruled_out` ([b, M] bool) happened; their log is -inf."""
    return soften(whole.log.masked_fill(ruled_out, -torch.inf))
