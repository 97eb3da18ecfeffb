"""The shape of an answer, known from the ask alone: for the window's bytes and for empty answers.

Numpy only. Letters: N wanted positions, K kept entries, L rungs of the ladder, d width.
"""

import numpy as np

from orchestrator.signals.records import HiddenAsk, SignalAsk, TopKAsk

from .records import RoleDescription

Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


def layout(ask: SignalAsk, positions: int, role: RoleDescription) -> Layout:
    """Shape and dtype of each array that answers `ask` for N = `positions`."""
    match ask:
        case HiddenAsk():
            dtype = "uint16" if ask.dtype == "bfloat16" else ask.dtype
            return {"hidden": ((positions, role.width), np.dtype(dtype))}
        case TopKAsk():
            kept = min(ask.k, role.vocabulary)
            ids = np.dtype("uint16" if role.vocabulary <= 1 << 16 else "int32")
            return {
                "ids": ((positions, kept), ids),
                "logprobs": ((positions, kept), np.dtype(ask.dtype)),
                "log_z": ((positions, len(ask.temperatures)), np.dtype("float32")),
            }


def answer_bytes(ask: SignalAsk, positions: int, role: RoleDescription) -> int:
    """Bytes of the answer's arrays."""
    arrays = layout(ask, positions, role).values()
    return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in arrays)


def empty_answer(ask: SignalAsk, role: RoleDescription) -> dict[str, np.ndarray]:
    """The answer for no positions."""
    arrays = layout(ask, 0, role).items()
    return {name: np.empty(shape, dtype) for name, (shape, dtype) in arrays}
