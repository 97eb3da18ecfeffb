"""Values and analytic derivatives of every divergence, over any set of outcomes.

With teacher p and student q at one temperature, each kernel returns the value of every row and,
where wanted, its *pull*: the derivative by log q, entry by entry, q being taken as free numbers.
What the logits of q feel is then pull - q * sum(pull), which `comparison` computes once for all
terms together.

    forward KL      sum p (log p - log q)                         pull  -p
    reverse KL      sum q (log q - log p)                         pull  q (log q - log p - KL)
    JSD             b KL(p || m) + (1 - b) KL(q || m)             pull  (1 - b) q (log q - log m)
    skewed forward  KL(p || m), m = s p + (1 - s) q               pull  -(1 - s) q p / m
    skewed reverse  KL(q || m), m = (1 - s) p + s q               pull  q (log q - log m - s q / m)
    total variation sum |p - q| / 2                               pull  q sign(q - p) / 2
    alpha-beta      see `alpha_beta`
    adaptive KL     h forward KL + (1 - h) reverse KL             pull  of both alike
    universal       sum |p_(r) - q_(r)| over ranks r              pull  q sign(q_(r) - p_(r))
    decoupled       see `decoupled`

A multiple of q in a pull changes nothing and is left out. Temperatures, weights and scales are
the caller's. Pure functions of float32 or float64 tensors; nothing is written to an argument.

b rows, M outcomes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vecdot

from .ranking import descending, ranked

LARGEST_LOG_RATIO = 40.0
"""log p - log q beyond which the student's share of a mixture is 0 in float32."""
LARGEST_EXPONENT = 60.0
"""Powers with negative exponents are held at exp of this, so that their sums stay finite."""
COARSEST_DIVISOR = 0.05
"""Alpha-beta: below this a difference is divided by so little that float32 does not suffice."""

Answer = tuple[Tensor, Tensor | None]
"""Values [b], and the pull [b, M] if it was wanted."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Teacher and student over the same outcomes at one temperature, [b, M] each."""

    p: Tensor
    log_p: Tensor
    q: Tensor
    log_q: Tensor
    ratio: Tensor  # log p - log q, finite


def forward_kl(pair: Pair, wanted: bool) -> Answer:
    """KL(p || q)."""
    return vecdot(pair.p, pair.ratio), -pair.p if wanted else None


def reverse_kl(pair: Pair, wanted: bool) -> Answer:
    """KL(q || p). Its pull has mean 0, so that beside other terms nothing large cancels."""
    pull = -pair.q * pair.ratio
    value = pull.sum(1)
    if not wanted:
        return value, None
    return value, pull.addcmul_(pair.q, value.unsqueeze(1), value=-1.0)


def jensen_shannon(pair: Pair, beta: float, wanted: bool) -> Answer:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; beta in (0, 1)."""
    p, q = pair.p, pair.q
    gap = _relative_gap(p, q).clamp_max_(math.exp(LARGEST_LOG_RATIO))
    mixed = gap.mul_(beta).log1p_()  # log m - log q
    bounded = pair.ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    of_teacher = vecdot(p, bounded.sub_(mixed))
    pull = mixed.mul_(q)
    value = beta * of_teacher - (1 - beta) * pull.sum(1)
    return value, pull.mul_(beta - 1) if wanted else None


def skewed_forward_kl(pair: Pair, skew: float, wanted: bool) -> Answer:
    """KL(p || skew p + (1 - skew) q); skew in (0, 1)."""
    gap = _relative_gap(pair.q, pair.p).mul_(1 - skew)  # m / p - 1
    value = -vecdot(pair.p, gap.log1p())
    return value, gap.add_(1).reciprocal_().mul_(pair.q).mul_(skew - 1) if wanted else None


def skewed_reverse_kl(pair: Pair, skew: float, wanted: bool) -> Answer:
    """KL(q || (1 - skew) p + skew q); skew in (0, 1)."""
    gap = _relative_gap(pair.p, pair.q).mul_(1 - skew)  # m / q - 1
    mixed = gap.log1p()
    value = -vecdot(pair.q, mixed)
    if not wanted:
        return value, None
    share = gap.add_(1).reciprocal_().mul_(skew)  # skew q / m
    return value, mixed.add_(share).mul_(pair.q).neg_()


def total_variation(pair: Pair, wanted: bool) -> Answer:
    """Half the sum of |p - q|."""
    gap = pair.q - pair.p
    value = 0.5 * gap.abs().sum(1)
    return value, gap.sign_().mul_(pair.q).mul_(0.5) if wanted else None


def alpha_beta(pair: Pair, alpha: float, beta: float, wanted: bool) -> Answer:
    """The alpha-beta divergence, with its limits where alpha, beta or their sum is 0.

        -1 / (a b) sum (p^a q^b - a / (a + b) p^(a + b) - b / (a + b) q^(a + b))

    (1, 0) is forward KL, (0, 1) reverse KL, (0, 0) half the square of the log-ratio's norm. With
    A = (p^a q^b - q^(a+b)) / a, B = (p^(a+b) - p^a q^b) / b and S = (p^(a+b) - q^(a+b)) / (a+b),
    whose limits at a divisor of 0 are a power times log p - log q, the summand is (B - A) / (a+b)
    and as well (S - A) / b, and its derivative by log q is -A.

    Source:
        Cichocki, Cruces, Amari. "Generalized Alpha-Beta Divergences." Entropy 13 (2011), eq. 9.
        Wang et al. "ABKD." arXiv:2505.04560, section 4.
    """
    both = alpha + beta
    divisor = both if abs(both) >= abs(beta) else beta
    if abs(divisor) < COARSEST_DIVISOR and pair.p.dtype == torch.float32:
        value, pull = alpha_beta(_double(pair), alpha, beta, wanted)
        return value.float(), None if pull is None else pull.float()
    of_p, of_q = both * pair.log_p, both * pair.log_q
    crossed = torch.add(alpha * pair.log_p, pair.log_q, alpha=beta)
    if min(alpha, beta, both) < 0:
        of_p, of_q, crossed = (
            power.clamp_max_(LARGEST_EXPONENT) for power in (of_p, of_q, crossed)
        )
    a = _quotient(crossed, of_q, alpha, pair.ratio)
    if abs(divisor) < 1e-9:
        value = 0.5 * pair.ratio.square().sum(1)
    elif divisor == both:
        value = (_quotient(of_p, crossed, beta, pair.ratio) - a).sum(1) / both
    else:
        value = (_quotient(of_p, of_q, both, pair.ratio) - a).sum(1) / beta
    return value, a.neg_() if wanted else None


def adaptive_kl(pair: Pair, head_mass: float, wanted: bool) -> Answer:
    """h forward KL + (1 - h) reverse KL, h the share of sum |p - q| that lies in the head of p.

    The head is the fewest likeliest entries of p whose sum reaches `head_mass`, equal ones in
    their order. h has no gradient. Wu et al., arXiv:2404.02657, section 4.
    """
    gap = (pair.p - pair.q).abs()
    in_head = _head(pair.p, head_mass).to(gap.dtype)
    total = gap.sum(1, keepdim=True)
    head = (vecdot(gap, in_head).unsqueeze(1) / total).where(total > 0, 0.5)
    forward, forward_pull = forward_kl(pair, wanted)
    reverse, reverse_pull = reverse_kl(pair, wanted)
    share = head.squeeze(1)
    value = share * forward + (1 - share) * reverse
    if forward_pull is None or reverse_pull is None:
        return value, None
    return value, forward_pull.mul_(head).addcmul_(reverse_pull, 1 - head)


def _head(p: Tensor, mass: float) -> Tensor:
    """[b, M] bool: the fewest likeliest entries of each row that hold `mass`."""
    ordered = descending(p)
    ahead = ordered.cumsum(1).sub_(ordered)  # what lies ahead of each entry
    size = (ahead < mass).sum(1, keepdim=True)
    last = ordered.gather(1, size - 1)
    found = p >= last
    if bool((found.sum(1, keepdim=True) != size).any()):  # the last of a head has its equals
        level = p == last
        room = size - (p > last).sum(1, keepdim=True)
        found &= ~(level & (level.cumsum(1) > room))
    return found


def universal(p: Tensor, q: Tensor, wanted: bool) -> Answer:
    """Sum of |p - q| with both sorted: entries need no common meaning. arXiv:2402.12030, eq. 7.

    p [b, W] may have more entries than q [b, M], which are then compared with 0.
    """
    p = descending(p)
    q, order = ranked(q)
    gap = q - p[:, : q.shape[1]]
    value = gap.abs().sum(1) + p[:, q.shape[1] :].sum(1)
    if not wanted:
        return value, None
    return value, torch.zeros_like(q).scatter_(1, order, gap.sign_().mul_(q))


def decoupled(
    pair: Pair, labels: Tensor, label_weight: float, others_weight: float, wanted: bool
) -> Answer:
    """a KL((p_y, 1 - p_y) || (q_y, 1 - q_y)) + b KL among the others, renormalised.

    With b = 1 - p_y and a = 1 it is forward KL. Zhao et al., arXiv:2203.08679, equation 7.

    Args:
        pair: teacher and student.
        labels: [b, 1] int64.
        label_weight: a.
        others_weight: b.
        wanted: whether the pull is.
    """
    log_p_others, p_others = _without(pair.log_p, labels)
    log_q_others, q_others = _without(pair.log_q, labels)
    log_p, log_q = pair.log_p.gather(1, labels), pair.log_q.gather(1, labels)
    p, p_rest = log_p.exp(), log_p_others.exp()
    binary = p * (log_p - log_q).masked_fill(torch.isneginf(log_p), 0.0)
    binary = binary + p_rest * (log_p_others - log_q_others).masked_fill(
        torch.isneginf(log_p_others), 0.0
    )
    # The label's own ratio has factor 0 here, so only those of the others count.
    ratio = pair.ratio - (log_p_others - log_q_others).masked_fill(
        torch.isneginf(log_p_others), 0.0
    )
    among = vecdot(p_others, ratio)
    value = label_weight * binary.squeeze(1) + others_weight * among
    if not wanted:
        return value, None
    # A teacher with nothing beside the label says nothing of how the others compare.
    among_weight = others_weight * (p_others.sum(1, keepdim=True) > 0).to(p.dtype)
    pull = q_others * (among_weight - label_weight * p_rest) - p_others * among_weight
    return value, pull.scatter_(1, labels, -label_weight * p)


def _without(log: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The log of the mass beside the label [b, 1], and the distribution over it [b, M]."""
    rest = log.scatter(1, labels, -torch.inf)
    mass = torch.logsumexp(rest, 1, keepdim=True)
    return mass, (rest - mass.masked_fill(torch.isneginf(mass), 0.0)).exp_()


def _quotient(high: Tensor, low: Tensor, divisor: float, ratio: Tensor) -> Tensor:
    """(exp(high) - exp(low)) / divisor where high - low = divisor * ratio; its limit at 0."""
    if divisor == 0:
        return low.exp().mul_(ratio)
    size = torch.maximum(high, low).exp_()
    grown = torch.mul(ratio, divisor).abs_().neg_().expm1_().div_(-abs(divisor))
    return grown.copysign_(ratio).mul_(size)


def _relative_gap(top: Tensor, bottom: Tensor) -> Tensor:
    """top / bottom - 1, large but finite where `bottom` is 0."""
    return (top - bottom).div_(bottom.clamp_min(torch.finfo(bottom.dtype).tiny))


def _double(pair: Pair) -> Pair:
    return Pair(
        pair.p.double(),
        pair.log_p.double(),
        pair.q.double(),
        pair.log_q.double(),
        pair.ratio.double(),
    )
