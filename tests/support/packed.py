"""Packed rows of random tokens, for tests of causal models."""

import torch

from strategies.contract import IGNORED, Batch


def batch_of(rows: list[list[int]], length: int = 9) -> Batch:
    """Packed rows of samples of these lengths; all but the last position of each bear loss."""
    make = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 97, (len(rows), length), generator=make)
    positions, index = torch.zeros_like(ids), torch.full_like(ids, -1)
    targets = torch.full_like(ids, IGNORED)
    sample = 0
    for r, lengths in enumerate(rows):
        start = 0
        for size in lengths:
            span = slice(start, start + size)
            positions[r, span], index[r, span] = torch.arange(size), sample
            targets[r, start : start + size - 1] = ids[r, start + 1 : start + size]
            start, sample = start + size, sample + 1
        positions[r, start:] = torch.arange(length - start)
    return Batch({"input_ids": ids, "position_ids": positions}, targets, index)
