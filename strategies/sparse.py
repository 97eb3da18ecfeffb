"""Top-k teachers: K kept entries and one bucket for the rest. Plain torch.

Both sides are coarse-grained to K + 1 outcomes: the K ids that the teacher kept, and "any other".
The teacher's bucket is what its kept entries leave; the student's is the sum over the entries the
teacher did not keep. A divergence against a top-k teacher is *defined* as that divergence between
these two distributions over K + 1 outcomes. By the data-processing inequality it is at most the
dense one; it is 0 when both agree on the kept entries, and it is never negative.

The teacher's bucket comes out of float32 log-probabilities, so it is known to about 2e-7: forward
KL and JSD are off by no more than that times the bucket's log-ratio; reverse KL cannot tell
buckets below it apart.

Vocabularies: an entry only the student has lies in the student's bucket. A kept id beyond the
student's width is dropped and the teacher renormalised over what is left.

N positions, K kept entries, L rungs of the ladder, V entries of the student's vocabulary.
"""

import math

import torch
from torch import Tensor

from .contract import TopKSignal

ABSENT = -1e30
"""Log-probability of a dropped outcome: exp gives 0, and unlike -inf no difference is NaN."""


def log_partition(signal: TopKSignal, temperature: float) -> Tensor:
    """[N]: log of the sum over the whole vocabulary of probability ** (1 / temperature).

    Exact on a rung of the ladder and at temperature 1, where it is 0. Between rungs it is linear
    in 1 / temperature. The true function is convex there, so this errs upwards: kept entries come
    out a little small and the bucket a little large, never the other way round.

    Raises:
        ValueError: the temperature lies outside the ladder.
    """
    for rung, reached in enumerate(signal.ladder):
        if abs(reached - temperature) < 1e-9:
            return signal.log_z[:, rung]
    columns = {reached: signal.log_z[:, rung] for rung, reached in enumerate(signal.ladder)}
    columns.setdefault(1.0, torch.zeros_like(signal.log_z[:, 0]))
    below = [reached for reached in columns if reached < temperature]
    above = [reached for reached in columns if reached > temperature]
    if temperature == 1.0:
        return columns[1.0]
    if not below or not above:
        raise ValueError(
            f"temperature {temperature:g} lies outside the top-k signal's ladder "
            f"{list(signal.ladder)}; add a rung to the role's encoding.temperatures, or use the "
            f"encoding hidden, which is exact at every temperature"
        )
    low, high = max(below), min(above)
    share = (1 / low - 1 / temperature) / (1 / low - 1 / high)
    return torch.lerp(columns[low], columns[high], share)


def coarse_teacher(signal: TopKSignal, temperature: float, student_width: int) -> Tensor:
    """[N, K + 1] normalised log-probabilities at `temperature`, the bucket last.

    The bucket is known to rounding only, so it is taken as at least the machine epsilon: a
    divergence that looks from the student's side stays finite.

    Raises:
        ValueError: the temperature lies outside the ladder, or the student has no entry beside
            the kept ones.
    """
    kept_count = signal.ids.shape[1]
    if kept_count >= student_width:
        raise ValueError(
            f"the top-k signal keeps {kept_count} entries of {signal.vocabulary}, but the student "
            f"has only {student_width}; lower encoding.k below the student's vocabulary"
        )
    dtype = torch.promote_types(signal.logprobs.dtype, torch.float32)
    log_z = log_partition(signal, temperature).to(dtype)
    kept = signal.logprobs.to(dtype) / temperature - log_z.unsqueeze(1)
    mass = torch.logsumexp(kept, 1, keepdim=True)
    floor = math.log(torch.finfo(dtype).eps)
    rest = log1mexp(mass.clamp(max=-torch.finfo(dtype).tiny)).clamp_min(floor)
    if signal.vocabulary > student_width:
        kept = kept.masked_fill(signal.ids >= student_width, ABSENT)
    return torch.log_softmax(torch.cat([kept, rest], 1), 1)


def coarse_student(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """[N, K + 1] logits whose softmax is the student's coarse-grained distribution.

    Differentiable. The bucket is a logsumexp over the entries that are not kept, so it is
    accurate however small it is.

    Args:
        logits: [N, V].
        ids: [N, K] int64; ids of V and above are dropped (their outcome has probability 0).
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    softened = logits.to(dtype) / temperature
    known, inside = split_ids(ids, logits.shape[1])
    kept = softened.gather(1, known).masked_fill(~inside, ABSENT)
    others = softened + torch.zeros_like(softened).scatter_add_(1, known, removal(inside, dtype))
    return torch.cat([kept, torch.logsumexp(others, 1, keepdim=True)], 1)


def split_ids(ids: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """([N, K] ids safe to index `width` columns with, [N, K] bool whether they were inside)."""
    inside = ids < width
    return ids.masked_fill(~inside, 0), inside


def removal(inside: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, K]: what to add to a kept entry to take it out: -inf, and nothing at a dropped id."""
    return torch.zeros_like(inside, dtype=dtype).masked_fill_(inside, -math.inf)


def as_dense(signal: TopKSignal) -> Tensor | None:
    """[N, V'] log-probabilities if the signal keeps its whole vocabulary V', else None."""
    if signal.ids.shape[1] != signal.vocabulary:
        return None
    return torch.empty_like(signal.logprobs).scatter_(1, signal.ids, signal.logprobs)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, without cancellation at either end.

    Source:
        Maechler. "Accurately Computing log(1 - exp(-|a|))." R package Rmpfr, 2012, equation 7.
    """
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
