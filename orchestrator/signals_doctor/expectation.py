"""What draws say on average: the mean over seeds of a loss and of its gradient. Imports torch.

Of the gradient a few projections on fixed random directions are looked at. All are deterministic,
so a job that passes once passes again. P positions, d width.
"""

import math

import numpy as np
import torch
from torch import Tensor

from orchestrator.signals.encodings.uniforms import signs
from orchestrator.signals.records import SampledAsk
from strategies.contract import Outputs

from .losses import Moment, loss_of
from .oracle import Truth
from .subject import Subject
from .subjects import draws, encoded, rows_of

SEEDS = 32
DIRECTIONS = 4
POSITIONS = 64


def some_positions(subject: Subject) -> np.ndarray:
    """[P] indices of positions, spread over all."""
    count = len(subject.specimen.places)
    return np.unique(np.linspace(0, count - 1, min(count, POSITIONS)).round().astype(int))


def deviation(
    subject: Subject,
    moment: Moment,
    ask: SampledAsk,
    student: Outputs,
    at: np.ndarray,
    truth: Truth,
) -> tuple[float, float]:
    """How far the means of value and gradient are from the truth, in standard errors.

    Args:
        subject: who draws.
        moment: a term that learns from draws.
        ask: the job's; its seed is the first.
        student: at the P positions.
        at: [P] their indices.
        truth: the term's own, from the whole distribution, at the P positions.

    Returns:
        Of the value; the largest of the gradient's projections.
    """
    rows = torch.from_numpy(at)
    targets = subject.targets[rows.to(subject.targets.device)]
    role = part_of(subject.served.outputs, at)
    directions = [_direction(number, truth.gradient) for number in range(DIRECTIONS)]
    seen = []
    for seed in range(SEEDS):
        signal = encoded(draws(ask, seed), subject.served, role, subject.specimen, at.tolist())
        value, gradient = loss_of(moment, student, signal, targets)
        seen.append([value, *(float((gradient * way).sum()) for way in directions)])
    expected = [truth.value, *(float((truth.gradient * way).sum()) for way in directions)]
    errors = [_standard_errors([row[i] for row in seen], each) for i, each in enumerate(expected)]
    return errors[0], max(errors[1:])


def part_of(outputs: Outputs, at: np.ndarray) -> Outputs:
    """The outputs at some positions."""
    return rows_of(outputs, torch.from_numpy(at))


def _direction(number: int, gradient: Tensor) -> Tensor:
    return torch.from_numpy(signs(number, *gradient.shape)).double()


def _standard_errors(values: list[float], expected: float) -> float:
    off = abs(float(np.mean(values)) - expected)
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    # Draws of a role that is certain do not differ: then only float32's rounding is left.
    floor = 1e-6 * max(1.0, abs(expected))
    return off / max(spread, floor)
