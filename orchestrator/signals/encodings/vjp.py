"""Encoding `vjp`: what a classifier gives at an input, and a gradient by that input.

Imports torch and numpy; never ray, deepspeed or mlflow.
"""

import numpy as np
import torch

from orchestrator.signals.layouts import Sizes, layout
from orchestrator.signals.records import Reply, VjpAsk
from strategies.contract import VjpSignal

from .outputs import RoleOutputs
from .wire import bad, check_arrays, check_names, from_wire, largest_value, to_wire

NAMES = ("output", "gradient")


def encode(ask: VjpAsk, outputs: RoleOutputs) -> dict[str, np.ndarray]:
    """{"output": [N, V], "gradient": [N, d], or by word [N, longest]}.

    Raises:
        ValueError: a value is not finite or overflows float16.
    """
    return {name: to_wire(outputs.captured[name], ask.dtype) for name in NAMES}


def decode(
    reply: Reply, ask: VjpAsk, positions: int | None, device: torch.device | str
) -> VjpSignal:
    """Both in the wire's dtype."""
    check_names(reply, NAMES)
    gradient = reply.arrays["gradient"]
    width = gradient.shape[1] if gradient.ndim == 2 else 1
    sizes = Sizes(reply.role, vocabulary=reply.vocabulary, input_width=max(1, width))
    check_arrays(reply, layout(ask, sizes, width), positions)
    found = {name: from_wire(reply.arrays[name], ask.dtype) for name in NAMES}
    for name, tensor in found.items():
        if not np.isfinite(largest_value(tensor)):
            raise bad(reply, f"holds a value of {name} that is not finite")
    return VjpSignal(found["output"].to(device), found["gradient"].to(device))
