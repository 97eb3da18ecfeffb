"""How near the modified gradient comes to that of distillation."""

import math
from dataclasses import replace
from functools import partial

from orchestrator.evaluation.diagnostics.gradients import Moments, gram, likeness, ratio
from orchestrator.spec.diagnostics import ModifiedGradientSpec
from strategies.objective import build_objective
from strategies.progress import Progress
from strategies.recipes import ModifiedGradient, PartialVariance
from strategies.specs import ObjectiveSpec

from .gradients import batch_gradients, mean_loss
from .site import Site


def measure_modified_gradient(
    site: Site, spec: ModifiedGradientSpec, work: str
) -> dict[str, float]:
    """Of grad f(x) - lam grad f(theta) beside grad of (1 - lam) CE + lam KL, at temperature 1.

    See `likeness`; `cosine` is the mean over micro-batches. Takes four gradients of memory on each
    rank. Collective.
    """
    role = site.role(spec.role)
    resident = site.residents[role]
    recipes = (
        PartialVariance(kind="partial_variance", role=role, role_share=spec.lam),
        ModifiedGradient(kind="modified_gradient", role=role, role_share=spec.lam),
    )
    objectives = [
        build_objective(ObjectiveSpec(terms=recipe.terms()), residents={role: resident})
        for recipe in recipes
    ]
    at, moments, sums = Progress(0, 1, 0, None), Moments(2), {"cosine": 0.0, "batches": 0.0}
    parts, module = site.training_parts(spec.batches), site.engine.whole_module
    for answered in site.asker.answered(site.data.train, parts, {}, work):
        answered = replace(answered, signals={role: resident.signal(answered.batch)})
        losses = [
            partial(mean_loss, one, answered, one.numbers(at, one.start())) for one in objectives
        ]
        true, modified = batch_gradients(module, answered.batch, losses)
        (one, cross), (_, other) = gram([true, modified]).tolist()
        sums["cosine"] += ratio(cross, math.sqrt(one * other))
        sums["batches"] += 1
        moments.add([true, modified])
    told = site.sum_numbers(sums)
    found = likeness(moments.pooled(site.sum_tensor))
    return {"lam": spec.lam, "cosine": told["cosine"] / told["batches"], **found}
