"""How well held-out items are ranked, and which items are recommended.

N users, V items, K entries of the longest list, S popularity strata.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def list_sums(
    scores: Tensor, owned: Tensor, held_out: Tensor, stratum: Tensor, cutoffs: Sequence[int]
) -> dict[str, float]:
    """Sums over users, to be added up over batches and ranks; see `list_means`.

    A user's list is the best of the items that the user does not own, ties in order of number;
    shorter where fewer are left.

    Args:
        scores: [N, V].
        owned: [N, V] bool: items trained on.
        held_out: [N, V] bool, none of them owned.
        stratum: [V] int64, from 0.
        cutoffs: lengths of the list.
    """
    longest = max(cutoffs)
    best = scores.masked_fill(owned, -torch.inf).argsort(dim=1, descending=True, stable=True)
    best = best[:, :longest]
    listed = ~owned.gather(1, best)
    hits, strata = held_out.gather(1, best) & listed, stratum[best]
    discounts = 1 / torch.arange(2, longest + 2, dtype=torch.float64, device=scores.device).log2()
    sums = _sums("", hits, held_out, discounts, cutoffs)
    for number in range(int(stratum.max()) + 1):
        inside, prefix = strata == number, f"{number}/"
        relevant = held_out & (stratum == number)
        sums |= _sums(prefix, hits & inside, relevant, discounts, cutoffs)
        for k in cutoffs:
            sums[f"{prefix}listed_at_{k}"] = float((listed & inside)[:, :k].sum())
    return sums


def _sums(
    prefix: str, hits: Tensor, relevant: Tensor, discounts: Tensor, cutoffs: Sequence[int]
) -> dict[str, float]:
    """Of users with something relevant: their number, and by cutoff recall and NDCG."""
    count = relevant.sum(1)
    some = count > 0
    hits, count = hits[some].double(), count[some]
    sums = {f"{prefix}users": float(some.sum())}
    ideal = discounts.cumsum(0)
    for k in cutoffs:
        gain = hits[:, :k] @ discounts[:k]
        sums[f"{prefix}recall_at_{k}"] = float((hits[:, :k].sum(1) / count).sum())
        sums[f"{prefix}ndcg_at_{k}"] = float((gain / ideal[count.clamp_max(k) - 1]).sum())
    return sums


def list_means(
    sums: Mapping[str, float], stratum: Tensor, cutoffs: Sequence[int]
) -> dict[str, object]:
    """Means over users, overall and by popularity.

    Returns:
        `recall_at_k`: share of a user's held-out items that are in a list of k; `ndcg_at_k`: the
        list's discounted gain over that of the best list, an item's gain 1; and for each stratum,
        `stratum_1` the most popular, a mapping of `items`, both for the held-out items of the
        stratum, over the users that have some (left out where nobody has), and `listed_at_k`: the
        stratum's share of the entries of all lists.

    Source:
        Jaervelin and Kekaelaeinen. "Cumulated gain-based evaluation of IR techniques." ACM TOIS
        20(4), 2002. By popularity: Chen et al., arXiv:2211.14729; which users count in a stratum's
        mean is ours.
    """
    strata = int(stratum.max()) + 1
    found: dict[str, object] = dict(_means("", sums, cutoffs))
    for number in range(strata):
        prefix = f"{number}/"
        of_stratum = {"items": float((stratum == number).sum()), **_means(prefix, sums, cutoffs)}
        for k in cutoffs:
            every = sum(sums[f"{other}/listed_at_{k}"] for other in range(strata))
            of_stratum[f"listed_at_{k}"] = sums[f"{prefix}listed_at_{k}"] / max(every, 1.0)
        found[f"stratum_{number + 1}"] = of_stratum
    return found


def _means(prefix: str, sums: Mapping[str, float], cutoffs: Sequence[int]) -> dict[str, float]:
    users = sums[f"{prefix}users"]
    names = [f"{metric}_at_{k}" for k in cutoffs for metric in ("recall", "ndcg")]
    return {name: sums[f"{prefix}{name}"] / users for name in names} if users else {}
