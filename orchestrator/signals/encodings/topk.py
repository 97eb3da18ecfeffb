"""Encoding `topk`: the k likeliest entries, and what the others sum to at a ladder of temperatures.

`rest` is summed over the entries that are not kept themselves, so it is accurate however small it
is; nothing is ever taken as one minus a sum that is nearly one. A rest of nothing (all V kept, or
the others impossible) crosses as `NO_REST`. Imports torch and numpy; never ray, deepspeed, mlflow.

Letters: N wanted positions, V vocabulary, K kept entries, L rungs of the ladder.
"""

import numpy as np
import torch
from torch import Tensor

from orchestrator.signals.layouts import Sizes, layout
from orchestrator.signals.records import Reply, TopKAsk
from strategies.contract import TopKSignal

from .outputs import RoleOutputs
from .wire import (
    check_arrays,
    ids_from_wire,
    ids_to_wire,
    logs_from_wire,
    logs_to_wire,
    require_finite,
)

NO_REST = float(np.finfo(np.float32).min)
"""-inf on the wire: float32's lowest finite number."""


@torch.no_grad()
def encode(ask: TopKAsk, outputs: RoleOutputs) -> dict[str, np.ndarray]:
    """{"ids", "logprobs", "rest"} and, in int8, {"range"}; entries fall in probability.

    Raises:
        ValueError: k is above the vocabulary, or the logits are not finite.
    """
    rows, vocabulary = outputs.shape
    if ask.k > vocabulary:
        raise ValueError(f"k ({ask.k}) is above the role's vocabulary ({vocabulary}); lower k")
    device = outputs.device
    ids = torch.empty((rows, ask.k), dtype=torch.int64, device=device)
    logprobs = torch.empty((rows, ask.k), dtype=torch.float32, device=device)
    rest = torch.empty((rows, len(ask.temperatures)), dtype=torch.float32, device=device)
    for part, z in outputs.chunks():
        kept, ids[part] = torch.topk(z, ask.k, dim=-1)
        z.scatter_(1, ids[part], -torch.inf)
        others = torch.logsumexp(z, -1)
        log_z = torch.logaddexp(torch.logsumexp(kept, -1), others)
        logprobs[part] = kept - log_z.unsqueeze(1)
        for rung, temperature in enumerate(ask.temperatures):
            softened = others if temperature == 1.0 else torch.logsumexp(z / temperature, -1)
            rest[part, rung] = softened - log_z / temperature
    return {
        "ids": ids_to_wire(ids, vocabulary),
        **logs_to_wire("logprobs", logprobs, ask.dtype),
        "rest": rest.clamp_min_(NO_REST).cpu().numpy(),
    }


def decode(
    reply: Reply, ask: TopKAsk, positions: int | None, device: torch.device | str
) -> TopKSignal:
    """Ids as int64, logarithms as float32, normalised; see `normalised`."""
    check_arrays(reply, layout(ask, Sizes(reply.role, reply.vocabulary)), positions)
    require_finite(reply, "rest")
    rest = torch.from_numpy(reply.arrays["rest"]).to(device)
    logprobs, rest = normalised(
        logs_from_wire("logprobs", reply, ask.dtype, device),
        torch.where(rest > NO_REST, rest, -torch.inf),
        ask.temperatures,
    )
    return TopKSignal(
        ids=ids_from_wire(reply, ask.k, device),
        logprobs=logprobs,
        rest=rest,
        ladder=tuple(ask.temperatures),
        vocabulary=reply.vocabulary,
    )


def normalised(logprobs: Tensor, rest: Tensor, ladder: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Kept entries and rest that sum to one at temperature 1, if that is a rung or all is kept.

    All entries are scaled alike, so no distribution at any rung changes: those are normalised by
    construction, whatever the wire has rounded.
    """
    if 1.0 in ladder:
        others = rest[:, ladder.index(1.0)]
    elif bool(torch.isneginf(rest).all()):
        others = rest[:, 0]
    else:
        return logprobs, rest
    excess = torch.logaddexp(torch.logsumexp(logprobs, -1), others).unsqueeze(1)
    temperatures = torch.tensor(ladder, dtype=rest.dtype, device=rest.device)
    return logprobs - excess, rest - excess / temperatures
