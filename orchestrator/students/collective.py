"""What ranks tell each other in numbers."""

from collections.abc import Mapping

import torch


def sum_over_ranks(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Each value summed over ranks, which give the same keys in the same order. Collective."""
    if torch.distributed.get_world_size() == 1:
        return dict(values)
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(tensor)
    return dict(zip(values, tensor.tolist(), strict=True))


def gathered(values: torch.Tensor) -> torch.Tensor:
    """[n, ...] of each rank, n its own -> all of them, in the order of ranks. Collective."""
    world = torch.distributed.get_world_size()
    if world == 1:
        return values
    size = torch.tensor([len(values)], device=values.device)
    sizes = [torch.zeros_like(size) for _ in range(world)]
    torch.distributed.all_gather(sizes, size)
    counts = [int(each) for each in sizes]
    padded = values.new_zeros(max(counts), *values.shape[1:])
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in range(world)]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
