"""Values and analytic gradients of vocabulary terms on one chunk, in place, in few passes.

Each function reads log-ratios and probabilities, adds d(scale * T^2 * value) / d(logits) to a
`Gradient`, and returns the value of every row. With a = logits / T and q = softmax(a):

    forward KL      value  sum p (log p - log q)     gradient by a   q - p
    reverse KL      value  sum q (log q - log p)     gradient by a   q (log q - log p - value)
    JSD, r = log q - log m                           gradient by a   (1 - beta) q (r - sum q r)

and by logits the same times T^2 / T = T. `ratio` is log p - log q throughout. Written for dense
vocabularies, and used as they are for the K + 1 outcomes of a top-k teacher.
"""

import torch
from torch import Tensor

LARGEST_RATIO = 80.0
"""|log p - log q| beyond which one side's share of the mixture is 0 in float32."""


class Gradient:
    """A sum of [C, V] contributions in one buffer; the first overwrites what the buffer held."""

    def __init__(self, buffer: Tensor) -> None:
        self._buffer, self._empty = buffer, True

    def add(self, tensor: Tensor, factor: float) -> None:
        """+= factor * tensor."""
        if self._empty:
            torch.mul(tensor, factor, out=self._buffer)
            self._empty = False
        else:
            self._buffer.add_(tensor, alpha=factor)

    def add_product(self, left: Tensor, right: Tensor, factor: float) -> None:
        """+= factor * left * right, broadcasting `right`."""
        if self._empty:
            torch.mul(left, right, out=self._buffer)
            if factor != 1.0:
                self._buffer.mul_(factor)
            self._empty = False
        else:
            self._buffer.addcmul_(left, right, value=factor)

    def add_constant(self, number: float) -> None:
        """+= number, everywhere."""
        self.total().add_(number)

    def add_at(self, ids: Tensor, values: Tensor) -> None:
        """[:, ids] += values; both [C, K]; repeated ids add up."""
        self.total().scatter_add_(1, ids, values)

    def total(self) -> Tensor:
        """[C, V]: the sum so far, in the buffer itself."""
        if self._empty:
            self._buffer.zero_()
            self._empty = False
        return self._buffer


def row_dot(left: Tensor, right: Tensor, scratch: Tensor) -> Tensor:
    """[C, V] x [C, V] -> [C, 1]; overwrites `scratch`, which may be one of the two."""
    return torch.mul(left, right, out=scratch).sum(-1, keepdim=True)


def forward_kl(p: Tensor, ratio: Tensor, scratch: Tensor) -> Tensor:
    """[C, 1]. The gradient is linear in q and p, so the caller adds it, shared between terms."""
    return row_dot(p, ratio, scratch)


def reverse_kl(
    q: Tensor, ratio: Tensor, scratch: Tensor, gradient: Gradient | None, factor: float
) -> Tensor:
    """[C, 1]; adds factor * q (log q - log p - value)."""
    minus = row_dot(q, ratio, scratch)
    if gradient is not None:
        torch.sub(ratio, minus, out=scratch)
        gradient.add_product(q, scratch, -factor)
    return -minus


def jensen_shannon(
    p: Tensor,
    q: Tensor,
    ratio: Tensor,
    beta: float,
    scratch: tuple[Tensor, Tensor],
    gradient: Gradient | None,
    factor: float,
) -> Tensor:
    """[C, 1]; adds factor * (1 - beta) q (r - sum q r) with r = log q - log m."""
    mixed, work = scratch
    torch.clamp(ratio, -LARGEST_RATIO, LARGEST_RATIO, out=mixed)
    torch.expm1(mixed, out=work)
    work.mul_(beta).log1p_().neg_()  # r = -log(1 - beta + beta exp(ratio))
    mixed.add_(work)  # log p - log m
    of_teacher = row_dot(p, mixed, mixed)
    of_student = row_dot(q, work, mixed)
    if gradient is not None:
        work.sub_(of_student)
        gradient.add_product(q, work, factor * (1 - beta))
    return beta * of_teacher + (1 - beta) * of_student
