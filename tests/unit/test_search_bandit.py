"""PB2's choice: against scikit-learn's Gaussian process, and where the best point is plain."""

import math

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, Matern

from orchestrator.search.bandit import Kernel, Seen, choose, likeliest, log_likelihood, posterior

FLAT = 1e9
"""A length at which a coordinate plays no part."""


@pytest.mark.parametrize("kernel", [Kernel(0.3, 0.1, 0.01), Kernel(1.0, 0.3, 0.5)])
def test_the_posterior_is_that_of_another_implementation(kernel: Kernel) -> None:
    """(1 - w)^(t / 2) is a Matern kernel of smoothness 1/2 whose length is -2 / log(1 - w)."""
    generator = np.random.default_rng(0)
    known, asked = generator.random((12, 3)), generator.random((7, 3))
    known[:, 0], asked[:, 0] = np.arange(12) // 4, 3.0
    gains = generator.normal(size=12)
    forgets = -2 / math.log(1 - kernel.forgetting)
    theirs = RBF([FLAT, kernel.length, kernel.length]) * Matern([forgets, FLAT, FLAT], nu=0.5)
    oracle = GaussianProcessRegressor(theirs, alpha=kernel.noise, optimizer=None).fit(known, gains)
    mean, spread = posterior(kernel, known, gains, asked)
    wanted, deviation = oracle.predict(asked, return_std=True)
    assert mean == pytest.approx(wanted, abs=1e-6) and spread == pytest.approx(deviation, abs=1e-6)
    likelihood = log_likelihood(kernel, known, gains)
    assert likelihood == pytest.approx(oracle.log_marginal_likelihood_value_, abs=1e-6)


def _seen(peak: float, count: int = 40) -> Seen:
    generator = np.random.default_rng(1)
    points = generator.random((count, 1))
    gains = -((points[:, 0] - peak) ** 2) + 0.01 * generator.normal(size=count)
    return Seen(points.tolist(), [1.0] * count, [2.0] * count, gains.tolist())


@pytest.mark.parametrize("peak", [0.2, 0.7])
def test_the_choice_is_where_most_was_gained(peak: float) -> None:
    (found,) = choose(_seen(peak), when=2.0, value=2.0, pending=[], dimensions=1, seed=0)
    assert abs(found - peak) < 0.15


def test_what_others_are_about_to_try_is_left_to_them() -> None:
    first = choose(_seen(0.5, 4), when=2.0, value=2.0, pending=[], dimensions=1, seed=0)
    crowd = [first] * 5
    second = choose(_seen(0.5, 4), when=2.0, value=2.0, pending=crowd, dimensions=1, seed=0)
    assert second != first


def test_while_nothing_is_known_the_choice_is_random_and_depends_on_the_seed() -> None:
    nothing = Seen([], [], [], [])
    found = [
        choose(nothing, when=1, value=1.0, pending=[], dimensions=2, seed=s) for s in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2] and len(found[0]) == 2
    equal = Seen([[0.1], [0.9]], [1, 1], [1.0, 1.0], [0.5, 0.5])
    assert 0 <= choose(equal, when=2, value=1.0, pending=[], dimensions=1, seed=0)[0] <= 1


def test_noise_is_told_from_a_shape() -> None:
    known = np.column_stack([np.zeros(30), np.linspace(0, 1, 30)])
    smooth = np.sin(6 * known[:, 1])
    rough = np.random.default_rng(0).normal(size=30)
    assert likeliest(known, smooth).noise == 0.01 and likeliest(known, rough).noise == 0.5
