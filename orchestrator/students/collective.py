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
