"""What came over the wire, as tensors a term can use.

Promises: a reply is checked whole before any of it is used (protocol, names, dtypes, shapes, ids);
kept probabilities never sum to more than one, at any rung of the ladder, because a divergence of
unnormalised probabilities can come out negative. Imports torch and numpy; never ray, deepspeed or
mlflow.

Shape letters: N wanted positions, d width, V vocabulary, K kept entries, L rungs of the ladder.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from orchestrator.signals.records import PROTOCOL, HeadRecord, HiddenAsk, Reply, TopKAsk
from strategies.contract import Head, HiddenSignal, TopKSignal

# Arrays out of Ray's object store are read-only and nothing here writes to them; a copy only to
# silence torch would double the memory traffic of every signal.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

_HIDDEN_WIRE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
_TOPK_WIRE = {"float32": np.float32, "float16": np.float16}


def decode(
    reply: Reply,
    head: Head | None,
    *,
    positions: int | None = None,
    device: torch.device | str = "cpu",
) -> HiddenSignal | TopKSignal:
    """The signal of a reply.

    Args:
        reply: one role's answer.
        head: the role's head from `head_from_record`; only `hidden` needs it.
        positions: N that was asked; checked when given.
        device: where the signal is wanted.

    Returns:
        Hidden states keep the wire's dtype and, on the CPU, its memory. Log-probabilities come as
        float32, ids as int64.

    Raises:
        ValueError: the reply does not hold what its ask promises.
    """
    if reply.protocol != PROTOCOL:
        raise _bad(reply, f"speaks protocol {reply.protocol}, and this process {PROTOCOL}")
    match reply.ask:
        case HiddenAsk():
            return _hidden(reply, reply.ask, head, positions, device)
        case TopKAsk():
            return _topk(reply, reply.ask, positions, device)


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
    weight = _tensor(record.weight, record.bfloat16).to(device)
    return Head(weight, bias, record.scale, record.softcap)


def _hidden(
    reply: Reply,
    ask: HiddenAsk,
    head: Head | None,
    positions: int | None,
    device: torch.device | str,
) -> HiddenSignal:
    if head is None:
        raise ValueError(f"hidden states of {reply.role} need its head; fetch it first")
    width = head.weight.shape[1]
    if head.weight.shape[0] != reply.vocabulary:
        raise _bad(
            reply, f"has vocabulary {reply.vocabulary} and its head {head.weight.shape[0]} rows"
        )
    (hidden,) = _arrays(reply, {"hidden": ((positions, width), _HIDDEN_WIRE[ask.dtype])})
    return HiddenSignal(_tensor(hidden, ask.dtype == "bfloat16").to(device), head)


def _topk(
    reply: Reply, ask: TopKAsk, positions: int | None, device: torch.device | str
) -> TopKSignal:
    ids_wire = np.uint16 if reply.vocabulary <= 1 << 16 else np.int32
    ids_array, logprobs_array, log_z_array = _arrays(
        reply,
        {
            "ids": ((positions, ask.k), ids_wire),
            "logprobs": ((positions, ask.k), _TOPK_WIRE[ask.dtype]),
            "log_z": ((positions, len(ask.temperatures)), np.float32),
        },
    )
    if ids_array.size and not 0 <= ids_array.min() <= ids_array.max() < reply.vocabulary:
        raise _bad(reply, f"holds id {ids_array.max()}, its vocabulary is {reply.vocabulary}")
    if not (np.isfinite(log_z_array).all() and np.isfinite(logprobs_array).all()):
        raise _bad(reply, "holds a log-probability that is not finite")
    logprobs, log_z = _normalised(
        torch.from_numpy(logprobs_array).to(device, torch.float32),
        torch.from_numpy(log_z_array).to(device),
        ask.temperatures,
        whole=ask.k == reply.vocabulary,
    )
    return TopKSignal(
        ids=torch.from_numpy(ids_array.astype(np.int64)).to(device),
        logprobs=logprobs,
        log_z=log_z,
        ladder=tuple(ask.temperatures),
        vocabulary=reply.vocabulary,
    )


def _normalised(
    logprobs: Tensor, log_z: Tensor, ladder: tuple[float, ...], *, whole: bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities whose kept mass is at most one (exactly one when all V are kept).

    Rounding on the wire moves each entry, so kept entries may sum to more than the normaliser that
    the role computed before rounding, at temperature 1 and at every rung.
    """
    mass = torch.logsumexp(logprobs, dim=-1, keepdim=True)
    logprobs = logprobs - (mass if whole else mass.clamp_min(0.0))
    kept = torch.stack([torch.logsumexp(logprobs / t, dim=-1) for t in ladder], dim=-1)
    return logprobs, kept if whole else torch.maximum(log_z, kept)


def _arrays(
    reply: Reply, expected: dict[str, tuple[tuple[int | None, int], type]]
) -> list[np.ndarray]:
    """The named arrays, checked; all have one N."""
    if set(reply.arrays) != set(expected):
        raise _bad(reply, f"holds arrays {sorted(reply.arrays)}, expected {sorted(expected)}")
    arrays = [reply.arrays[name] for name in expected]
    rows = len(arrays[0]) if arrays[0].ndim else 0
    for array, (name, ((wanted, columns), dtype)) in zip(arrays, expected.items(), strict=True):
        shape = (rows if wanted is None else wanted, columns)
        if array.shape != shape:
            raise _bad(reply, f"has {name} of shape {array.shape}, expected {shape}")
        if array.dtype != dtype:
            raise _bad(reply, f"has {name} of {array.dtype}, expected {np.dtype(dtype)}")
    return arrays


def _tensor(array: np.ndarray, bfloat16: bool) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if bfloat16 else tensor


def _bad(reply: Reply, problem: str) -> ValueError:
    return ValueError(f"reply {reply.request_id} of role {reply.role} {problem}")
