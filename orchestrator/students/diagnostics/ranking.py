"""The diagnostic that looks at the lists recommended to held-out users."""

from typing import Any

import torch
from torch import Tensor

from orchestrator.data import SampleStore
from orchestrator.evaluation.diagnostics.ranking import list_means, list_sums
from orchestrator.interactions import held_out_of
from orchestrator.spec.diagnostics import RankingSpec
from strategies.contract import Batch, DenseSignal, Outputs
from strategies.popularity import strata_of
from strategies.rankers import scores_of, users_of

from ..asked import Answered
from ..module import no_gradient
from .site import Site


def measure_ranking(site: Site, spec: RankingSpec, work: str) -> dict[str, Any]:
    """See `list_means`; with a role, the same of it under its name. Collective."""
    stratum = strata_of(torch.from_numpy(site.data.popularity), spec.strata)
    stratum = stratum.to(site.engine.device)
    store, role = site.held_out.store, spec.role
    asks = {} if role is None else site.exactly(role)
    sums: dict[str, dict[str, float]] = {"student": {}}

    def look(who: str, scores: Tensor, batch: Batch) -> None:
        owned, held_out = users_of(batch).owns(len(stratum)), held_out_items(store, batch, stratum)
        found = list_sums(scores, owned, held_out, stratum, spec.cutoffs)
        known = sums.setdefault(who, {})
        sums[who] = {name: known.get(name, 0.0) + value for name, value in found.items()}

    for answered in site.asker.answered(store, site.held_out.parts, asks, work):

        def consume(outputs: Outputs, at: Answered = answered) -> Tensor:
            look("student", scores_of(outputs), at.batch)
            return torch.zeros(())

        no_gradient(site.engine.module, answered.batch, consume)
        if role is not None:
            signal = answered.logits(role)
            assert isinstance(signal, DenseSignal)  # a classifier's exact answer
            look(role, signal.logits, answered.batch)
    added = {who: site.sum_numbers(of_one) for who, of_one in sums.items()}
    means = {who: list_means(of_one, stratum, spec.cutoffs) for who, of_one in added.items()}
    of_role = {} if role is None else {role: means[role]}
    return {"users": added["student"]["users"], **means["student"], **of_role}


def held_out_items(store: SampleStore, batch: Batch, stratum: Tensor) -> Tensor:
    """[N, V] bool: the held-out items of a batch's users."""
    samples = batch.sample_index[batch.mask].tolist()
    found = torch.zeros(len(samples), len(stratum), dtype=torch.bool)
    for row, sample in enumerate(samples):
        found[row, torch.from_numpy(held_out_of(store.tokens(sample)).astype("int64"))] = True
    return found.to(stratum.device)
