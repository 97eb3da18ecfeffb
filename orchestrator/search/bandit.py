"""PB2's choice of numbers: the upper confidence bound of a Gaussian process that forgets. Pure.

Promises: the same choice for the same arguments. NumPy only.

Source: Parker-Holder, Nguyen, Roberts. "Provably Efficient Online Hyperparameter Optimization with
Population-Based Bandits." NeurIPS 2020, arXiv:2002.02518: kernel, bound (with the constants of the
authors' code) and pending points, which count in the variance alone. Otherwise here: length,
forgetting and noise are the likeliest on a small grid, and the bound is looked for among random
points; neither has a start to depend on.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LENGTHS = (0.1, 0.3, 1.0)
FORGETTING = (0.01, 0.1, 0.3)
NOISES = (0.01, 0.1, 0.5)
"""Of what has variance 1."""
CANDIDATES = 2000
MOST = 500
"""Newest legs that are looked at: the work grows with their third power."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What legs have gained, an entry a leg."""

    points: Sequence[Sequence[float]]  # each number's place in its range, 0 to 1
    whens: Sequence[float]  # round
    values: Sequence[float]  # what was measured before
    gains: Sequence[float]  # by how much that became better


@dataclass(frozen=True, slots=True)
class Kernel:
    """exp(-|x - x'|^2 / (2 length^2)) (1 - forgetting)^(|t - t'| / 2), of variance 1."""

    length: float
    forgetting: float
    noise: float  # variance

    def __call__(self, left: Array, right: Array) -> Array:
        """[N, 1 + D], [M, 1 + D] -> [N, M]; the first column is the time."""
        apart = left[:, None, 1:] - right[None, :, 1:]
        near = np.exp(-0.5 * np.sum(apart**2, -1) / self.length**2)
        return near * (1 - self.forgetting) ** (np.abs(left[:, None, 0] - right[None, :, 0]) / 2)


def posterior(kernel: Kernel, known: Array, gains: Array, asked: Array) -> tuple[Array, Array]:
    """Mean and standard deviation at points, without the noise.

    Args:
        kernel: with its noise.
        known: [N, 1 + D], time first.
        gains: [N].
        asked: [M, 1 + D].

    Returns:
        Two of [M].
    """
    lower = np.linalg.cholesky(kernel(known, known) + kernel.noise * np.eye(len(known)))
    across = np.linalg.solve(lower, kernel(known, asked))
    mean = across.T @ np.linalg.solve(lower, gains)
    return mean, np.sqrt(np.maximum(1.0 - np.sum(across**2, 0), 0.0))


def log_likelihood(kernel: Kernel, known: Array, gains: Array) -> float:
    """Of the gains, [N], at known points, [N, 1 + D]."""
    lower = np.linalg.cholesky(kernel(known, known) + kernel.noise * np.eye(len(known)))
    white = np.linalg.solve(lower, gains)
    determinant = 2.0 * float(np.sum(np.log(np.diag(lower))))
    return -0.5 * (float(white @ white) + determinant + len(known) * math.log(2 * math.pi))


def likeliest(known: Array, gains: Array) -> Kernel:
    """The kernel of the grid under which the gains are likeliest; the first of equals."""
    grid = [Kernel(*each) for each in itertools.product(LENGTHS, FORGETTING, NOISES)]
    return max(grid, key=lambda kernel: log_likelihood(kernel, known, gains))


def choose(
    seen: Seen,
    *,
    when: float,
    value: float | None,
    pending: Sequence[Sequence[float]],
    dimensions: int,
    seed: int,
) -> list[float]:
    """Where to go on, each coordinate from 0 to 1; a random point while nothing can be told.

    Args:
        seen: what was gained where.
        when: the round that comes.
        value: what is measured before it.
        pending: points at which others go that round.
        dimensions: of a point.
        seed: of the random points.
    """
    candidates: Array = np.random.default_rng(seed).random((CANDIDATES, dimensions))
    gains = np.asarray(seen.gains[-MOST:], dtype=np.float64)
    if value is None or len(gains) < 2 or float(np.std(gains)) == 0.0:
        return candidates[0].tolist()
    gains = (gains - np.mean(gains)) / np.std(gains)
    low, high = min(seen.values[-MOST:]), max(seen.values[-MOST:])
    width = high - low or 1.0

    def rows(points: Any, whens: Any, values: Any) -> Array:
        """[N, 1 + 1 + D]: time, value before, point."""
        count = len(points)
        before = (np.broadcast_to(np.asarray(values, dtype=np.float64), count) - low) / width
        times = np.broadcast_to(np.asarray(whens, dtype=np.float64), count)
        return np.column_stack([times, before, np.asarray(points, dtype=np.float64)])

    known = rows(seen.points[-MOST:], seen.whens[-MOST:], seen.values[-MOST:])
    asked = rows(candidates, when, value)
    kernel = likeliest(known, gains)
    mean, _ = posterior(kernel, known, gains, asked)
    # What others are about to try says nothing of the mean yet, but leaves less to learn there.
    crowd = np.vstack([known, rows(pending, when, value)]) if pending else known
    _, spread = posterior(kernel, crowd, np.zeros(len(crowd)), asked)
    bold = math.sqrt(0.2 + max(0.0, math.log(0.4 * len(known))))
    return candidates[int(np.argmax(mean + bold * spread))].tolist()
