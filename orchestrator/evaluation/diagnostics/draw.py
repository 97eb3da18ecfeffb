"""Tokens drawn so that a text depends on its seed and place alone, never on its neighbours.

R rows, V vocabulary.
"""

import hashlib

import torch
from torch import Tensor


def uniform(*key: object) -> float:
    """A number in [0, 1) that is a hash of `key`: the same on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2.0**56


def drawn(logits: Tensor, uniforms: list[float]) -> Tensor:
    """[R] int64: from softmax(logits) [R, V], where each row's number in [0, 1) points.

    The sum over entries, in order of id, is inverted in float64.
    """
    steps = torch.softmax(logits.double(), 1).cumsum(1)
    points = torch.tensor(uniforms, dtype=torch.float64, device=logits.device).unsqueeze(1)
    found = torch.searchsorted(steps, points * steps[:, -1:], right=True).squeeze(1)
    return found.clamp_max(logits.shape[1] - 1)
