"""Logits of one chunk of positions at a time, and the way back from their gradient.

The full [N, V] is never made: callers take `chunks(...)` and use one `Workspace`, whose
buffers are made once and reused, because fresh pages cost more than the arithmetic. Within a
chunk, whatever goes over the logits entry by entry takes `blocks(...)` of rows that stay in a
processor's cache.

Arithmetic: float32 (float64 for float64 inputs). bfloat16 weights on CUDA multiply natively with
float32 results, the gradient by logits in bfloat16 on its way into the two products back;
elsewhere a float32 copy of the weight lives for the length of the call.

C positions of a chunk, N positions, V vocabulary, d width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .contract import Head

CPU_CHUNK_BYTES, DEVICE_CHUNK_BYTES = 32 << 20, 1 << 30
DEVICE_PIECE_BYTES = 512 << 20
"""Bytes of one [C, V] float32 buffer: larger ones gain nothing, smaller ones slow the products.

On a device each chunk reads and writes the whole weight gradient once, which asks for large ones;
its logits come in pieces.
"""
LEAST_ROWS = 128
"""Below this many rows matrix products are slow, so huge vocabularies get larger buffers."""
CPU_BLOCK_BYTES = 512 << 10
"""Bytes of one [b, V] float32 block: a few of them fit the second-level cache of one core."""


def chunks(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices that cut `count` positions into nearly equal chunks of a [C, width] buffer."""
    budget = CPU_CHUNK_BYTES if device.type == "cpu" else DEVICE_CHUNK_BYTES
    yield from _cut(count, max(LEAST_ROWS, budget // (4 * width)))


def pieces(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices that cut a chunk of `count` rows into what has logits at once; all of it on a CPU."""
    rows = count if device.type == "cpu" else max(LEAST_ROWS, DEVICE_PIECE_BYTES // (4 * width))
    yield from _cut(count, rows)


def blocks(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices that cut a piece of `count` rows into blocks; all of it elsewhere than on a CPU."""
    rows = max(1, CPU_BLOCK_BYTES // (4 * width)) if device.type == "cpu" else count
    yield from _cut(count, rows)


def _cut(count: int, most: int) -> Iterator[slice]:
    pieces = -(-count // most) if count else 0
    for piece in range(pieces):
        yield slice(count * piece // pieces, count * (piece + 1) // pieces)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is, else float32."""
    doubles = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if doubles else torch.float32


KEPT_BY_ALLOCATOR = 16 << 20
"""Bytes; blocks of [b, V] and all that is alive of them at once are less."""


class Workspace:
    """Named buffers of [C, V], each allocated at its first use and reused by later chunks.

    It also makes the short-lived tensors of a block cheap. The C library's allocator at first
    gives every one of them back to the system, and the fresh pages of the next cost four times
    its arithmetic. It keeps what is smaller than the largest piece it has seen come and go.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        if device.type == "cpu":
            torch.empty(KEPT_BY_ALLOCATOR, dtype=torch.uint8)  # comes and goes, untouched
        self.dtype, self.device = dtype, device
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
        """[rows, width] with whatever the buffer held last; the same memory for the same name."""
        size = rows * width
        held = self._buffers.get(name)
        if held is None or held.numel() < size:
            held = torch.empty(size, dtype=dtype or self.dtype, device=self.device)
            self._buffers[name] = held
        return held[:size].view(rows, width)


class Projection:
    """A head ready for many chunks: logits forward, gradients back.

    Args:
        head: the output head; only its first `width` entries are used if `width` is given.
        hidden_dtype: of the hidden states that will come.
        dtype: of the logits, `compute_dtype`.
    """

    def __init__(
        self, head: Head, hidden_dtype: torch.dtype, dtype: torch.dtype, width: int | None = None
    ) -> None:
        weight = head.weight.detach()[:width]
        bias = None if head.bias is None else head.bias.detach()[:width]
        self.native = (
            weight.device.type == "cuda" and hidden_dtype == weight.dtype == torch.bfloat16
        )
        self.dtype = dtype
        self.weight = weight if self.native else weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        self.scale, self.softcap = head.scale, head.softcap

    @property
    def width(self) -> int:
        """V, or the part of it in use."""
        return self.weight.shape[0]

    @property
    def gradient_dtype(self) -> torch.dtype:
        """What the products back take the gradient in."""
        return torch.bfloat16 if self.native else self.dtype

    def logits(self, hidden: Tensor, out: Tensor) -> Tensor:
        """Write the logits of [C, d] `hidden` into `out` [C, V] (rows may be longer in memory)."""
        self._product(hidden, self.weight.t(), out)
        if self.bias is not None:
            out.add_(self.bias, alpha=self.scale)
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out

    def undo_softcap(self, gradient: Tensor, logits: Tensor) -> None:
        """Turn d loss / d logits, in place, into the same before the cap; overwrites `logits`."""
        if self.softcap is not None:
            logits.div_(self.softcap).square_()
            gradient.addcmul_(gradient, logits, value=-1.0)

    def hidden_gradient(self, gradient: Tensor, out: Tensor) -> None:
        """[C, V] gradient (after `undo_softcap`) -> `out` [C, d]."""
        self._product(gradient, self.weight, out)

    def add_weight_gradient(
        self, gradient: Tensor, hidden: Tensor, total: Tensor, first: bool
    ) -> None:
        """Add the chunk's share to `total` [V, d], float32 or better; the first one replaces it."""
        left, right, beta = gradient.t(), hidden, 0.0 if first else 1.0
        if self.native:
            kind = self.dtype
            torch.addmm(total, left, right, out_dtype=kind, beta=beta, alpha=self.scale, out=total)
        else:
            right = right.to(self.dtype)
            torch.addmm(total, left, right, beta=beta, alpha=self.scale, out=total)

    def add_bias_gradient(self, gradient: Tensor, total: Tensor) -> None:
        """Add the chunk's share to `total` [V]."""
        total.add_(gradient.sum(0, dtype=total.dtype), alpha=self.scale)

    def _product(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        if self.native:
            torch.mm(left, right, out_dtype=self.dtype, out=out)
            if self.scale != 1.0:
                out.mul_(self.scale)
        else:
            torch.addmm(out, left.to(self.dtype), right, beta=0.0, alpha=self.scale, out=out)
