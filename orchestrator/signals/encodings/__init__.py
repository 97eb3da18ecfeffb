"""What a role's forward becomes on the wire (`encode`, on the replica) and what a term gets of it
(`decode`, on the student): one small module an encoding, chosen here.

Promises: numpy arrays only, in the layouts of `signals.layouts`; [N, V] never exists when there is
a head, but for `full`; a reply is checked whole before any of it is used. Imports torch and numpy;
never ray, deepspeed or mlflow.
"""

import numpy as np
import torch

from orchestrator.signals.layouts import Layout, layout
from orchestrator.signals.records import (
    PROTOCOL,
    AttentionAsk,
    FullAsk,
    GradientsAsk,
    HiddenAsk,
    LayersAsk,
    Reply,
    SampledAsk,
    SignalAsk,
    TopKAsk,
    VjpAsk,
)
from strategies.contract import Head, Signal

from . import attention, full, gradients, hidden, layers, sampled, topk, vjp
from .head import head_from_record, head_record
from .outputs import RoleOutputs
from .wire import bad

__all__ = [
    "Layout",
    "RoleOutputs",
    "decode",
    "encode",
    "head_from_record",
    "head_record",
    "layout",
]


def encode(ask: SignalAsk, outputs: RoleOutputs) -> dict[str, np.ndarray]:
    """Answer an ask.

    Raises:
        ValueError: the outputs cannot answer it, or a value is not finite or overflows float16.
    """
    match ask:
        case FullAsk():
            return full.encode(ask, outputs)
        case HiddenAsk():
            return hidden.encode(ask, outputs)
        case TopKAsk():
            return topk.encode(ask, outputs)
        case SampledAsk():
            return sampled.encode(ask, outputs)
        case LayersAsk():
            return layers.encode(ask, outputs)
        case AttentionAsk():
            return attention.encode(ask, outputs)
        case GradientsAsk():
            return gradients.encode(ask, outputs)
        case VjpAsk():
            return vjp.encode(ask, outputs)


def decode(
    reply: Reply,
    head: Head | None,
    *,
    positions: int | None = None,
    device: torch.device | str = "cpu",
) -> Signal:
    """The signal of a reply.

    Args:
        reply: one role's answer.
        head: the role's head from `head_from_record`; only `hidden` needs it.
        positions: N that was asked; checked when given.
        device: where the signal is wanted.

    Raises:
        ValueError: the reply does not hold what its ask promises.
        SpecError: its ask is one that its role cannot answer.
    """
    if reply.protocol != PROTOCOL:
        raise bad(reply, f"speaks protocol {reply.protocol}, and this process {PROTOCOL}")
    match reply.ask:
        case FullAsk():
            return full.decode(reply, reply.ask, positions, device)
        case HiddenAsk():
            return hidden.decode(reply, reply.ask, head, positions, device)
        case TopKAsk():
            return topk.decode(reply, reply.ask, positions, device)
        case SampledAsk():
            return sampled.decode(reply, reply.ask, positions, device)
        case LayersAsk():
            return layers.decode(reply, reply.ask, positions, device)
        case AttentionAsk():
            return attention.decode(reply, reply.ask, positions, device)
        case GradientsAsk():
            return gradients.decode(reply, reply.ask, positions, device)
        case VjpAsk():
            return vjp.decode(reply, reply.ask, positions, device)
