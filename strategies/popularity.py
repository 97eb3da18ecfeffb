"""Items by how many users are trained on them. Plain torch.

V items, S strata, K entries of a list.
"""

import torch
from torch import Tensor


def strata_of(popularity: Tensor, strata: int) -> Tensor:
    """[V] int64: each item's stratum, 0 the most popular.

    Items are sorted by popularity, most first, ties in order of number; the border after stratum s
    is the place where the sum of popularity comes nearest to (s + 1) / S of it all. Each stratum
    has an item at least.

    Args:
        popularity: [V] whole numbers of at least 0.
        strata: S, from 1 to V.

    Raises:
        ValueError: there are fewer items than strata.

    Source:
        Chen, Chen, Feng, Zhou, He. "Unbiased Knowledge Distillation for Recommendation."
        arXiv:2211.14729: "equal total interactions"; where exactly to cut is ours.
    """
    items = len(popularity)
    if not 1 <= strata <= items:
        raise ValueError(
            f"strata is {strata}, and there are {items} items, of which each needs one; set it to "
            f"{max(1, items)} or less"
        )
    order = popularity.cpu().argsort(descending=True, stable=True)
    sums = [0, *popularity.cpu()[order].cumsum(0).tolist()]
    begins, end = [0], 0
    for place in range(1, strata):
        wanted, latest = sums[-1] * place / strata, items - (strata - place)
        end += 1
        while end < latest and abs(sums[end + 1] - wanted) < abs(sums[end] - wanted):
            end += 1
        begins.append(end)
    sizes = torch.tensor([*begins, items]).diff()
    found = torch.empty_like(order)
    found[order] = torch.arange(strata).repeat_interleave(sizes)
    return found.to(popularity.device)
