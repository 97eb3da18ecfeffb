"""Laws of strata, of drawn pairs and of lists, over random users and items."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from ranking import batch_of, histories, objective_of, popularity, result

from orchestrator.evaluation.diagnostics.ranking import list_means, list_sums
from strategies.popularity import strata_of
from strategies.rankers import users_of

TERMS = ({"kind": "bpr", "negatives": 2}, {"kind": "stratified_pairs", "strata": 2, "pairs": 5})
counts = st.lists(st.integers(0, 50), min_size=1, max_size=40)


@given(counts, st.data())
@settings(deadline=None, max_examples=60)
def test_strata_are_runs_of_the_items_by_popularity_cut_nearest_to_equal_parts(
    found: list[int], data: st.DataObject
) -> None:
    strata = data.draw(st.integers(1, len(found)))
    stratum = strata_of(torch.tensor(found), strata).tolist()
    assert set(stratum) == set(range(strata))
    order = sorted(range(len(found)), key=lambda item: (-found[item], item))
    assert [stratum[item] for item in order] == sorted(stratum)
    sizes = [stratum.count(s) for s in range(strata)]
    sums = [sum(found[item] for item in order[:n]) for n in range(len(found) + 1)]
    begin = 0
    for place in range(1, strata):
        end, wanted = begin + sizes[place - 1], sums[-1] * place / strata
        allowed = range(begin + 1, len(found) - (strata - place) + 1)
        nearest = min(abs(sums[n] - wanted) for n in allowed)
        assert abs(sums[end] - wanted) == nearest
        begin = end


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(4, 20), st.integers(0, 5), st.data())
@settings(deadline=None, max_examples=30)
def test_no_cut_and_no_order_of_rows_changes_a_sum_or_a_gradient(
    seed: int, users: int, items: int, epoch: int, data: st.DataObject
) -> None:
    owned = histories(users, items, seed)
    objective = objective_of(popularity(owned, items), *TERMS)
    make = torch.Generator().manual_seed(seed)
    scores, role = torch.randn(2, users, items, generator=make, dtype=torch.float64)
    whole = result(objective, scores, batch_of(owned, range(users), epoch=epoch), teacher=role)
    order = data.draw(st.permutations(range(users)))
    at = data.draw(st.integers(0, users))
    gradient, totals, counted = torch.zeros_like(scores), 0.0, dict.fromkeys(whole[3], 0.0)
    for part in (order[:at], order[at:]):
        batch = batch_of(owned, part, padding=data.draw(st.integers(0, 2)), epoch=epoch)
        if not len(batch.targets):
            continue
        loss, pulled, _, count = result(objective, scores[part], batch, teacher=role[part])
        gradient[part] += pulled
        totals += float(loss)
        counted = {name: counted[name] + count[name] for name in counted}
    assert counted == whole[3]
    torch.testing.assert_close(torch.tensor(totals), whole[0].float(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient, whole[1], rtol=1e-12, atol=1e-14)


@given(st.integers(0, 2**31), st.integers(1, 10), st.integers(3, 12), st.data())
@settings(deadline=None, max_examples=30)
def test_lists_measured_in_parts_are_those_measured_whole(
    seed: int, users: int, items: int, data: st.DataObject
) -> None:
    owned = histories(users, items, seed, most=items - 2)
    make = torch.Generator().manual_seed(seed)
    scores = torch.randn(users, items, generator=make)
    stratum = strata_of(popularity(owned, items), 2)
    mine = users_of(batch_of(owned, range(users))).owns(items)
    held_out = (torch.rand(users, items, generator=make) < 0.4) & ~mine
    cutoffs = [1, items]
    whole = list_sums(scores, mine, held_out, stratum, cutoffs)
    at = data.draw(st.integers(0, users))
    parts = [
        list_sums(scores[rows], mine[rows], held_out[rows], stratum, cutoffs)
        for rows in (slice(0, at), slice(at, users))
    ]
    for name, value in whole.items():
        assert abs(sum(part[name] for part in parts) - value) < 1e-9
    means = list_means(whole, stratum, cutoffs)
    listed = sum(means[f"stratum_{s}"]["listed_at_1"] for s in (1, 2))  # type: ignore[index]
    assert abs(listed - 1) < 1e-12
    if whole["users"]:
        assert means[f"recall_at_{items}"] == 1.0
