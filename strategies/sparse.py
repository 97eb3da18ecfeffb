"""Top-k teachers: K kept entries and one bucket for the rest. Plain torch.

Both sides are coarse-grained to K + 1 outcomes: the K ids that the teacher kept, and "any other".
A divergence against a top-k teacher is *defined* as that divergence between these two
distributions over K + 1 outcomes. By the data-processing inequality it is at most the dense one;
it is 0 when both agree on the kept entries and on the rest, and it is never negative.

The teacher's bucket comes with the signal as a logarithm, so both sides know theirs accurately
however small it is.

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
LADDER_SLACK = 1e-6
"""Relative distance past an end of the ladder that is taken for the rounding of a temperature."""


def log_rest(signal: TopKSignal, temperature: float | Tensor) -> Tensor:
    """[N] float32: logsumexp over the entries not kept of log-probability / temperature.

    Exact on a rung of the ladder. Between rungs it is linear in 1 / temperature; the true function
    is convex there, so this errs upwards: the bucket comes out a little large, never too small.

    Args:
        signal: N positions.
        temperature: of all positions, or [N]; above 0.

    Raises:
        ValueError: a temperature lies outside the ladder.
    """
    count, rungs = signal.rest.shape
    device = signal.rest.device
    ladder = torch.tensor(signal.ladder, dtype=torch.float64, device=device)
    wanted = torch.as_tensor(temperature, dtype=torch.float64, device=device).expand(count)
    _check_inside(signal, wanted)
    above = torch.searchsorted(ladder, wanted.contiguous()).clamp(min(1, rungs - 1), rungs - 1)
    below = (above - 1).clamp_min(0)
    span = 1 / ladder[below] - 1 / ladder[above]
    share = (1 / ladder[below] - 1 / wanted) / span.where(span > 0, 1.0)
    known = signal.rest.clamp_min(ABSENT)
    low, high = (known.gather(1, rung.unsqueeze(1)).squeeze(1) for rung in (below, above))
    return torch.lerp(low, high, share.clamp(0.0, 1.0).to(known.dtype))


def _check_inside(signal: TopKSignal, wanted: Tensor) -> None:
    if not wanted.numel():
        return
    for end in (wanted.min().item(), wanted.max().item()):
        low, high = signal.ladder[0], signal.ladder[-1]
        if not low * (1 - LADDER_SLACK) <= end <= high * (1 + LADDER_SLACK):
            raise ValueError(
                f"temperature {end:g} lies outside the top-k signal's ladder "
                f"{list(signal.ladder)}; add a rung to the role's encoding.temperatures, or use "
                f"the encoding hidden, which is exact at every temperature"
            )


def coarse_teacher(signal: TopKSignal, temperature: float | Tensor, student_width: int) -> Tensor:
    """[N, K + 1] normalised log-probabilities at `temperature` (one, or [N]), the bucket last.

    ABSENT stands for probability 0: dropped ids, and the bucket of a teacher that rules out
    whatever it did not keep.

    Raises:
        ValueError: a temperature lies outside the ladder, or the student has no entry beside the
            kept ones.
    """
    kept_count = signal.ids.shape[1]
    if student_width <= kept_count and signal.vocabulary > kept_count:
        raise ValueError(
            f"the top-k signal keeps {kept_count} entries of {signal.vocabulary}, but the student "
            f"has only {student_width}; lower encoding.k below the student's vocabulary"
        )
    dtype = torch.promote_types(signal.logprobs.dtype, torch.float32)
    rest = log_rest(signal, temperature).to(dtype).unsqueeze(1)
    kept = signal.logprobs.to(dtype) / column(temperature)
    if signal.vocabulary > student_width:
        kept = kept.masked_fill(signal.ids >= student_width, ABSENT)
    return torch.log_softmax(torch.cat([kept, rest], 1), 1)


def coarse_student(logits: Tensor, ids: Tensor, temperature: float | Tensor) -> Tensor:
    """[N, K + 1] logits whose softmax is the student's coarse-grained distribution.

    Differentiable. The bucket is a logsumexp over the entries that are not kept, so it is
    accurate however small it is.

    Args:
        logits: [N, V].
        ids: [N, K] int64; ids of V and above are dropped (their outcome has probability 0).
        temperature: of all positions, or [N].
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    softened = logits.to(dtype) / column(temperature)
    known, inside = split_ids(ids, logits.shape[1])
    kept = softened.gather(1, known).masked_fill(~inside, ABSENT)
    others = softened + torch.zeros_like(softened).scatter_add_(1, known, removal(inside, dtype))
    return torch.cat([kept, torch.logsumexp(others, 1, keepdim=True)], 1)


def column(temperature: float | Tensor) -> float | Tensor:
    """A number as it is, [N] as [N, 1]."""
    return temperature.unsqueeze(-1) if isinstance(temperature, Tensor) else temperature


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
