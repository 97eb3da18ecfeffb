"""Li et al., arXiv:2109.11295: the student's doubt decides what it learns, and from whom."""

import pytest
import torch
from tiny_objective import Scene, objective_of, result, scene

from strategies.contract import DenseSignal, Outputs
from strategies.measuring import measure
from strategies.objective import build_objective
from strategies.progress import Progress
from strategies.samples import narrowed
from strategies.specs import ObjectiveSpec


def _doubt(logits: torch.Tensor) -> torch.Tensor:
    labels = torch.zeros(len(logits), dtype=torch.int64)
    asked = [("student_entropy", None)]
    return measure(asked, labels, {}, Outputs(logits=logits))[asked[0]]


def test_doubt_lies_between_0_for_one_entry_and_1_for_all_alike() -> None:
    make = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(200, 11, dtype=torch.float64, generator=make)
    logits[0], logits[1] = 0.0, torch.tensor([1e4, *[0.0] * 10])
    found = _doubt(logits)
    assert found[0] == 1.0 and found[1] == 0.0
    assert ((found >= 0) & (found <= 1)).all()


def test_hard_choice_gives_the_more_uncertain_half_of_each_group_to_the_small_role() -> None:
    seen = scene(11, rows=8)
    recipe = objective_of(kind="dynamic_adoption", choice="hard", labels=0.0)
    loss, gradient, means = result(recipe, seen)
    doubt, rows = _doubt(seen.hidden.detach()), torch.tensor(seen.rows)
    learned = torch.empty(len(rows), dtype=torch.bool)
    for group in (rows // 4).unique():
        mine = (rows // 4 == group).nonzero().squeeze(1)
        best = mine[doubt[mine].argsort(descending=True)[: -(-len(mine) // 2)]]
        learned[mine], learned[best] = False, True
    small, large = seen.roles["assistant"], seen.roles["teacher"]
    wanted = 2 * (seen.hidden - torch.where(learned.unsqueeze(1), small, large)) / 7 / len(rows)
    torch.testing.assert_close(gradient, wanted.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(float(loss), sum(means.values()))


@pytest.mark.parametrize("choice", ["soft", "soft_by_position"])
def test_soft_choice_weighs_the_small_role_by_doubt_without_a_gradient_of_its_own(
    choice: str,
) -> None:
    seen = scene(12, rows=8)
    recipe = objective_of(kind="dynamic_adoption", choice=choice, labels=0.0)
    loss, gradient, _ = result(recipe, seen)
    doubt, rows = _doubt(seen.hidden.detach()), torch.tensor(seen.rows)
    if choice == "soft":
        doubt = torch.stack([doubt[rows // 4 == row // 4].mean() for row in rows])
    z = seen.hidden
    small = (z - seen.roles["assistant"]).square().mean(1)
    large = (z - seen.roles["teacher"]).square().mean(1)
    wanted = (doubt * small + (1 - doubt) * large).mean()
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-12, atol=1e-12)
    (of_wanted,) = torch.autograd.grad(wanted, z)
    torch.testing.assert_close(gradient, of_wanted, rtol=1e-12, atol=1e-12)


def test_choosing_all_is_choosing_none_and_a_share_asks_for_its_ceiling() -> None:
    spec = ObjectiveSpec.model_validate({"recipe": {"kind": "dynamic_selection", "share": 1.0}})
    assert spec.select is not None
    seen = scene(13)
    outputs = Outputs(logits=seen.hidden)
    asked = narrowed(spec.select, _doubt(seen.hidden.detach()), seen.batch)
    assert torch.equal(asked.targets, seen.batch.targets)
    objective = build_objective(spec)
    numbers = objective.numbers(Progress(0, 1), objective.start())
    scales = {name: 0.1 for name in objective.counts(seen.batch, {})}
    plain = objective.loss(outputs, seen.batch, seen.signals(), numbers, scales)
    narrow = {"teacher": asked}
    selected = objective.loss(outputs, seen.batch, seen.signals(), numbers, scales, narrow)
    torch.testing.assert_close(plain[0], selected[0], rtol=1e-12, atol=1e-12)
    for share, wanted in ((0.25, 1), (0.26, 2), (0.5, 2), (0.07, 1)):
        part = spec.select.model_copy(update={"share": share})
        few = narrowed(part, _doubt(seen.hidden.detach()), seen.batch)
        assert len(few.sample_index[few.mask].unique()) == wanted


def test_the_selected_are_those_with_the_largest_doubt() -> None:
    spec = ObjectiveSpec.model_validate({"recipe": {"kind": "dynamic_selection", "share": 0.5}})
    assert spec.select is not None
    seen = scene(14)
    asked = narrowed(spec.select, _doubt(seen.hidden.detach()), seen.batch)
    doubt, rows = _doubt(seen.hidden.detach()), torch.tensor(seen.rows)
    of_rows = torch.stack([doubt[rows == row].mean() for row in range(4)])
    assert set(asked.sample_index[asked.mask].tolist()) == set(of_rows.topk(2).indices.tolist())


def test_roles_of_unequal_answers_are_both_looked_at() -> None:
    seen = scene(15)
    swapped = Scene(seen.hidden, {**seen.roles, "assistant": seen.roles["teacher"]}, seen.batch)
    recipe = objective_of(kind="dynamic_adoption", distance="forward_kl")
    assert float(result(recipe, seen)[0]) != float(result(recipe, swapped)[0])
    assert isinstance(swapped.signals()["assistant"], DenseSignal)
