"""Encoding `hidden`: the last hidden state; exact at every temperature through the role's head.

Imports torch and numpy; never ray, deepspeed or mlflow.
"""

import numpy as np
import torch

from orchestrator.signals.layouts import Sizes, layout
from orchestrator.signals.records import HiddenAsk, Reply
from strategies.contract import Head, HiddenSignal

from .outputs import RoleOutputs
from .wire import bad, check_arrays, from_wire, largest_value, to_wire


def encode(ask: HiddenAsk, outputs: RoleOutputs) -> dict[str, np.ndarray]:
    """{"hidden": [N, d]}.

    Raises:
        ValueError: the role has no hidden states, or a value is not finite or overflows float16.
    """
    if outputs.hidden is None:
        raise ValueError("encoding hidden needs a model with a head; use encoding topk")
    return {"hidden": to_wire(outputs.hidden.detach(), ask.dtype)}


def decode(
    reply: Reply,
    ask: HiddenAsk,
    head: Head | None,
    positions: int | None,
    device: torch.device | str,
) -> HiddenSignal:
    """Hidden states in the wire's dtype and, on the CPU, its memory."""
    if head is None:
        raise ValueError(f"hidden states of {reply.role} need its head; fetch it first")
    vocabulary, width = head.weight.shape
    if vocabulary != reply.vocabulary:
        raise bad(reply, f"has vocabulary {reply.vocabulary} and its head {vocabulary} rows")
    check_arrays(reply, layout(ask, Sizes(width=width)), positions)
    hidden = from_wire(reply.arrays["hidden"], ask.dtype)
    if not np.isfinite(largest_value(hidden)):
        raise bad(reply, "holds a hidden state that is not finite")
    return HiddenSignal(hidden.to(device), head)
