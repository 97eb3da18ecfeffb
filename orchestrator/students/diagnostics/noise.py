"""Diagnostics that look at gradients: their noise, and their norms by layer."""

from collections.abc import Mapping
from functools import partial

import torch

from orchestrator.evaluation.diagnostics.gradients import (
    Moments,
    gradient_noise,
    norms_by_layer,
)
from orchestrator.spec.diagnostics import GradientNoiseSpec, GradientNormSpec
from strategies.objective import Objective, build_objective
from strategies.progress import Progress
from strategies.specs import CrossEntropySpec, ForwardKLSpec, ObjectiveSpec

from ..export import PREFIX
from ..inside import trained
from .gradients import batch_gradients, mean_loss
from .site import Site


def measure_noise(site: Site, spec: GradientNoiseSpec, work: str) -> dict[str, float]:
    """See `gradient_noise`. Takes four gradients of memory on each rank. Collective."""
    role = site.role(spec.role)
    terms = CrossEntropySpec(kind="cross_entropy"), ForwardKLSpec(kind="forward_kl", role=role)
    objectives = [build_objective(ObjectiveSpec(terms=[term])) for term in terms]
    at = Progress(0, 1, 0, None)
    moments, module = Moments(2), site.engine.whole_module
    parts, asks = site.training_parts(spec.batches), site.exactly(role)
    for answered in site.asker.answered(site.data.train, parts, asks, work):
        losses = [
            partial(mean_loss, one, answered, one.numbers(at, one.start())) for one in objectives
        ]
        moments.add(batch_gradients(module, answered.batch, losses))
    return gradient_noise(moments.pooled(site.sum_tensor), spec.lam)


def measure_norms(
    site: Site,
    spec: GradientNormSpec,
    work: str,
    objective: Objective,
    numbers: Mapping[str, float],
) -> dict[str, float]:
    """Norms of the objective's mean gradient by layer of the student. Collective.

    Args:
        site: the rank.
        spec: how many micro-batches.
        work: begins the questions' names.
        objective: the job's.
        numbers: its numbers at this step.
    """
    moments, module = Moments(1), site.engine.whole_module
    parts = site.training_parts(spec.batches)
    for answered in site.asker.answered(site.data.train, parts, None, work):
        loss = partial(mean_loss, objective, answered, numbers)
        moments.add(batch_gradients(module, answered.batch, [loss]))
    moments.pooled(site.sum_tensor)
    squares = [float(part.square().sum(dtype=torch.float64)) for part in moments.means[0]]
    return norms_by_layer([name.removeprefix(PREFIX) for name in trained(module)], squares)
