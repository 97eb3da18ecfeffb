"""Tensors to numpy arrays of the wire and back, and the checks of a reply as a whole.

Promises: an array shares no memory with the model; a value that the wire's type cannot hold, or
that is not finite, is an error. Imports torch and numpy; never ray, deepspeed or mlflow.
"""

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from orchestrator.signals.layouts import Layout, id_bits
from orchestrator.signals.records import FloatWire, LogWire, Reply

from . import bits, codes

# Arrays out of Ray's object store are read-only and nothing here writes to them; a copy only to
# silence torch would double the memory traffic of every signal.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def to_wire(tensor: Tensor, dtype: FloatWire) -> np.ndarray:
    """A numpy array of its own; bfloat16 as its uint16 view.

    Raises:
        ValueError: a value is not finite, or overflows float16.
    """
    largest = largest_value(tensor)
    if not np.isfinite(largest):
        raise ValueError("the role gave a value that is not finite; check its weights and dtype")
    if dtype == "float16" and largest > torch.finfo(torch.float16).max:
        raise ValueError(
            f"a value of {largest:g} does not fit float16 (65504); use dtype bfloat16 or "
            "float32 in the role's encoding"
        )
    cast = tensor.to(device="cpu", dtype=getattr(torch, dtype), copy=True).contiguous()
    return (cast.view(torch.uint16) if dtype == "bfloat16" else cast).numpy()


def from_wire(array: np.ndarray, dtype: FloatWire) -> Tensor:
    """A tensor over the array's memory."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def largest_value(tensor: Tensor) -> float:
    """Largest magnitude; nan or infinite if any value is. 0 for no values."""
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor.detach())
    return max(-float(low), float(high)) if low == low and high == high else float("nan")


def logs_to_wire(name: str, logs: Tensor, dtype: LogWire) -> dict[str, np.ndarray]:
    """[N, K] float32 logarithms as `layouts` has them; -inf becomes `codes.IMPOSSIBLE`."""
    logs = logs.clamp_min(codes.IMPOSSIBLE)
    if dtype == "int8":
        levels, ends = codes.to_codes(logs)
        return {name: levels, "range": ends}
    return {name: to_wire(logs, dtype)}


def logs_from_wire(name: str, reply: Reply, dtype: LogWire, device: torch.device | str) -> Tensor:
    """[N, K] float32."""
    array = reply.arrays[name]
    if dtype == "int8":
        require_finite(reply, "range")
        return codes.from_codes(array, reply.arrays["range"], device)
    require_finite(reply, name)
    return torch.from_numpy(array).to(device, torch.float32)


def ids_to_wire(ids: Tensor, vocabulary: int) -> np.ndarray:
    """[N, K] int64 -> packed [N, bytes] uint8."""
    return bits.pack(ids.cpu().numpy(), id_bits(vocabulary))


def ids_from_wire(reply: Reply, count: int, device: torch.device | str) -> Tensor:
    """[N, count] int64.

    Raises:
        ValueError: an id is not in the role's vocabulary.
    """
    ids = bits.unpack(reply.arrays["ids"], id_bits(reply.vocabulary), count)
    if ids.size and ids.max() >= reply.vocabulary:
        raise bad(reply, f"holds id {ids.max()}, its vocabulary is {reply.vocabulary}")
    return torch.from_numpy(ids).to(device)


def check_names(reply: Reply, expected: Iterable[str]) -> None:
    """Refuse arrays of other names.

    Raises:
        ValueError: says which there are.
    """
    if set(reply.arrays) != set(expected):
        raise bad(reply, f"holds arrays {sorted(reply.arrays)}, expected {sorted(expected)}")


def check_arrays(reply: Reply, expected: Layout, positions: int | None) -> None:
    """Names, shapes and types of a reply's arrays; all have one N.

    Raises:
        ValueError: they are not as expected.
    """
    check_names(reply, expected)
    first = next(iter(reply.arrays.values()))
    rows = positions if positions is not None else len(first) if first.ndim else 0
    for name, (trailing, dtype) in expected.items():
        array, shape = reply.arrays[name], (rows, *trailing)
        if array.shape != shape:
            raise bad(reply, f"has {name} of shape {array.shape}, expected {shape}")
        if array.dtype != dtype:
            raise bad(reply, f"has {name} of {array.dtype}, expected {dtype}")


def require_finite(reply: Reply, name: str) -> None:
    """Refuse an array of floats with a value that is not finite.

    Raises:
        ValueError: names the array.
    """
    if not np.isfinite(largest_value(torch.from_numpy(reply.arrays[name]))):
        raise bad(reply, f"holds a value of {name} that is not finite")


def bad(reply: Reply, problem: str) -> ValueError:
    """The error of a reply that does not hold what its ask promises."""
    return ValueError(f"reply {reply.request_id} of role {reply.role} {problem}")
