"""Answers cut into those of their samples, and joined again. Numpy only.

Every array of an answer has one entry a wanted position, so a cut is a slice. Attention, gradients
by token and those by word have an axis as long as the longest sample that shares the answer: it is
trimmed to its own sample on the way into the cache and filled with zeros on the way out.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.signals.records import AttentionAsk, GradientsAsk, SignalAsk, VjpAsk

Arrays = Mapping[str, np.ndarray]


def trimmed(ask: SignalAsk, arrays: Arrays, length: int) -> dict[str, np.ndarray]:
    """A sample's rows without what they owe to longer neighbours.

    Args:
        ask: what the arrays answer.
        arrays: [n, ...] each.
        length: words of the sample.
    """
    match ask:
        case AttentionAsk() | GradientsAsk(by_token=True) | VjpAsk(by_word=True):
            return {name: array[..., :length] for name, array in arrays.items()}
        case _:
            return dict(arrays)


def joined(parts: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """The rows of all parts, in order; shorter last axes are filled with zeros.

    Args:
        parts: of one ask; may be none at all, then nothing is joined.
    """
    if not parts:
        return {}
    return {name: _stacked([part[name] for part in parts]) for name in parts[0]}


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0]
    longest = max(array.shape[-1] for array in arrays)
    if arrays[0].ndim > 1 and any(array.shape[-1] < longest for array in arrays):
        arrays = [np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, longest - a.shape[-1])]) for a in arrays]
    return np.concatenate(arrays)
