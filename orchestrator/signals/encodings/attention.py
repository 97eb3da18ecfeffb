"""Encoding `attention`: attention probabilities of named modules, a row of keys a wanted position.

The key axis is as long as the longest sample of the request; keys past a sample's end are zero.
Imports torch and numpy; never ray, deepspeed or mlflow.
"""

import numpy as np
import torch

from orchestrator.signals.layouts import Sizes, layout
from orchestrator.signals.records import AttentionAsk, Reply
from strategies.contract import AttentionSignal

from .outputs import RoleOutputs
from .wire import bad, check_arrays, check_names, from_wire, largest_value, to_wire


def encode(ask: AttentionAsk, outputs: RoleOutputs) -> dict[str, np.ndarray]:
    """By module path: [N, heads, longest].

    Raises:
        ValueError: a value is not finite.
    """
    return {path: to_wire(outputs.captured[path].detach(), ask.dtype) for path in ask.layers}


def decode(
    reply: Reply, ask: AttentionAsk, positions: int | None, device: torch.device | str
) -> AttentionSignal:
    """Probabilities in the wire's dtype."""
    check_names(reply, ask.layers)
    # What is no cube is refused below: no such module has 0 heads.
    heads = {name: a.shape[1] if a.ndim == 3 else 0 for name, a in reply.arrays.items()}
    longest = max((a.shape[2] for a in reply.arrays.values() if a.ndim == 3), default=0)
    check_arrays(reply, layout(ask, Sizes(reply.role, attention=heads), longest), positions)
    found = {path: from_wire(reply.arrays[path], ask.dtype) for path in ask.layers}
    for path, tensor in found.items():
        if not np.isfinite(largest_value(tensor)):
            raise bad(reply, f"holds a value of {path} that is not finite")
    return AttentionSignal({path: tensor.to(device) for path, tensor in found.items()})
