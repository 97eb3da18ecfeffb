"""Means and spreads of several gradients over batches, and what paper 0 reads off them.

K kinds of gradient, each a list of tensors, one a parameter.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Gradient = Sequence[Tensor]
SumOverRanks = Callable[[Tensor], None]
"""Sums a tensor over ranks, in place."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """Moments over the batches of all ranks; [K][K] each, products summed over all parameters."""

    batches: int
    centred: list[list[float]]  # sum over batches of <g_i - mean_i, g_j - mean_j>
    means: list[list[float]]  # <mean_i, mean_j>

    def covariance(self, i: int, j: int) -> float:
        """Trace of the covariance of gradients i and j over batches, unbiased."""
        return self.centred[i][j] / (self.batches - 1)

    def product(self, i: int, j: int) -> float:
        """Mean over batches of <g_i, g_j>."""
        return self.centred[i][j] / self.batches + self.means[i][j]


class Moments:
    """This rank's moments, one batch at a time; keeps K gradients and no batch's own.

    Updated as B. P. Welford does ("Note on a method for calculating corrected sums of squares and
    products", Technometrics 1962): a spread far smaller than the mean is not lost in rounding.
    """

    def __init__(self, kinds: int) -> None:
        self.batches = 0
        self.means: list[list[Tensor]] = [[] for _ in range(kinds)]
        self._centred = torch.zeros(kinds, kinds, dtype=torch.float64)

    def add(self, gradients: Sequence[Gradient]) -> None:
        """One batch's K gradients, of equal shapes; they are overwritten."""
        self.batches += 1
        if self.batches == 1:
            self.means = [list(gradient) for gradient in gradients]
            return
        for gradient, mean in zip(gradients, self.means, strict=True):
            for part, known in zip(gradient, mean, strict=True):
                part -= known
        self._centred += gram(gradients) * ((self.batches - 1) / self.batches)
        for gradient, mean in zip(gradients, self.means, strict=True):
            for part, known in zip(gradient, mean, strict=True):
                known.add_(part, alpha=1 / self.batches)

    def pooled(self, sum_over_ranks: SumOverRanks) -> Pooled:
        """With those of all ranks, each of which has added a batch; the means become the whole's.

        Source:
            Chan, Golub, LeVeque. "Algorithms for computing the sample variance." 1983, eq. 2.1.
        """
        device = self.means[0][0].device
        told = torch.tensor([float(self.batches)], dtype=torch.float64, device=device)
        sum_over_ranks(told)
        batches = round(float(told))
        offsets = torch.zeros_like(self._centred)
        whole = [[part * self.batches for part in mean] for mean in self.means]
        for mean, own in zip(whole, self.means, strict=True):
            for part, known in zip(mean, own, strict=True):
                sum_over_ranks(part)
                part /= batches
                known -= part
        offsets += gram(self.means) * self.batches
        self.means = whole
        centred = (self._centred + offsets).to(device)
        sum_over_ranks(centred)
        return Pooled(batches, centred.tolist(), gram(whole).tolist())


def gradient_noise(pooled: Pooled, lam: float) -> dict[str, float]:
    """What the role does to the noise of the gradient.

    Args:
        pooled: of two kinds: 0 of the data's loss (cross entropy with the labels), 1 of the role's
            (KL(role || student) at temperature 1).
        lam: share of the role's loss in the mixture.

    Returns:
        `trace_data`, `trace_role`, `trace_mixture`: traces of the covariance over batches of the
        gradients of CE, KL and (1 - lam) CE + lam KL; `norm_data`, `norm_role`: of the mean
        gradients; `cosine`: between those. And with g(theta) = g(data) - g(role), the gradient of
        the data's loss at the teacher's weights, `rho` and `lam0`; exact for students that are
        linear below their softmax (or squared loss) and learn from a teacher of the same kind. For
        others g(theta) stands for that difference, and lam0 is still the share at which the second
        moment of the mixture's gradient is least. A number that has nothing to be divided by is
        NaN.

    Source:
        Safaryan, Peste, Alistarh. "Knowledge Distillation Performs Partial Variance Reduction."
        arXiv:2305.17581. rho = E<g(x), g(theta)> / sqrt(E||g(x)||^2 E||g(theta)||^2) and
        lam0 = E<g(x), g(theta)> / E||g(theta)||^2.
    """
    cross = pooled.product(0, 0) - pooled.product(0, 1)
    teacher = pooled.product(0, 0) - 2 * pooled.product(0, 1) + pooled.product(1, 1)
    mixture = (
        (1 - lam) ** 2 * pooled.covariance(0, 0)
        + 2 * lam * (1 - lam) * pooled.covariance(0, 1)
        + lam**2 * pooled.covariance(1, 1)
    )
    data, role = math.sqrt(pooled.means[0][0]), math.sqrt(pooled.means[1][1])
    return {
        "batches": float(pooled.batches),
        "lam": lam,
        "trace_data": pooled.covariance(0, 0),
        "trace_role": pooled.covariance(1, 1),
        "trace_mixture": mixture,
        "norm_data": data,
        "norm_role": role,
        "cosine": ratio(pooled.means[0][1], data * role),
        "rho": ratio(cross, math.sqrt(pooled.product(0, 0) * max(teacher, 0.0))),
        "lam0": ratio(cross, teacher),
    }


def likeness(pooled: Pooled) -> dict[str, float]:
    """How like two gradients are, by their means over batches.

    Args:
        pooled: of two kinds.

    Returns:
        `batches`; `cosine_of_means`; `norm_true` and `norm_modified`, of the means of kinds 0 and
        1; `distance`, the norm of their difference over that of kind 0. A number that has nothing
        to be divided by is NaN.
    """
    (first, cross), (_, second) = pooled.means
    true, modified = math.sqrt(first), math.sqrt(second)
    apart = math.sqrt(max(first - 2 * cross + second, 0.0))
    return {
        "batches": float(pooled.batches),
        "cosine_of_means": ratio(cross, true * modified),
        "norm_true": true,
        "norm_modified": modified,
        "distance": ratio(apart, true),
    }


def norms_by_layer(names: Sequence[str], squares: Sequence[float]) -> dict[str, float]:
    """Norms of parameters joined by the layer they belong to, in order of first appearance.

    A layer is the name up to its first number (`model.layers.3`), or without its last part.

    Args:
        names: of the parameters.
        squares: squared norm of each one's gradient.
    """
    sums: dict[str, float] = {}
    for name, square in zip(names, squares, strict=True):
        layer = layer_of(name)
        sums[layer] = sums.get(layer, 0.0) + square
    return {layer: math.sqrt(total) for layer, total in sums.items()}


def layer_of(name: str) -> str:
    """The layer of a parameter."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return ".".join(parts[:-1]) or name


def gram(gradients: Sequence[Gradient]) -> Tensor:
    """[K, K] float64 on the CPU: <g_i, g_j> summed over parameters."""
    size = len(gradients)
    found = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(i, size):
            pairs = zip(gradients[i], gradients[j], strict=True)
            total = sum(float((a * b).sum(dtype=torch.float64)) for a, b in pairs)
            found[i, j] = found[j, i] = total
    return found


def ratio(above: float, below: float) -> float:
    """above / below; NaN where there is nothing to divide by."""
    return above / below if below > 0 else math.nan
