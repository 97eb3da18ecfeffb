"""Rows in order of size: by numpy's vectorised sorts on a processor, by torch's own elsewhere.

For rows of a vocabulary torch's sort takes longer on a processor than all the rest of a loss.
Equal entries keep their order. Nothing carries a gradient.

b rows, M entries, all of them finite.
"""

import numpy as np
import torch
from torch import Tensor


def descending(values: Tensor) -> Tensor:
    """[b, M], each row's largest first."""
    if not _by_numpy(values):
        return values.sort(1, descending=True).values
    return torch.from_numpy(np.sort(values.numpy(), axis=1)).flip(1)


def ranked(values: Tensor) -> tuple[Tensor, Tensor]:
    """[b, M] as `descending`, of numbers of at least 0; and [b, M] int64, where each one came from.

    A number of at least 0 is ordered as its bits are: they go above the entry's own number, and
    one sort of whole numbers orders both.
    """
    if not _by_numpy(values) or values.dtype != torch.float32:
        found = values.sort(dim=1, descending=True, stable=True)
        return found.values, found.indices
    keys = values.contiguous().view(torch.int32).long().neg_().bitwise_left_shift_(32)
    keys += torch.arange(values.shape[1])
    order = torch.from_numpy(np.sort(keys.numpy(), axis=1)).bitwise_and_(0xFFFFFFFF)
    return values.gather(1, order), order


def at_rank(values: Tensor, rank: int) -> Tensor:
    """[b, 1]: the entry of each row with `rank` - 1 before it, the largest first."""
    if not _by_numpy(values):
        return values.topk(rank, dim=1, sorted=False).values.amin(1, keepdim=True)
    place = values.shape[1] - rank
    found = np.partition(values.numpy(), place, axis=1)[:, place : place + 1]
    return torch.from_numpy(np.ascontiguousarray(found))


def _by_numpy(values: Tensor) -> bool:
    return values.device.type == "cpu" and not torch.compiler.is_compiling()
