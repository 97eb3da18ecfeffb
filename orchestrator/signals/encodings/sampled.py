"""Encoding `sampled`: entries drawn from the role, importance-weighted; unbiased.

The draws of a position are systematic: a comb of `draws` teeth, moved by one random number, over
the cumulative distribution. So each entry is drawn as often as its probability says, rounded up or
down: the mean of any function stays unbiased, with less than half the variance of independent draws
(docs/benchmarks.md). They come out rising, so equal draws give equal bytes. Probabilities are
cumulated as integers, 2**48 for one, so that sums do not depend on their order; what has less than
2**-48 is never drawn. Imports torch and numpy; never ray, deepspeed or mlflow.

Letters: N wanted positions, V vocabulary, S draws.

Source:
    Anshumann et al. "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs."
    arXiv:2503.16870, section 4; there the draws are independent.
"""

import math

import numpy as np
import torch

from orchestrator.signals.layouts import Sizes, layout
from orchestrator.signals.records import Reply, SampledAsk
from strategies.contract import SampledSignal

from .codes import IMPOSSIBLE
from .outputs import RoleOutputs
from .uniforms import uniforms
from .wire import (
    check_arrays,
    ids_from_wire,
    ids_to_wire,
    logs_from_wire,
    logs_to_wire,
    require_finite,
)

_ONE = 2.0**48


@torch.no_grad()
def encode(ask: SampledAsk, outputs: RoleOutputs) -> dict[str, np.ndarray]:
    """{"ids", "entropy"}, and {"weights"} (with {"range"} in int8) unless the temperature is 1.

    Raises:
        ValueError: the logits are not finite, or the outputs do not say whose they are.
    """
    if outputs.samples is None or outputs.positions is None:
        raise ValueError("sampled needs the sample and the position of each output")
    rows, vocabulary = outputs.shape
    device = outputs.device
    moved = uniforms(ask.seed, outputs.samples, outputs.positions)
    comb = torch.from_numpy((np.arange(ask.draws) + moved[:, None]) / ask.draws)
    ids = torch.empty((rows, ask.draws), dtype=torch.int64, device=device)
    weights = torch.empty((rows, ask.draws), dtype=torch.float32, device=device)
    entropy = torch.empty(rows, dtype=torch.float32, device=device)
    for part, z in outputs.chunks():
        log_p = log_q = torch.log_softmax(z, -1)
        q = log_p.exp()
        # 0 * -inf is no number; an impossible entry adds nothing.
        entropy[part] = -torch.linalg.vecdot(q, log_p.clamp_min(IMPOSSIBLE))
        if ask.temperature != 1.0:
            log_q = torch.log_softmax(z.div_(ask.temperature), -1)
            q = log_q.exp()
        cumulated = q.mul_(_ONE).to(torch.int64).cumsum_(-1)
        whole = cumulated[:, -1:]
        # The last tooth may round up to one, past the last entry.
        teeth = torch.minimum((comb[part].to(device) * whole).to(torch.int64), whole - 1)
        ids[part] = torch.searchsorted(cumulated, teeth, right=True)
        if ask.temperature != 1.0:
            weights[part] = log_p.gather(1, ids[part]) - log_q.gather(1, ids[part])
    return {
        "ids": ids_to_wire(ids, vocabulary),
        **({} if ask.temperature == 1.0 else logs_to_wire("weights", weights, ask.dtype)),
        "entropy": entropy.cpu().numpy(),
    }


def decode(
    reply: Reply, ask: SampledAsk, positions: int | None, device: torch.device | str
) -> SampledSignal:
    """Ids as int64, weights and entropy as float32.

    Weights are not renormalised: dividing by their own sum would bias the mean.
    """
    check_arrays(reply, layout(ask, Sizes(reply.role, reply.vocabulary)), positions)
    require_finite(reply, "entropy")
    ids = ids_from_wire(reply, ask.draws, device)
    if ask.temperature == 1.0:
        weights = torch.full(ids.shape, 1.0 / ask.draws, dtype=torch.float32, device=device)
    else:
        logs = logs_from_wire("weights", reply, ask.dtype, device)
        weights = (logs - math.log(ask.draws)).exp()
    entropy = torch.from_numpy(reply.arrays["entropy"]).to(device)
    return SampledSignal(ids, weights, entropy, reply.vocabulary)
