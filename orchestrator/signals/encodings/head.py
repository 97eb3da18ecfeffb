"""A role's output head as a record, and back. Imports torch and numpy."""

import numpy as np
import torch

from orchestrator.signals.records import PROTOCOL, HeadRecord
from strategies.contract import Head

from .wire import from_wire, to_wire


def head_record(role: str, fingerprint: str, head: Head) -> HeadRecord:
    """A head as it crosses the wire: float32, or bfloat16 as its uint16 view."""
    weight = head.weight.detach()
    bfloat16 = weight.dtype == torch.bfloat16
    return HeadRecord(
        role=role,
        fingerprint=fingerprint,
        weight=to_wire(weight, "bfloat16" if bfloat16 else "float32"),
        bias=None if head.bias is None else to_wire(head.bias.detach(), "float32"),
        scale=head.scale,
        softcap=head.softcap,
        bfloat16=bfloat16,
    )


def head_from_record(record: HeadRecord, device: torch.device | str = "cpu") -> Head:
    """A role's head from its record.

    Raises:
        ValueError: another protocol, or arrays that make no head.
    """
    if record.protocol != PROTOCOL:
        raise ValueError(
            f"head of {record.role} speaks protocol {record.protocol}, and this process "
            f"{PROTOCOL}; run the same version on both sides"
        )
    dtype = np.uint16 if record.bfloat16 else np.float32
    if record.weight.ndim != 2 or record.weight.dtype != dtype:
        raise ValueError(
            f"head of {record.role} has a {record.weight.dtype} matrix of shape "
            f"{record.weight.shape}, expected [V, d] {np.dtype(dtype)}"
        )
    if record.bias is not None and record.bias.shape != record.weight.shape[:1]:
        raise ValueError(
            f"head of {record.role} has a bias of shape {record.bias.shape} for "
            f"{record.weight.shape[0]} rows"
        )
    bias = None if record.bias is None else torch.from_numpy(record.bias).to(device)
    weight = from_wire(record.weight, "bfloat16" if record.bfloat16 else "float32").to(device)
    return Head(weight, bias, record.scale, record.softcap)
