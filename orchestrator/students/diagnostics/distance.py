"""How far the student's logits are from a role's, on held-out samples and around them."""

import torch

from orchestrator.spec.diagnostics import LogitDistanceSpec
from strategies.specs import AscendSpec

from ..collective import gathered
from ..moves import mover_of
from .site import Site


def measure_logit_distance(site: Site, spec: LogitDistanceSpec, work: str) -> dict[str, float]:
    """`mean` and `worst` over samples of the mean over classes of (student - role)^2. Collective.

    `mean_near` and `worst_near` are of the places where the steps have led. The role is asked once
    for each step, and once more at the end.
    """
    way = AscendSpec(
        kind="ascend",
        role=site.role(spec.role),
        every=1,
        rounds=1,
        steps=spec.steps,
        size=spec.size,
    )
    mover = mover_of(site.job, site.engine, site.questions, site.data.train)
    store, rows = site.held_out.store, [row for part in site.held_out.parts for row in part]
    words = [store.tokens(i) for row in rows for i in row]
    places = mover.places(way.role, words, int(store.lengths.max()))
    x, found = places.start(), list[torch.Tensor]()
    for step in range(spec.steps + 1):
        x, distances = mover.climb(way, places, x, f"{work}.{step}")
        found.append(distances.double() / site.vocabulary)
    here, near = gathered(torch.stack([found[0], found[-1]], 1)).unbind(1)
    return {
        "mean": float(here.mean()),
        "worst": float(here.max()),
        "mean_near": float(near.mean()),
        "worst_near": float(near.max()),
    }
