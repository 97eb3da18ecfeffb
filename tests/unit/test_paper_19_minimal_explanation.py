"""Cha, Cho. arXiv:2505.13111: who learns from sharper texts becomes precise and loses coverage.

The paper's toy is no language model, so what is ours in it is the draw: which component of the
teacher a sample comes from is a token, drawn as a generated source draws, at its temperature.
"""

import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from orchestrator.evaluation.diagnostics.draw import drawn, uniform
from orchestrator.generation.author import limited
from orchestrator.spec.data import GeneratedSource

RING = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if (x, y) != (0, 0)], float)
VARIANCE, SEEDS, SAMPLES = 0.025, 20, 100
SHARPNESS = (1.0, 5.0, 10.0, 100.0)


def _log_density(points: np.ndarray) -> np.ndarray:
    """[n] under the true mixture."""
    squares = ((points[:, None] - RING[None]) ** 2).sum(2)
    each = -squares / (2 * VARIANCE) - math.log(2 * math.pi * VARIANCE) - math.log(len(RING))
    return np.logaddexp.reduce(each, axis=1)


def _from_truth(count: int, draws: np.random.Generator) -> np.ndarray:
    places = RING[draws.integers(len(RING), size=count)]
    return places + math.sqrt(VARIANCE) * draws.standard_normal((count, 2))


def _written(teacher: GaussianMixture, sharpness: float, seed: int, count: int) -> np.ndarray:
    """Samples of the teacher whose components are drawn at temperature 1 / sharpness."""
    source = GeneratedSource.model_validate(
        {
            "kind": "generated",
            "prompts": {"text": ["-"]},
            "count": count,
            "length": 1,
            "temperature": 1 / sharpness,
        }
    )
    logits = torch.from_numpy(np.log(teacher.weights_)).expand(count, -1)
    points = [uniform("generated", seed, index, 0) for index in range(count)]
    chosen = drawn(limited(logits, source), points).numpy()
    spread = np.sqrt(teacher.covariances_[chosen])
    draws = np.random.default_rng(seed)
    return teacher.means_[chosen] + spread * draws.standard_normal((count, 2))


def _precision_and_recall(learned: np.ndarray, seed: int) -> tuple[float, float]:
    """Of the likeliest single Gaussian: its samples under the truth, the truth's under it."""
    mean, variance = learned.mean(0), learned.var(0)
    draws = np.random.default_rng(1000 + seed)
    own = mean + np.sqrt(variance) * draws.standard_normal((2000, 2))
    true = _from_truth(2000, draws)
    under = -((true - mean) ** 2 / (2 * variance) + 0.5 * np.log(2 * math.pi * variance)).sum(1)
    return float(_log_density(own).mean()), float(under.mean())


@pytest.fixture(scope="module")
def curve() -> np.ndarray:
    """[sharpness, 2] mean precision and recall over the seeds."""
    found = np.zeros((len(SHARPNESS), SEEDS, 2))
    for seed in range(SEEDS):
        data = _from_truth(SAMPLES, np.random.default_rng(seed))
        teacher = GaussianMixture(4, covariance_type="diag", random_state=seed).fit(data)
        for place, sharpness in enumerate(SHARPNESS):
            learned = _written(teacher, sharpness, seed, 2000)
            found[place, seed] = _precision_and_recall(learned, seed)
    return found.mean(1)


def test_sharper_texts_raise_precision_and_cost_recall(curve: np.ndarray) -> None:
    precision, recall = curve.T
    assert precision[-1] - precision[0] >= 3
    assert recall[-1] <= recall[0] - 20
    assert (np.diff(precision) > -0.3).all() and (np.diff(recall) < 0.3).all()


def test_precision_is_scored_under_the_truth_and_not_under_who_wrote(curve: np.ndarray) -> None:
    """Under the sharpened teacher, one of its own Gaussians, even the widest student would gain."""
    one_component = math.log(1 / len(RING)) - math.log(2 * math.pi * VARIANCE) - 1
    assert curve[-1, 0] < one_component < 0  # what samples of a true component alone would have
