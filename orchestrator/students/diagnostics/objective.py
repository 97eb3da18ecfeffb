"""The objective's own loss on held-out data: what a stage of features can be judged by."""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from orchestrator.models.forward import evaluating
from orchestrator.spec.diagnostics import ObjectiveLossSpec
from strategies.contract import Outputs
from strategies.objective import Objective
from strategies.specs import InputGradientsSpec

from ..asked import Answered
from .site import Site


def measure_objective(
    site: Site,
    spec: ObjectiveLossSpec,
    work: str,
    objective: Objective,
    numbers: Mapping[str, float],
) -> dict[str, float]:
    """`total`, the weighted sum, and each term's mean over what it counts. Collective.

    Args:
        site: the rank.
        spec: of the job.
        work: begins the questions' names.
        objective: the job's.
        numbers: its numbers at this step.
    """
    names = [term.name for term in objective.terms]
    sums = {f"{what} {name}": 0.0 for name in names for what in ("total", "count")}
    module, parts = site.engine.module, site.held_out.parts
    twice = any(isinstance(t, InputGradientsSpec) for t in site.job.objective.terms)
    for answered in site.asker.answered(site.held_out.store, parts, None, work):

        def consume(outputs: Outputs, at: Answered = answered) -> Tensor:
            batch, signals, asked = at.batch, at.signals, at.asked
            known = objective.known(batch, signals, asked)
            scales = dict.fromkeys(names, 0.0)
            _, totals = objective.loss(outputs, batch, signals, numbers, scales, asked, known)
            for name, count in objective.counts(batch, signals, asked, known).items():
                sums[f"count {name}"] += float(count)
                sums[f"total {name}"] += float(totals[name])
            return torch.zeros(())

        with evaluating(module), nullcontext() if twice else torch.no_grad():
            module(answered.batch, consume)
    found = site.sum_numbers(sums)
    means = {name: found[f"total {name}"] / max(found[f"count {name}"], 1.0) for name in names}
    total = sum(numbers[f"{name}.weight"] * mean for name, mean in means.items())
    return {**means, "total": total}
