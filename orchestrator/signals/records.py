"""What crosses the wire between a student and a served role. Numpy and the standard library only.

Records carry a protocol version, because an engine may live in another environment. Arrays are
numpy, never torch tensors: Ray moves numpy out of band. bfloat16 travels as a uint16 view.

Shape letters: R rows, T positions, N wanted positions in row-major order, S samples, K kept
entries, L rungs of the temperature ladder, d width.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

PROTOCOL = 1


@dataclass(frozen=True, slots=True)
class HiddenAsk:
    """Last hidden states. Answer: {"hidden": [N, d]} (uint16 view when dtype is bfloat16)."""

    dtype: Literal["float32", "bfloat16", "float16"]
    kind: Literal["hidden"] = "hidden"


@dataclass(frozen=True, slots=True)
class TopKAsk:
    """Top k. Answer: {"ids": [N, K] uint16/int32, "logprobs": [N, K], "log_z": [N, L] float32}."""

    k: int
    dtype: Literal["float32", "float16"]
    temperatures: tuple[float, ...]
    kind: Literal["topk"] = "topk"


SignalAsk = HiddenAsk | TopKAsk


@dataclass(frozen=True, slots=True)
class Request:
    """One forward asked of one role.

    `request_id` is unique per (tenant, work); a re-dispatch keeps it and raises `attempt`, so an
    answer is idempotent and a late one can be dropped.
    """

    request_id: str
    role: str
    tenant: str
    ask: SignalAsk
    input_ids: np.ndarray  # [R, T] int32
    position_ids: np.ndarray  # [R, T] int32, restarting in each sample
    wanted: np.ndarray  # [R, T] bool: positions whose answer crosses back
    fingerprint: str | None = None  # the role fingerprint expected; None: whatever is served
    attempt: int = 1
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer for the wanted positions of a request, in row-major order."""

    request_id: str
    role: str
    ask: SignalAsk
    arrays: dict[str, np.ndarray]
    vocabulary: int
    fingerprint: str
    attempt: int = 1
    forward_s: float = 0.0  # time the replica's model worked, for pool busy and cost
    queued_s: float = 0.0
    protocol: int = PROTOCOL

    @property
    def nbytes(self) -> int:
        """Bytes of arrays on the wire."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """A role's output head, sent once per node: see `strategies.contract.Head` for the formula."""

    role: str
    fingerprint: str
    weight: np.ndarray  # [V, d] float32, or a uint16 view of bfloat16
    bias: np.ndarray | None
    scale: float
    softcap: float | None
    bfloat16: bool = False
    protocol: int = PROTOCOL
