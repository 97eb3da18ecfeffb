"""Logarithms in eight bits, with a scale for each position.

Code 0 stands for an impossible entry. Codes 1 to 255 divide what lies between the lowest and the
highest possible entry of the position evenly. The ends cross as float16 rounded outwards, and the
codes are taken between the rounded ends, so their rounding adds no error. Imports torch and numpy.
"""

import numpy as np
import torch
from torch import Tensor

IMPOSSIBLE = -65504.0
"""Log-probability of an impossible entry on the wire: float16's lowest, so nothing is infinite."""
_STEPS = 254


def to_codes(logs: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """[N, K] float32 -> ([N, K] uint8, [N, 2] float16 ends).

    Entries at or below `IMPOSSIBLE` are impossible; a position of only such has ends of 0.
    """
    possible = logs > IMPOSSIBLE
    lowest = torch.where(possible, logs, torch.inf).amin(-1, keepdim=True)
    highest = torch.where(possible, logs, -torch.inf).amax(-1, keepdim=True)
    some = possible.any(-1, keepdim=True)
    lowest = _outwards(torch.where(some, lowest, 0.0), -1)
    highest = _outwards(torch.where(some, highest, 0.0), 1)
    step = (highest.float() - lowest.float()) / _STEPS
    codes = 1 + ((logs - lowest.float()) / torch.where(step > 0, step, 1.0)).round()
    codes = torch.where(possible, codes.clamp(1, 255), 0.0).to(torch.uint8)
    return codes.cpu().numpy(), torch.cat([lowest, highest], -1).cpu().numpy()


def from_codes(codes: np.ndarray, ends: np.ndarray, device: torch.device | str) -> Tensor:
    """[N, K] float32."""
    levels = torch.from_numpy(codes).to(device).float()
    lowest, highest = torch.from_numpy(ends).to(device).float().unsqueeze(-1).unbind(1)
    values = lowest + (levels - 1) * ((highest - lowest) / _STEPS)
    return torch.where(levels > 0, values, IMPOSSIBLE)


def _outwards(ends: Tensor, direction: int) -> Tensor:
    """float16 at or beyond a value, in a direction; what lies past float16's range stays in it."""
    limit = torch.finfo(torch.float16).max
    rounded = ends.clamp(-limit, limit).half()
    inside = (rounded.float() - ends) * direction < 0
    beyond = torch.nextafter(rounded, torch.full_like(rounded, direction * torch.inf))
    return torch.where(inside & beyond.isfinite(), beyond, rounded)
