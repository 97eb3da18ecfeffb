"""Check: what a role serves is what it says here, on the student's row layout. Imports torch.

The engine ran each sample on its own; here the same samples run packed in the student's rows, by a
second load of the model; one by one if it is a model that mixes packed samples, which may teach but
not learn. The logits here are the module's own, so its head is checked with it.
"""

from collections.abc import Iterator

import torch

from orchestrator.models.load import Loaded
from strategies.contract import Batch, Outputs

from .bounds import SERVED_KL, SERVED_SHARE
from .findings import Finding
from .oracle import logits_in_chunks
from .subject import Subject
from .subjects import local_logits, local_outputs, rows_of

_ROWS = 16
"""Positions compared at a time."""


def check(subject: Subject, loaded: Loaded) -> Iterator[Finding]:
    """Fingerprint, hidden states, logits and divergence of a role loaded once more."""
    name, role, served = subject.job.name, subject.role, subject.served
    dtype = subject.job.roles[role].dtype
    same = served.description.fingerprint.startswith(f"{loaded.fingerprint}/")
    yield Finding(name, "served", "fingerprints that differ", role, float(not same), 0.0)
    packed = loaded.packing_is_exact
    batch = (subject.specimen if packed else subject.specimen.unpacked()).batch()
    exact = served.outputs
    if exact.hidden is not None:
        here = local_outputs(loaded, batch, exact.hidden.device).hidden
        assert here is not None
        off = float((exact.hidden - here.float()).abs().max() / here.float().abs().max())
        yield Finding(
            name, "served", "hidden states", role, off, SERVED_SHARE[dtype], "of the largest entry"
        )
    off, divergence = _compare(exact, loaded, batch)
    share = "of the largest entry"
    yield Finding(name, "served", "logits", role, off, SERVED_SHARE[dtype], share)
    yield Finding(
        name, "served", "KL(served, local)", role, divergence, SERVED_KL[dtype], "nats a position"
    )


def _compare(exact: Outputs, loaded: Loaded, batch: Batch) -> tuple[float, float]:
    """(largest difference as a share of the largest logit, mean KL in nats)."""
    furthest = largest = divergence = 0.0
    start = 0
    for here in local_logits(loaded, batch):
        for part in here.split(_ROWS):
            rows = rows_of(exact, torch.arange(start, start + len(part)))
            there = torch.cat([z for _, z in logits_in_chunks(rows)])
            local = part.double()
            furthest = max(furthest, float((there - local).abs().max()))
            largest = max(largest, float(local.abs().max()))
            log_p = there.log_softmax(1)
            divergence += float((log_p.exp() * (log_p - local.log_softmax(1))).sum())
            start += len(part)
    return furthest / max(largest, 1e-30), divergence / max(1, start)
