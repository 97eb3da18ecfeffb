"""Diagnostics that look at single held-out positions beside a role."""

from typing import Any

import torch
from torch import Tensor

from orchestrator.evaluation.diagnostics.positions import (
    COUNTS,
    COUNTS_WITHOUT_LABELS,
    Compared,
    agreement,
    agreement_counts,
    omega_summary,
    omegas,
)
from orchestrator.spec.diagnostics import OmegaSpec

from ..collective import gathered
from .site import Site


def measure_omega(site: Site, spec: OmegaSpec, work: str) -> dict[str, Any]:
    """See `omega_summary`. Collective."""
    pairs: list[Tensor] = []

    def look(seen: Compared) -> None:
        pairs.append(torch.stack(omegas(seen, spec.lam), 1).double())

    site.compare(site.role(spec.role), work, look)
    nothing = torch.zeros(0, 2, dtype=torch.float64, device=site.engine.device)
    omega, confidence = gathered(torch.cat([nothing, *pairs])).unbind(1)
    return omega_summary(omega, confidence, spec.lam)


def measure_agreement(site: Site, role: str, work: str) -> dict[str, float]:
    """See `agreement`. Collective."""
    names = COUNTS if site.job.data.has_labels else COUNTS_WITHOUT_LABELS
    sums: dict[str, float] = dict.fromkeys(names, 0.0)

    def look(seen: Compared) -> None:
        found = agreement_counts(seen)
        for name in names:
            sums[name] += found[name]

    site.compare(role, work, look)
    return agreement(site.sum_numbers(sums))
