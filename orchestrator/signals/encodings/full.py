"""Encoding `full`: the logits of the whole vocabulary. Exact but for the type on the wire.

A logit of -inf crosses as `codes.IMPOSSIBLE`, whose probability is 0. Imports torch and numpy.
"""

import numpy as np
import torch

from orchestrator.signals.layouts import Sizes, float_dtype, layout
from orchestrator.signals.records import FullAsk, Reply
from strategies.contract import DenseSignal

from .codes import IMPOSSIBLE
from .outputs import RoleOutputs
from .wire import bad, check_arrays, from_wire, largest_value, to_wire


def encode(ask: FullAsk, outputs: RoleOutputs) -> dict[str, np.ndarray]:
    """{"logits": [N, V]}.

    Raises:
        ValueError: a logit is nan, inf, or overflows float16.
    """
    logits = np.empty(outputs.shape, float_dtype(ask.dtype))
    for part, z in outputs.chunks():
        logits[part] = to_wire(z.clamp_min_(IMPOSSIBLE), ask.dtype)
    return {"logits": logits}


def decode(
    reply: Reply, ask: FullAsk, positions: int | None, device: torch.device | str
) -> DenseSignal:
    """Logits in the wire's dtype and, on the CPU, its memory."""
    check_arrays(reply, layout(ask, Sizes(vocabulary=reply.vocabulary)), positions)
    logits = from_wire(reply.arrays["logits"], ask.dtype)
    if not np.isfinite(largest_value(logits)):
        raise bad(reply, "holds a logit that is not finite")
    return DenseSignal(logits.to(device))
