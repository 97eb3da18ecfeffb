"""Encoding `gradients`: of a classifier's confidence by its input, or by what named modules gave.

By token the last axis is the text's tokens, as long as the longest sample of the request; past a
sample's end there are zeros. Imports torch and numpy; never ray, deepspeed or mlflow.
"""

import numpy as np
import torch

from orchestrator.signals.layouts import Sizes, layout
from orchestrator.signals.records import INPUT, GradientsAsk, Reply
from strategies.contract import GradientsSignal

from .outputs import RoleOutputs
from .wire import bad, check_arrays, check_names, from_wire, largest_value, to_wire


def encode(ask: GradientsAsk, outputs: RoleOutputs) -> dict[str, np.ndarray]:
    """By path: [N, d], or by token [N, d, longest].

    Raises:
        ValueError: a value is not finite or overflows float16.
    """
    return {path: to_wire(outputs.captured[path], ask.dtype) for path in ask.layers}


def decode(
    reply: Reply, ask: GradientsAsk, positions: int | None, device: torch.device | str
) -> GradientsSignal:
    """Gradients in the wire's dtype."""
    check_names(reply, ask.layers)
    arrays, rank = reply.arrays.values(), 3 if ask.by_token else 2
    # What has another rank is refused below: no such module has width 0.
    widths = {name: a.shape[1] if a.ndim == rank else 0 for name, a in reply.arrays.items()}
    longest = max((a.shape[2] for a in arrays if a.ndim == 3), default=0)
    sizes = Sizes(reply.role, layers=widths, input_width=widths.get(INPUT, 1))
    check_arrays(reply, layout(ask, sizes, longest), positions)
    found = {path: from_wire(reply.arrays[path], ask.dtype) for path in ask.layers}
    for path, tensor in found.items():
        if not np.isfinite(largest_value(tensor)):
            raise bad(reply, f"holds a gradient by {path} that is not finite")
    return GradientsSignal({path: tensor.to(device) for path, tensor in found.items()})
