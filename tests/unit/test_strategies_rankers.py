"""Terms on the order of items, against plain references in float64 and by their own definitions."""

import math
from itertools import combinations

import pytest
import torch
from ranking import batch_of, histories, objective_of, pair_losses, popularity, result
from torch import Tensor

from strategies.contract import Batch, DenseSignal, Head, HiddenSignal, Outputs
from strategies.objective import build_objective
from strategies.popularity import strata_of
from strategies.rankers import bpr_pairs, ranks, shares_of, stratified_pairs, user_keys, users_of
from strategies.specs import ObjectiveSpec

USERS, ITEMS = 9, 14
OWNED = histories(USERS, ITEMS, seed=3)
COUNTS = popularity(OWNED, ITEMS)
BPR = {"kind": "bpr", "negatives": 3}
PAIRS = {"kind": "stratified_pairs", "strata": 3, "pairs": 8, "decay": 2.0}


def scores(seed: int = 0, rows: int = USERS) -> Tensor:
    make = torch.Generator().manual_seed(seed)
    return torch.randn(rows, ITEMS, generator=make, dtype=torch.float64)


def drawn_bpr(batch: Batch, negatives: int = 3, seed: int = 0) -> list[tuple[int, int, int]]:
    users = users_of(batch)
    keys = user_keys(users.number, seed, batch.epoch)
    drawn = bpr_pairs(users.items, users.owns(ITEMS), keys, negatives)
    return listed(drawn)


def drawn_pairs(
    batch: Batch, role: Tensor, strata: int, pairs: int = 8, decay: float = 2.0, kept: int = 1000
) -> list[tuple[int, int, int]]:
    users = users_of(batch)
    keys = user_keys(users.number, 0, batch.epoch)
    stratum = strata_of(COUNTS, strata)
    drawn = stratified_pairs(role, users.owns(ITEMS), stratum, keys, pairs, decay, kept)
    return listed(drawn)


def listed(drawn: object) -> list[tuple[int, int, int]]:
    rows, places = drawn.there.nonzero(as_tuple=True)  # type: ignore[attr-defined]
    pairs = (getattr(drawn, side)[rows, places].tolist() for side in ("better", "worse"))
    return list(zip(rows.tolist(), *pairs, strict=True))


# --- value, gradient and count -------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_bpr_and_its_gradient_are_those_of_a_plain_reference(scale: float) -> None:
    batch, ours = batch_of(OWNED, range(USERS)), scale * scores()
    loss, gradient, _, counts = result(objective_of(COUNTS, BPR), ours, batch)
    pairs = drawn_bpr(batch)
    value, wanted = pair_losses(ours, pairs)
    assert float(loss) == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)
    assert counts["bpr"] == len(pairs) == 3 * sum(map(len, OWNED))


def test_one_pair_by_hand() -> None:
    batch, counts = batch_of([[0]], [0]), torch.tensor([1, 0])
    ours = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    loss, gradient, _, _ = result(objective_of(counts, {"kind": "bpr"}), ours, batch)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1.5)), rel=1e-12)
    pull = 1 / (1 + math.exp(1.5))
    torch.testing.assert_close(gradient, torch.tensor([[-pull, pull]], dtype=torch.float64))


def test_a_roles_pairs_and_their_gradient_are_those_of_a_plain_reference() -> None:
    batch, ours, role = batch_of(OWNED, range(USERS)), scores(), scores(1)
    loss, gradient, _, counts = result(objective_of(COUNTS, PAIRS), ours, batch, teacher=role)
    pairs = drawn_pairs(batch, role, strata=3)
    value, wanted = pair_losses(ours, pairs)
    assert float(loss) == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)
    assert counts["stratified_pairs"] == len(pairs)


def test_from_head_and_hidden_states_it_is_the_same() -> None:
    batch, role = batch_of(OWNED, range(USERS)), scores(1)
    objective, signals = objective_of(COUNTS, BPR, PAIRS), {"teacher": DenseSignal(role)}
    hidden, weight = torch.randn(USERS, 5), torch.randn(ITEMS, 5)
    both = (
        Outputs(logits=hidden @ weight.T),
        Outputs(hidden=hidden, head=Head(weight)),
    )
    found = [
        objective.loss(one, batch, signals, {}, {"bpr": 0.5, "stratified_pairs": 2.0})[0]
        for one in both
    ]
    torch.testing.assert_close(*found)


def test_a_batch_without_users_gives_a_zero_that_reaches_the_scores() -> None:
    batch = batch_of(OWNED, [], padding=4)
    nobody = torch.zeros(0, ITEMS, dtype=torch.float64)
    found = result(objective_of(COUNTS, BPR, PAIRS), nobody, batch, teacher=nobody)
    assert float(found[0]) == 0.0 and found[1].shape == (0, ITEMS)
    assert found[3] == {"bpr": 0.0, "stratified_pairs": 0.0}


def test_users_who_have_everything_have_no_pairs() -> None:
    owned = [list(range(ITEMS)), [0, 1], list(range(1, ITEMS))]
    batch, ours = batch_of(owned, range(3)), scores(rows=3)
    counts = popularity(owned, ITEMS)
    _, gradient, _, found = result(objective_of(counts, BPR, PAIRS), ours, batch, teacher=ours)
    assert found["bpr"] == 3 * 2 + 3 * (ITEMS - 1)  # the last lacks one item, drawn each time
    assert not gradient[0].any() and gradient[1].any()
    sides = [item for row, _, item in drawn_bpr(batch) if row == 2]
    assert set(sides) == {0}


# --- what is drawn -------------------------------------------------------------------------------


def test_each_item_of_a_user_is_compared_with_items_the_user_has_not_all_alike_often() -> None:
    owned = [[1, 4, 9]]
    found = torch.zeros(ITEMS)
    for epoch in range(300):
        pairs = drawn_bpr(batch_of(owned, [0], epoch=epoch), negatives=8)
        assert sorted(better for _, better, _ in pairs) == sorted([1, 4, 9] * 8)
        for _, _, worse in pairs:
            found[worse] += 1
    assert not found[[1, 4, 9]].any()
    expected = 300 * 24 / (ITEMS - 3)
    chi = float(((found - expected).square() / expected)[found > 0].sum())
    assert chi < 29.6  # 0.1 % of chi-squared with 10 degrees of freedom


@pytest.mark.parametrize(("size", "decay"), [(2, 20.0), (6, 2.0), (25, 20.0)])
def test_ranks_have_the_published_probability(size: int, decay: float) -> None:
    """A grid of both uniform numbers: shares converge as 1 / its side, and leave nothing out."""
    side = 701
    points = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    first, second = (x.reshape(1, -1) for x in torch.meshgrid(points, points, indexing="ij"))
    upper, lower = ranks(torch.tensor([[size]]), first, second, decay)
    assert (upper < lower).all() and int(upper.min()) >= 0 and int(lower.max()) < size
    weights = {pair: math.exp(-sum(pair) / decay) for pair in combinations(range(size), 2)}
    whole = sum(weights.values())
    found = torch.bincount((upper * size + lower).flatten(), minlength=size * size).double()
    for (a, b), weight in weights.items():
        assert float(found[a * size + b]) / side**2 == pytest.approx(weight / whole, abs=4e-3)


@pytest.mark.parametrize("decay", [0.01, 1.0, 1e4])
def test_ranks_stay_ranks_at_extremes(decay: float) -> None:
    make = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 1, 1000, generator=make, dtype=torch.float64)
    for size in (2, 17, 1000):
        upper, lower = ranks(torch.tensor([[size]]), first, second, decay)
        assert int(upper.min()) >= 0 and (upper < lower).all() and int(lower.max()) < size


def test_pairs_are_of_one_stratum_lacked_and_in_the_roles_order() -> None:
    batch, role = batch_of(OWNED, range(USERS)), scores(1)
    stratum = strata_of(COUNTS, 3)
    pairs = drawn_pairs(batch, role, strata=3)
    assert len(pairs) > 3 * USERS
    for row, better, worse in pairs:
        assert stratum[better] == stratum[worse] and better != worse
        assert better not in OWNED[row] and worse not in OWNED[row]
        assert role[row, better] > role[row, worse]
    per = {(row, int(stratum[better])) for row, better, _ in pairs}
    for row in range(USERS):
        for s, share in enumerate(shares_of(8, 3)):
            mine = [p for p in pairs if p[0] == row and int(stratum[p[1]]) == s]
            assert len(mine) == (share if (row, s) in per else 0)


def test_only_the_roles_best_are_looked_at() -> None:
    batch, role = batch_of(OWNED, range(USERS)), scores(1)
    for row, better, worse in drawn_pairs(batch, role, strata=1, pairs=40, decay=50.0, kept=3):
        lacked = [item for item in range(ITEMS) if item not in OWNED[row]]
        best = sorted(lacked, key=lambda item: -float(role[row, item]))[:3]
        assert better in best and worse in best


def test_pairs_are_new_in_every_epoch_and_for_every_seed() -> None:
    one, other = (batch_of(OWNED, range(USERS), epoch=e) for e in (0, 1))
    role = scores(1)
    assert drawn_bpr(one) == drawn_bpr(one) != drawn_bpr(other)
    assert drawn_pairs(one, role, 2) == drawn_pairs(one, role, 2) != drawn_pairs(other, role, 2)
    assert drawn_bpr(one, seed=1) != drawn_bpr(one, seed=2)


@pytest.mark.parametrize(("pairs", "strata", "shares"), [(30, 4, [8, 8, 7, 7]), (2, 2, [1, 1])])
def test_pairs_are_split_evenly(pairs: int, strata: int, shares: list[int]) -> None:
    assert shares_of(pairs, strata) == shares


# --- bad input -----------------------------------------------------------------------------------


def test_what_cannot_be_computed_says_why() -> None:
    batch, ours = batch_of(OWNED, range(USERS)), scores()
    with pytest.raises(ValueError, match="bpr needs the popularity of items"):
        result(build_objective(ObjectiveSpec.model_validate({"terms": [BPR]})), ours, batch)
    with pytest.raises(ValueError, match="the student scores 14 items, and the data have 13"):
        result(objective_of(COUNTS[:13], BPR), ours, batch_of([[1, 2]] * USERS, range(USERS)))
    with pytest.raises(ValueError, match="role 'teacher' scores 13 items, and the data have 14"):
        result(objective_of(COUNTS, PAIRS), ours, batch, teacher=ours[:, :13])
    text = Batch({"input_ids": torch.zeros(1, 2)}, torch.zeros(1, 1), torch.zeros(1, 1))
    with pytest.raises(ValueError, match=r"has input_ids and no users.*format interactions"):
        users_of(text)
    objective = objective_of(COUNTS, PAIRS)
    hidden = {"teacher": HiddenSignal(ours, Head(torch.eye(ITEMS, dtype=torch.float64)))}
    with pytest.raises(ValueError, match="use encoding full"):
        objective.loss(Outputs(logits=ours), batch, hidden, {}, {"stratified_pairs": 1.0})
