"""Chen et al., arXiv:2211.14729: items are compared within their popularity stratum only."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from ranking import batch_of, objective_of, popularity, result
from torch import Tensor

from orchestrator.evaluation.diagnostics.ranking import list_means, list_sums
from strategies.contract import DenseSignal, Outputs
from strategies.popularity import strata_of
from strategies.progress import Progress
from strategies.rankers import stratified_pairs, user_keys, users_of
from strategies.specs import ObjectiveSpec

USERS, ITEMS, STRATA = 80, 80, 3


def world(seed: int = 0) -> tuple[Tensor, list[list[int]], Tensor]:
    """True affinity [U, V], the items each user has met, and their popularity [V]."""
    make = torch.Generator().manual_seed(seed)
    users, items = (torch.randn(n, 4, generator=make, dtype=torch.float64) for n in (USERS, ITEMS))
    affinity = users @ items.T / 2
    known = -0.5 * torch.log1p(torch.arange(ITEMS, dtype=torch.float64))
    chance = (affinity + known).softmax(1)
    met = torch.multinomial(chance, 6, generator=make)
    owned = [sorted(row) for row in met.tolist()]
    return affinity, owned, popularity(owned, ITEMS)


AFFINITY, OWNED, COUNTS = world()
BIASED = AFFINITY + COUNTS.clamp_min(1).double().log()
BATCH = batch_of(OWNED, range(USERS), epoch=2)


def pairs(role: Tensor, strata: int) -> tuple[Tensor, Tensor, Tensor]:
    users = users_of(BATCH)
    keys = user_keys(users.number, 0, BATCH.epoch)
    drawn = stratified_pairs(
        role, users.owns(ITEMS), strata_of(COUNTS, strata), keys, 30, 20.0, 1000
    )
    return drawn.better, drawn.worse, drawn.there


def test_a_constant_of_each_stratum_leaves_every_pair_as_it_was_and_changes_ordinary_ones() -> None:
    stratum = strata_of(COUNTS, STRATA)
    constants = torch.tensor([7.0, -3.0, 0.5], dtype=torch.float64)
    moved = BIASED + constants[stratum]
    for one, other in zip(pairs(BIASED, STRATA), pairs(moved, STRATA), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(pairs(BIASED, 1)[0], pairs(moved, 1)[0])


def test_neither_loss_nor_gradient_knows_a_constant_of_a_stratum() -> None:
    moved = BIASED + torch.tensor([7.0, -3.0, 0.5], dtype=torch.float64)[strata_of(COUNTS, STRATA)]
    ours = AFFINITY.flip(1)
    unbiased = objective_of(COUNTS, kind="unkd", strata=STRATA)
    one, other = (result(unbiased, ours, BATCH, teacher=role) for role in (BIASED, moved))
    assert one[2] == other[2] and torch.equal(one[1], other[1])
    ordinary = objective_of(COUNTS, kind="unkd", strata=1)
    one, other = (result(ordinary, ours, BATCH, teacher=role) for role in (BIASED, moved))
    assert one[2]["stratified_pairs"] != other[2]["stratified_pairs"]


def test_the_recipe_is_bpr_beside_the_roles_pairs_and_either_may_be_left_out() -> None:
    def kinds(**fields: float) -> list[str]:
        spec = ObjectiveSpec.model_validate({"recipe": {"kind": "unkd", **fields}})
        return [term.kind for term in spec.terms]

    assert kinds() == ["bpr", "stratified_pairs"]
    assert kinds(interactions=0.0) == ["stratified_pairs"]
    with pytest.raises(ValidationError, match=r"pairs is 3, and strata is 4.*set pairs to 4"):
        kinds(pairs=3, strata=4)


def head_share(**learned: Any) -> float:
    """Share of the lists that the most popular third of interactions takes, after learning.

    A student of 6 numbers a user and item; measured from three seeds: 0.20 to 0.21 without a role,
    0.35 to 0.36 by ordinary ranking, 0.19 to 0.27 with three strata.
    """
    make = torch.Generator().manual_seed(100)
    student = [(0.1 * torch.randn(n, 6, generator=make)).requires_grad_() for n in (USERS, ITEMS)]
    objective = objective_of(COUNTS, **learned)
    optimiser = torch.optim.Adam(student, lr=0.05)
    signals = {"teacher": DenseSignal(BIASED.float())}
    for epoch in range(60):
        batch = batch_of(OWNED, range(USERS), epoch=epoch)
        numbers = objective.numbers(Progress(0, 1), objective.start())
        counts = objective.counts(batch, signals)
        scales = {k: numbers[f"{k}.weight"] / max(1.0, float(v)) for k, v in counts.items()}
        outputs = Outputs(logits=student[0] @ student[1].T)
        loss, _ = objective.loss(outputs, batch, signals, {}, scales)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    stratum = strata_of(COUNTS, 3)
    mine = users_of(BATCH).owns(ITEMS)
    scores = (student[0] @ student[1].T).detach()
    sums = list_sums(scores, mine, torch.zeros_like(mine), stratum, [10])
    return list_means(sums, stratum, [10])["stratum_1"]["listed_at_10"]  # type: ignore[index]


def test_a_biased_role_amplifies_the_students_bias_and_strata_keep_it_down() -> None:
    """The paper's behaviour, of which the bias alone is asserted: recall need not rise."""
    alone = head_share(kind="unkd", weight=0.0)
    ordinary, unbiased = (head_share(kind="unkd", strata=strata) for strata in (1, STRATA))
    assert ordinary > alone + 0.05
    assert unbiased < ordinary - 0.05
