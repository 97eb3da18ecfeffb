"""Role outputs with random errors as large as those of a wire type. Imports torch.

Not the errors that rounding makes, which are what is to be checked, but others of their size.

N positions, V vocabulary, d width.
"""

import torch
from torch import Tensor

from orchestrator.signals.records import FullAsk, HiddenAsk, SampledAsk, SignalAsk, TopKAsk
from strategies.contract import Outputs

from .bounds import UNIT
from .oracle import logits_in_chunks

_SEED = 20


def jittered(ask: SignalAsk, outputs: Outputs, role_dtype: str) -> Outputs:
    """The outputs as an answer to `ask` might have them.

    Args:
        ask: says what is rounded: hidden states, logits, or log-probabilities.
        outputs: the role's, exact; N positions.
        role_dtype: of the role's weights. The logits that it makes itself are rounded to it.
    """
    if isinstance(ask, HiddenAsk):
        assert outputs.hidden is not None
        hidden = outputs.hidden.double()
        return Outputs(hidden + UNIT[ask.dtype] * hidden * _noise(hidden, _SEED), outputs.head)
    own = 0.0 if role_dtype == "float32" else 2 * UNIT[role_dtype]
    parts = []
    for rows, z in logits_in_chunks(outputs):
        errors = own * z.abs() + _wire(ask, z)
        parts.append((z + errors * _noise(z, _SEED + rows.start)).float())
    return Outputs(logits=torch.cat(parts))


def _wire(ask: SignalAsk, z: Tensor) -> Tensor:
    """[n, V] largest errors by the wire type."""
    match ask:
        case FullAsk():
            return UNIT[ask.dtype] * z.abs()
        case TopKAsk():
            logs = z.log_softmax(1)
            if ask.dtype == "int8":
                kept = logs.topk(ask.k, dim=1).values
                return (UNIT["int8"] * (kept[:, :1] - kept[:, -1:])).expand_as(z)
            return UNIT[ask.dtype] * logs.abs()
        case SampledAsk():
            return torch.zeros_like(z)
    raise AssertionError("terms learn from logits")


def _noise(like: Tensor, seed: int) -> Tensor:
    """Even between -1 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(like.shape, generator=generator, dtype=torch.float64) - 1).to(
        like.device
    )
