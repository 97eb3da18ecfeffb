"""Adaptive schedules: values computed by hand, the state of an objective, measures as terms."""

import json
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from strategies.adaptive import first_memory, observed
from strategies.contract import IGNORED, Ask, Batch, Head, HiddenSignal, Outputs
from strategies.objective import Objective, State, build_objective
from strategies.progress import Progress
from strategies.schedules import value
from strategies.specs import FollowSchedule, ObjectiveSpec, TaidSchedule

WIDTH, VOCABULARY = 5, 11
TAID = {"kind": "taid", "start": 0.4, "alpha": 0.5, "beta": 0.75}
ENTROPY = {"kind": "measure", "name": "doubt", "measure": "student_entropy"}
GAP = {"kind": "measure", "name": "gap", "measure": "gap"}
WALKING = {"kind": "forward_kl", "target": [{"kind": "towards_student", "share": TAID}]}
SHARE = "forward_kl.target.0.share"


def _spec(*terms: dict[str, Any]) -> ObjectiveSpec:
    return ObjectiveSpec.model_validate({"terms": list(terms)})


def _objective(*terms: dict[str, Any]) -> Objective:
    return build_objective(_spec(*terms))


def _follow(**fields: Any) -> dict[str, Any]:
    shared = {"kind": "follow", "quantity": "doubt", "between": [0.0, 1.0], "low": 1.0, "high": 3.0}
    return {**shared, **fields}


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_taid_takes_the_steps_computed_by_hand() -> None:
    number = TaidSchedule.model_validate(TAID)
    memory, found = first_memory(number), []
    for step, loss in enumerate([2.0, 1.0, 1.5, 1.5]):
        at = Progress(step, 10)
        found.append(value(number, at, memory))
        memory = observed(number, memory, loss, at)
    first = 0.46  # the line: the first loss has none before it
    second = first + 0.5 * _sigmoid(0.25 * 0.5) * (1 - first)
    third = second + 0.5 * _sigmoid(0.75 * 0.125 - 0.25 * 0.5) * (1 - second)
    assert found == pytest.approx([0.4, first, second, third], rel=1e-12)
    assert memory["momentum"] == pytest.approx(0.75 * -0.03125)


def test_taid_is_the_straight_line_where_it_takes_no_steps() -> None:
    number = TaidSchedule(kind="taid", start=0.2, end=0.8, alpha=0.0, until=4)
    memory, found = first_memory(number), []
    for step in range(6):
        found.append(value(number, Progress(step, 10), memory))
        memory = observed(number, memory, 1.0 / (1 + step), Progress(step, 10))
    assert found == pytest.approx([0.2, 0.35, 0.5, 0.65, 0.8, 0.8])


def test_a_loss_of_zero_at_first_does_not_hold_taid_back_for_long() -> None:
    """Where the target is the student itself, there is no loss, and then there is some."""
    number = TaidSchedule(kind="taid", start=0.0, alpha=0.01, beta=0.9)
    memory, steps = first_memory(number), []
    for step, loss in enumerate([0.0, 1e-9, *([0.5] * 120)]):
        at = Progress(step, 10**9)  # so long that the line does not matter
        before = value(number, at, memory)
        memory = observed(number, memory, loss, at)
        steps.append(value(number, Progress(step + 1, 10**9), memory) - before)
    assert steps[2] < 1e-3 * steps[-1]
    assert steps[-1] == pytest.approx(0.01 * 0.5 * (1 - memory["t"]), rel=0.02)


def test_what_follows_goes_by_the_running_mean_of_its_quantity() -> None:
    number = FollowSchedule.model_validate(_follow(between=[1.0, 3.0], power=2.0, memory=0.75))
    memory, found = first_memory(number), []
    for step, quantity in enumerate([2.0, 4.0, 9.0, 9.0]):
        at = Progress(step, 10)
        found.append(value(number, at, memory))
        memory = observed(number, memory, quantity, at)
    # running means 2, 2.5, 4.125: shares 0.5, 0.75 and 1, squared
    assert found == pytest.approx([1.0, 1 + 2 * 0.25, 1 + 2 * 0.5625, 3.0], rel=1e-12)


def test_before_anything_is_measured_what_follows_is_at_low_or_first() -> None:
    at = Progress(0, 10)
    assert value(FollowSchedule.model_validate(_follow()), at, {}) == 1.0
    assert value(FollowSchedule.model_validate(_follow(first=2.0)), at, {}) == 2.0


def test_an_adaptive_schedule_has_no_value_without_its_state() -> None:
    with pytest.raises(ValueError, match="taid needs its state"):
        value(TaidSchedule.model_validate(TAID), Progress(0, 10))


# --- the state of an objective -------------------------------------------------------------------

ADAPTIVE = (
    WALKING,
    {"kind": "cross_entropy", "weight": _follow(quantity="doubt", memory=0.5)},
    ENTROPY,
)


def _steps(
    objective: Objective, means: list[dict[str, float]], stop: int
) -> list[dict[str, float]]:
    """Numbers of all steps; the state goes through JSON before step `stop`."""
    state, found = objective.start(), []
    for step, measured in enumerate(means):
        state = json.loads(json.dumps(state)) if step == stop else state
        at = Progress(step, len(means))
        found.append(objective.numbers(at, state))
        state = objective.observe(state, measured, at)
    return found


MEANS = [
    {"forward_kl": 1.0 / (1 + step), "cross_entropy": 2.0, "doubt": 0.9 - 0.1 * step}
    for step in range(6)
]


def test_a_state_has_an_entry_for_each_adaptive_number_and_no_other() -> None:
    start = _objective(*ADAPTIVE).start()
    assert start == {SHARE: {"t": 0.4, "momentum": 0.0}, "cross_entropy.weight": {}}
    assert _objective({"kind": "cross_entropy"}).start() == {}


def test_numbers_follow_their_own_quantities() -> None:
    found = _steps(_objective(*ADAPTIVE), MEANS, stop=0)
    assert [numbers["doubt.weight"] for numbers in found] == [0.0] * 6
    # running means of 0.9, 0.8, 0.7, ... with half of the past in them
    weights = [numbers["cross_entropy.weight"] for numbers in found]
    assert weights[:4] == pytest.approx([1.0, 2.8, 2.7, 2.55])
    shares = [numbers[SHARE] for numbers in found]
    assert shares[:2] == pytest.approx([0.4, 0.5]) and shares == sorted(shares)
    assert shares[2] == pytest.approx(0.5 + 0.5 * _sigmoid(0.25 * 0.5) * 0.5)


@pytest.mark.parametrize("stop", range(1, 6))
def test_resuming_in_the_middle_goes_on_bit_for_bit(stop: int) -> None:
    objective = _objective(*ADAPTIVE)
    assert _steps(objective, MEANS, stop) == _steps(objective, MEANS, stop=0)


def test_observing_leaves_the_state_it_was_given_alone() -> None:
    objective = _objective(*ADAPTIVE)
    state: State = objective.start()
    before = json.dumps(state)
    after = objective.observe(state, MEANS[0], Progress(0, 6))
    assert json.dumps(state) == before and after != state
    assert after == objective.observe(state, MEANS[0], Progress(0, 6))


def test_a_quantity_without_a_mean_leaves_what_follows_it_as_it_was() -> None:
    objective = _objective(*ADAPTIVE)
    state = objective.observe(objective.start(), MEANS[0], Progress(0, 6))
    after = objective.observe(state, {"cross_entropy": 2.0, "doubt": 0.1}, Progress(1, 6))
    assert after[SHARE] == state[SHARE]
    assert after["cross_entropy.weight"] != state["cross_entropy.weight"]


# --- measures as terms ---------------------------------------------------------------------------


def _batch(ignored: int = 3) -> Batch:
    targets = torch.randint(VOCABULARY, (3, 4), generator=torch.Generator().manual_seed(0))
    targets.view(-1)[:ignored] = IGNORED
    return Batch({}, targets, targets)


def _student(count: int) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(1)
    hidden = torch.randn(count, WIDTH, generator=make, requires_grad=True)
    return hidden, torch.randn(VOCABULARY, WIDTH, generator=make, requires_grad=True)


def _teacher(count: int) -> HiddenSignal:
    make = torch.Generator().manual_seed(2)
    head = Head(torch.randn(VOCABULARY, 3, generator=make))
    return HiddenSignal(torch.randn(count, 3, generator=make), head)


def _loss(
    objective: Objective, batch: Batch, fewer: Batch | None = None, dense: bool = False
) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, ...]]:
    hidden, weight = _student(int(batch.mask.sum()))
    seen = batch if fewer is None else fewer
    signals = {"teacher": _teacher(int(seen.mask.sum()))}
    outputs = Outputs(logits=hidden @ weight.t()) if dense else Outputs(hidden, Head(weight))
    numbers = objective.numbers(Progress(0, 10), objective.start())
    scales = {term.name: numbers[f"{term.name}.weight"] / 7 for term in objective.terms}
    asked = None if fewer is None else {"teacher": fewer}
    loss, totals = objective.loss(outputs, batch, signals, numbers, scales, asked)
    return loss, totals, torch.autograd.grad(loss, (hidden, weight))


@pytest.mark.parametrize("dense", [False, True])
def test_a_measure_sums_its_values_over_the_positions(dense: bool) -> None:
    objective, batch = _objective({"kind": "cross_entropy"}, ENTROPY, GAP), _batch()
    _, totals, _ = _loss(objective, batch, dense=dense)
    hidden, weight = _student(9)
    log_q = (hidden @ weight.t()).log_softmax(1)
    teacher = _teacher(9)
    log_p = teacher.head.logits(teacher.hidden).log_softmax(1)
    entropy = -(log_q.exp() * log_q).sum() / math.log(VOCABULARY)
    torch.testing.assert_close(totals["doubt"], entropy.detach(), rtol=1e-5, atol=1e-6)
    gap = (log_p.exp() * (log_p - log_q)).sum()
    torch.testing.assert_close(totals["gap"], gap.detach(), rtol=1e-5, atol=1e-6)
    assert list(totals) == ["cross_entropy", "doubt", "gap"]
    assert not any(total.requires_grad for total in totals.values())
    assert float(objective.counts(batch, {})["gap"]) == 9.0


@pytest.mark.parametrize("dense", [False, True])
def test_a_measure_changes_neither_the_loss_nor_its_gradient(dense: bool) -> None:
    terms = ({"kind": "cross_entropy"}, {"kind": "forward_kl", "temperature": 2.0})
    plain, _, gradient = _loss(_objective(*terms), _batch(), dense=dense)
    watched, _, same = _loss(_objective(*terms, ENTROPY, GAP), _batch(), dense=dense)
    assert torch.equal(plain, watched)
    assert all(torch.equal(one, other) for one, other in zip(gradient, same, strict=True))


def test_a_measure_of_no_position_is_zero() -> None:
    loss, totals, _ = _loss(_objective({"kind": "cross_entropy"}, ENTROPY, GAP), _batch(12))
    assert [float(loss.detach()), float(totals["doubt"]), float(totals["gap"])] == [0.0, 0.0, 0.0]


def test_a_measure_of_a_role_sees_what_the_role_was_asked_about_and_no_more() -> None:
    batch = _batch(3)
    fewer = Batch({}, batch.targets.clone(), batch.sample_index)
    fewer.targets[2] = IGNORED
    objective = _objective({"kind": "forward_kl"}, ENTROPY, GAP)
    _, totals, _ = _loss(objective, batch, fewer)
    whole, some = int(batch.mask.sum()), int(fewer.mask.sum())
    counts = objective.counts(batch, {}, {"teacher": fewer})
    assert (float(counts["doubt"]), float(counts["gap"])) == (whole, some)
    hidden, weight = _student(whole)
    log_q = (hidden @ weight.t()).log_softmax(1)
    entropy = -(log_q.exp() * log_q).sum() / math.log(VOCABULARY)
    torch.testing.assert_close(totals["doubt"], entropy.detach(), rtol=1e-5, atol=1e-6)
    teacher = _teacher(some)
    log_p = teacher.head.logits(teacher.hidden).log_softmax(1)
    gap = (log_p.exp() * (log_p - log_q[:some])).sum()
    torch.testing.assert_close(totals["gap"], gap.detach(), rtol=1e-5, atol=1e-6)


def test_a_measure_asks_a_role_only_where_it_looks_at_one() -> None:
    assert _objective({"kind": "cross_entropy"}, ENTROPY).asks() == ()
    assert _objective({"kind": "cross_entropy"}, GAP).asks() == (Ask("teacher"),)
    other = {**GAP, "role": "assistant"}
    assert _objective({"kind": "cross_entropy"}, other).asks() == (Ask("assistant"),)


def test_terms_are_called_by_their_names_or_by_their_kinds() -> None:
    spec = _spec(
        {"kind": "forward_kl"},
        {"kind": "forward_kl", "name": "warm"},
        {"kind": "forward_kl"},
        {"kind": "import", "target": "one.module:make_it"},
        ENTROPY,
    )
    assert spec.names == ("forward_kl", "warm", "forward_kl_2", "make_it", "doubt")


REFUSED: list[tuple[list[dict[str, Any]], str]] = [
    (
        [{"kind": "forward_kl"}, {"kind": "cross_entropy", "name": "forward_kl"}],
        r"terms\.0 and terms\.1 are both called 'forward_kl'; give one of them another name",
    ),
    ([{"kind": "forward_kl", "name": "total"}], "'total', which metrics use; rename it"),
    ([{"kind": "forward_kl", "name": "No Name"}], "should match pattern"),
    (
        [{"kind": "cross_entropy", "weight": _follow()}, GAP],
        r"cross_entropy\.weight follows 'doubt', and the terms are called cross_entropy, gap; "
        r"name one of these, or add a term of kind measure with name: doubt",
    ),
    (
        [
            {
                "kind": "forward_kl",
                "target": [{"kind": "towards_student", "share": _follow(low=0.0, high=1.0)}],
            }
        ],
        r"forward_kl\.target\.0\.share follows 'doubt'",
    ),
    ([{"kind": "cross_entropy"}, {**ENTROPY, "weight": 1.0}], "nothing is learned from it"),
    ([{"kind": "cross_entropy"}, {**ENTROPY, "role": "teacher"}], "looks at none; remove role"),
    ([ENTROPY], "every term has weight 0"),
]


@pytest.mark.parametrize(("terms", "message"), REFUSED)
def test_what_cannot_be_followed_named_or_measured_is_refused(
    terms: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        _spec(*terms)
