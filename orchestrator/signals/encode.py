"""What a served role's forward becomes on the wire.

Promises: numpy arrays only, in the layouts of `records`; [N, V] never exists when there is a head;
a value that the wire's dtype cannot hold is an error, never an infinity. Imports torch and numpy;
never ray, deepspeed or mlflow.

Shape letters: N wanted positions, d width, V vocabulary, K kept entries, L rungs of the ladder.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from orchestrator.signals.records import HeadRecord, HiddenAsk, SignalAsk, TopKAsk
from strategies.contract import Head

CHUNK_ELEMENTS = 1 << 24
"""Logits alive at a time: 64 MiB in float32."""
LOWEST_LOGPROB = -65504.0
"""Probability 0 on the wire: the lowest float16, so that nothing is infinite."""


def encode(ask: SignalAsk, hidden: Tensor, head: Head | None) -> dict[str, np.ndarray]:
    """Answer an ask from hidden states.

    Args:
        ask: hidden states, or the top k.
        hidden: [N, d], any float dtype and device; N may be 0.
        head: the role's own head; only `topk` needs it.

    Returns:
        {"hidden": [N, d]} in the ask's dtype (bfloat16 as its uint16 view), or
        {"ids": [N, K] uint16 (int32 from V = 65537), "logprobs": [N, K], "log_z": [N, L] float32}.

    Raises:
        ValueError: the ask cannot be answered, or a value is not finite or overflows float16.
    """
    if isinstance(ask, HiddenAsk):
        return {"hidden": _wire(hidden.detach(), ask.dtype)}
    if head is None:
        raise ValueError("topk from hidden states needs the head; use encode_logits without one")
    rows, vocabulary = hidden.shape[0], head.weight.shape[0]

    def chunk(start: int, stop: int) -> Tensor:
        return head.logits(hidden[start:stop])

    return _topk(ask, chunk, rows, vocabulary, hidden.device)


def encode_logits(ask: SignalAsk, logits: Tensor) -> dict[str, np.ndarray]:
    """Answer an ask from logits, for models whose head cannot be told apart.

    Args:
        ask: the top k; hidden states mean nothing without a head.
        logits: [N, V].
    """
    if isinstance(ask, HiddenAsk):
        raise ValueError("encoding hidden needs a model with a head; use encoding topk")
    rows, vocabulary = logits.shape
    return _topk(ask, lambda start, stop: logits[start:stop], rows, vocabulary, logits.device)


def head_record(role: str, fingerprint: str, head: Head) -> HeadRecord:
    """A head as it crosses the wire: float32, or bfloat16 as its uint16 view."""
    weight = head.weight.detach()
    bfloat16 = weight.dtype == torch.bfloat16
    return HeadRecord(
        role=role,
        fingerprint=fingerprint,
        weight=_wire(weight, "bfloat16" if bfloat16 else "float32"),
        bias=None if head.bias is None else _wire(head.bias.detach(), "float32"),
        scale=head.scale,
        softcap=head.softcap,
        bfloat16=bfloat16,
    )


@torch.no_grad()
def _topk(
    ask: TopKAsk,
    chunk: Callable[[int, int], Tensor],
    rows: int,
    vocabulary: int,
    device: torch.device,
) -> dict[str, np.ndarray]:
    if ask.k > vocabulary:
        raise ValueError(f"k ({ask.k}) is above the role's vocabulary ({vocabulary}); lower k")
    step = max(1, CHUNK_ELEMENTS // vocabulary)
    ids = torch.empty((rows, ask.k), dtype=torch.int64, device=device)
    logprobs = torch.empty((rows, ask.k), dtype=torch.float32, device=device)
    log_z = torch.empty((rows, len(ask.temperatures)), dtype=torch.float32, device=device)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        logp = torch.log_softmax(chunk(start, stop).float(), dim=-1)
        logprobs[start:stop], ids[start:stop] = torch.topk(logp, ask.k, dim=-1)
        for rung, temperature in enumerate(ask.temperatures):
            log_z[start:stop, rung] = torch.logsumexp(logp / temperature, dim=-1)
    if not torch.isfinite(log_z).all():
        raise ValueError("the role's logits are not finite; check its weights and dtype")
    return {
        "ids": ids.cpu().numpy().astype(np.uint16 if vocabulary <= 1 << 16 else np.int32),
        "logprobs": _wire(logprobs.clamp_min_(LOWEST_LOGPROB), ask.dtype),
        "log_z": log_z.cpu().numpy(),
    }


def _wire(tensor: Tensor, dtype: str) -> np.ndarray:
    """A numpy array of its own: it shares no memory with the model."""
    if dtype == "float16":
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        if largest > torch.finfo(torch.float16).max:
            raise ValueError(
                f"a value of {largest:g} does not fit float16 (65504); use dtype bfloat16 or "
                "float32 in the role's encoding"
            )
    cast = tensor.to(device="cpu", dtype=getattr(torch, dtype), copy=True).contiguous()
    return (cast.view(torch.uint16) if dtype == "bfloat16" else cast).numpy()
