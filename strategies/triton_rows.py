"""One row of logits a program: softmax statistics, values and pulls, gradient. Imports Triton.

The formulas are those of `kernels`; `fused` says what is asked of them. Imported only where Triton
is.

C rows, V the student's vocabulary.
"""

# Triton's annotations know neither launch options nor plain numbers nor what kernels return.
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 1024, 8
"""Entries of a row that a program has in hand at once, and its warps."""


def compare_kernel(
    student: Tensor,
    role: Tensor,
    labels: Tensor,
    temperature: Tensor,
    factors: Tensor,
    values: Tensor,
    gradient: Tensor | None,
    *,
    add: bool,
    has_role: bool,
    smoothing: float,
    beta: float,
    forward_skew: float,
    reverse_skew: float,
    places: Sequence[int],
) -> None:
    """Write values, and write or add the gradient.

    Args:
        student: [C, V] float32, rows contiguous.
        role: as `student`; -inf where it lacks an entry. Unused without `has_role`.
        labels: [C, 1] int64.
        temperature: [C] float32.
        factors: [7, C] float32: of each kind's pull, in the order of `fused.KINDS`.
        values: [terms, C] float32; row `places[kind]` is written.
        gradient: [C, V], or None: not wanted.
        add: to what `gradient` holds.
        has_role: whether there is a role.
        smoothing: of the labels.
        beta: of the Jensen-Shannon divergence.
        forward_skew: of the skewed forward KL.
        reverse_skew: of the skewed reverse KL.
        places: the row of `values` of each kind; -1: not asked.
    """
    count, width = student.shape
    labelled, forward, reverse, mixed, skewed, skewed_back, variation = places
    summed = max(reverse, mixed, skewed, skewed_back, variation) >= 0
    block = min(BLOCK, triton.next_power_of_2(width))
    _compare[(count,)](
        student, role, labels, temperature, factors, values,
        student if gradient is None else gradient,
        count, width, student.stride(0), role.stride(0),
        0 if gradient is None else gradient.stride(0),
        float(beta), float(forward_skew), float(reverse_skew), float(smoothing),
        HAS_ROLE=has_role, GRADIENT=gradient is not None, ADD=add,
        SUMS=summed or (forward >= 0 and gradient is None), SMOOTHED=smoothing != 0.0,
        LABELLED=labelled, FORWARD=forward, REVERSE=reverse, MIXED=mixed, SKEWED=skewed,
        SKEWED_BACK=skewed_back, VARIATION=variation, BLOCK=block, num_warps=WARPS,
    )  # fmt: skip


LOWEST = tl.constexpr(-1e30)
"""Stands for -inf where two of them would be subtracted."""
MOST = tl.constexpr(2.3538526683702e17)
"""exp(40), as `kernels.LARGEST_LOG_RATIO`."""
TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def _log1p(x):
    """log(1 + x), as accurate for small x as for large: the hardware's logarithm is not."""
    near = x / (2.0 + x)
    square = near * near
    series = 1.0 / 9.0 + square * (1.0 / 11.0)
    series = 1.0 / 7.0 + square * series
    series = 1.0 / 5.0 + square * series
    series = 1.0 / 3.0 + square * series
    series = 2.0 * near * (1.0 + square * series)
    return tl.where(tl.abs(x) < 0.5, series, tl.log(1.0 + x))


@triton.jit
def _gap(top, bottom):
    """top / bottom - 1, at most exp(40)."""
    return tl.minimum((top - bottom) / tl.maximum(bottom, TINY), MOST)


@triton.jit
def _statistics(rows, width, cooling, BLOCK: tl.constexpr):
    """Largest entry of a row, and the sum of exp((entry - largest) / temperature)."""
    largest = tl.full([BLOCK], LOWEST, tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(rows + at, mask=at < width, other=-float("inf"))
        above = tl.maximum(largest, x)
        mass = mass * tl.exp((largest - above) * cooling) + tl.exp((x - above) * cooling)
        largest = above
    peak = tl.max(largest, 0)
    return peak, tl.sum(mass * tl.exp((largest - peak) * cooling), 0)


@triton.jit
def _pull(
    p, q, ratio, reverse_value, f_forward, f_reverse, f_mixed, f_skewed, f_skewed_back, f_variation,
    beta, forward_skew, reverse_skew,
    FORWARD: tl.constexpr, REVERSE: tl.constexpr, MIXED: tl.constexpr, SKEWED: tl.constexpr,
    SKEWED_BACK: tl.constexpr, VARIATION: tl.constexpr,
):  # fmt: skip
    """The weighted pulls of all kinds but labels and reverse KL's mean, entry by entry."""
    pull = tl.zeros_like(q)
    if FORWARD >= 0:
        pull -= f_forward * p
    if REVERSE >= 0:
        pull -= f_reverse * q * (ratio + reverse_value)
    if MIXED >= 0:
        pull -= f_mixed * (1.0 - beta) * q * _log1p(beta * _gap(p, q))
    if SKEWED >= 0:
        gap = (1.0 - forward_skew) * _gap(q, p)
        pull -= f_skewed * (1.0 - forward_skew) * q / (1.0 + gap)
    if SKEWED_BACK >= 0:
        gap = (1.0 - reverse_skew) * _gap(p, q)
        pull -= f_skewed_back * q * (_log1p(gap) + reverse_skew / (1.0 + gap))
    if VARIATION >= 0:
        sign = tl.where(q > p, 1.0, tl.where(q < p, -1.0, 0.0))
        pull += f_variation * 0.5 * q * sign
    return pull


@triton.jit
def _compare(
    student_pointer, role_pointer, labels_pointer, temperature_pointer, factors_pointer,
    values_pointer, gradient_pointer, count, width, student_stride, role_stride, gradient_stride,
    beta, forward_skew, reverse_skew, smoothing,
    HAS_ROLE: tl.constexpr, GRADIENT: tl.constexpr, ADD: tl.constexpr, SUMS: tl.constexpr,
    SMOOTHED: tl.constexpr, LABELLED: tl.constexpr, FORWARD: tl.constexpr, REVERSE: tl.constexpr,
    MIXED: tl.constexpr, SKEWED: tl.constexpr, SKEWED_BACK: tl.constexpr, VARIATION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    student = student_pointer + row * student_stride
    role = role_pointer + row * role_stride
    cooling = 1.0 / tl.load(temperature_pointer + row)
    f_labels = tl.load(factors_pointer + row)
    f_forward = tl.load(factors_pointer + count + row)
    f_reverse = tl.load(factors_pointer + 2 * count + row)
    f_mixed = tl.load(factors_pointer + 3 * count + row)
    f_skewed = tl.load(factors_pointer + 4 * count + row)
    f_skewed_back = tl.load(factors_pointer + 5 * count + row)
    f_variation = tl.load(factors_pointer + 6 * count + row)

    s_peak, s_mass = _statistics(student, width, cooling, BLOCK)
    s_log_mass = tl.log(s_mass)
    t_peak, t_log_mass = 0.0, 0.0
    if HAS_ROLE:
        t_peak, t_mass = _statistics(role, width, cooling, BLOCK)
        t_log_mass = tl.log(t_mass)

    label = tl.load(labels_pointer + row)
    if LABELLED >= 0:
        of_label = (tl.load(student + label) - s_peak) * cooling - s_log_mass
        value = (smoothing - 1.0) * of_label
        if SMOOTHED:
            every = tl.zeros([BLOCK], tl.float32)
            for start in range(0, width, BLOCK):
                at = start + tl.arange(0, BLOCK)
                x = tl.load(student + at, mask=at < width, other=0.0)
                every += tl.where(at < width, (x - s_peak) * cooling - s_log_mass, 0.0)
            value -= smoothing * tl.sum(every, 0) / width
        tl.store(values_pointer + LABELLED * count + row, value)

    # What the pulls sum to: forward KL's is known, labels' is added where it is used.
    total = -f_forward
    reverse_value = 0.0
    if SUMS:
        forward_sum = tl.zeros([BLOCK], tl.float32)
        reverse_sum = tl.zeros([BLOCK], tl.float32)
        teacher_sum = tl.zeros([BLOCK], tl.float32)
        mixed_sum = tl.zeros([BLOCK], tl.float32)
        skewed_sum = tl.zeros([BLOCK], tl.float32)
        skewed_back_sum = tl.zeros([BLOCK], tl.float32)
        variation_sum = tl.zeros([BLOCK], tl.float32)
        pull_sum = tl.zeros([BLOCK], tl.float32)
        for start in range(0, width, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < width
            log_q = (tl.load(student + at, mask=inside, other=LOWEST) - s_peak) * cooling
            log_p = (tl.load(role + at, mask=inside, other=LOWEST) - t_peak) * cooling
            log_q -= s_log_mass
            log_p = tl.maximum(log_p - t_log_mass, LOWEST)
            q, p, ratio = tl.exp(log_q), tl.exp(log_p), log_p - log_q
            if FORWARD >= 0:
                forward_sum += p * ratio
            if REVERSE >= 0:
                reverse_sum -= q * ratio
            if MIXED >= 0:
                grown = _log1p(beta * _gap(p, q))
                bounded = tl.minimum(tl.maximum(ratio, -40.0), 40.0)
                teacher_sum += p * (bounded - grown)
                mixed_sum += q * grown
            if SKEWED >= 0:
                skewed_sum -= p * _log1p((1.0 - forward_skew) * _gap(q, p))
            if SKEWED_BACK >= 0:
                skewed_back_sum -= q * _log1p((1.0 - reverse_skew) * _gap(p, q))
            if VARIATION >= 0:
                variation_sum += 0.5 * tl.abs(p - q)
            pull_sum += _pull(
                p, q, ratio, 0.0, f_forward, 0.0, f_mixed, f_skewed, f_skewed_back, f_variation,
                beta, forward_skew, reverse_skew,
                FORWARD, -1, MIXED, SKEWED, SKEWED_BACK, VARIATION,
            )  # fmt: skip
        total = tl.sum(pull_sum, 0)
        if FORWARD >= 0:
            value = tl.maximum(tl.sum(forward_sum, 0), 0.0)
            tl.store(values_pointer + FORWARD * count + row, value)
        if REVERSE >= 0:
            reverse_value = tl.sum(reverse_sum, 0)
            tl.store(values_pointer + REVERSE * count + row, tl.maximum(reverse_value, 0.0))
        if MIXED >= 0:
            value = beta * tl.sum(teacher_sum, 0) - (1.0 - beta) * tl.sum(mixed_sum, 0)
            tl.store(values_pointer + MIXED * count + row, tl.maximum(value, 0.0))
        if SKEWED >= 0:
            value = tl.maximum(tl.sum(skewed_sum, 0), 0.0)
            tl.store(values_pointer + SKEWED * count + row, value)
        if SKEWED_BACK >= 0:
            value = tl.maximum(tl.sum(skewed_back_sum, 0), 0.0)
            tl.store(values_pointer + SKEWED_BACK * count + row, value)
        if VARIATION >= 0:
            tl.store(values_pointer + VARIATION * count + row, tl.sum(variation_sum, 0))

    if GRADIENT:
        gradient = gradient_pointer + row * gradient_stride
        forward_sum = tl.zeros([BLOCK], tl.float32)
        for start in range(0, width, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < width
            log_q = (tl.load(student + at, mask=inside, other=LOWEST) - s_peak) * cooling
            log_q -= s_log_mass
            q = tl.exp(log_q)
            by_logits = -q * (total - f_labels)
            if HAS_ROLE:
                log_p = (tl.load(role + at, mask=inside, other=LOWEST) - t_peak) * cooling
                log_p = tl.maximum(log_p - t_log_mass, LOWEST)
                p, ratio = tl.exp(log_p), log_p - log_q
                by_logits += _pull(
                    p, q, ratio, reverse_value, f_forward, f_reverse, f_mixed, f_skewed,
                    f_skewed_back, f_variation, beta, forward_skew, reverse_skew,
                    FORWARD, REVERSE, MIXED, SKEWED, SKEWED_BACK, VARIATION,
                )  # fmt: skip
                if FORWARD >= 0 and not SUMS:
                    forward_sum += p * ratio
            if LABELLED >= 0:
                hit = tl.where(at == label, 1.0 - smoothing, 0.0)
                by_logits -= f_labels * (hit + smoothing / width)
            if ADD:
                by_logits += tl.load(gradient + at, mask=inside, other=0.0)
            tl.store(gradient + at, by_logits.to(gradient_pointer.dtype.element_ty), mask=inside)
        if FORWARD >= 0 and not SUMS:
            value = tl.maximum(tl.sum(forward_sum, 0), 0.0)
            tl.store(values_pointer + FORWARD * count + row, value)
