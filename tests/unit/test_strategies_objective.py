"""Objectives: names, numbers, counts before a forward, and one loss for every kind of output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from loss_oracle import topk_signal
from torch import Tensor

from strategies.contract import (
    IGNORED,
    Ask,
    Batch,
    DenseSignal,
    Head,
    HiddenSignal,
    LogitSignal,
    Outputs,
    Signals,
)
from strategies.objective import Objective, build_objective
from strategies.progress import Progress
from strategies.specs import Number, ObjectiveSpec

ROWS, WIDTH, VOCABULARY = (3, 4), 5, 13


def _objective(*terms: dict[str, Any]) -> Objective:
    return build_objective(ObjectiveSpec.model_validate({"terms": list(terms)}))


def _batch(ignored: int = 4, seed: int = 0) -> Batch:
    make = torch.Generator().manual_seed(seed)
    targets = torch.randint(VOCABULARY, ROWS, generator=make)
    targets.view(-1)[:ignored] = IGNORED
    return Batch({}, targets, targets)


def _student(batch: Batch) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(1)
    count = int(batch.mask.sum())
    hidden = torch.randn(count, WIDTH, generator=make, requires_grad=True)
    return hidden, torch.randn(VOCABULARY, WIDTH, generator=make, requires_grad=True)


def _signal(kind: str, count: int) -> LogitSignal:
    make = torch.Generator().manual_seed(2)
    hidden = torch.randn(count, 3, generator=make)
    head = Head(torch.randn(VOCABULARY, 3, generator=make))
    if kind == "hidden":
        return HiddenSignal(hidden, head)
    logits = head.logits(hidden)
    if kind == "dense":
        return DenseSignal(logits)
    return topk_signal(logits, VOCABULARY if kind == "topk of all" else 4, (1.0, 2.0))


MIXTURE = (
    {"kind": "cross_entropy", "label_smoothing": 0.1},
    {"kind": "forward_kl", "temperature": 2.0},
    {"kind": "reverse_kl"},
    {"kind": "jensen_shannon", "beta": 0.3, "temperature": 2.0},
)


def test_repeated_kinds_are_numbered_and_roles_asked_once() -> None:
    objective = _objective(
        {"kind": "forward_kl"},
        {"kind": "cross_entropy"},
        {"kind": "forward_kl", "role": "assistant"},
        {"kind": "forward_kl"},
    )
    names = [term.name for term in objective.terms]
    assert names == ["forward_kl", "cross_entropy", "forward_kl_2", "forward_kl_3"]
    assert objective.asks() == (Ask("teacher"), Ask("assistant"))


def test_numbers_are_the_schedules_at_the_step_by_term_and_field() -> None:
    ramp = {"kind": "linear", "start": 0.0, "end": 1.0}
    objective = _objective(
        {"kind": "cross_entropy", "weight": ramp},
        {"kind": "jensen_shannon", "temperature": 2.0, "beta": 0.25},
        {
            "kind": "reverse_kl",
            "temperature": {"kind": "step", "start": 4, "factor": 0.5, "every": 2, "floor": 1},
        },
    )
    numbers = objective.numbers(Progress(5, 10), {})
    assert list(numbers.items()) == [
        ("cross_entropy.weight", 0.5),
        ("jensen_shannon.weight", 1.0),
        ("jensen_shannon.temperature", 2.0),
        ("jensen_shannon.beta", 0.25),
        ("reverse_kl.weight", 1.0),
        ("reverse_kl.temperature", 1.0),
    ]


def test_counts_are_the_loss_bearing_positions_and_need_no_forward() -> None:
    counts = _objective(*MIXTURE).counts(_batch(ignored=4), {})
    assert [float(count) for count in counts.values()] == [8.0] * 4
    assert all(count.dtype == torch.float32 for count in counts.values())


@pytest.mark.parametrize("ignored", [4, 12])
@pytest.mark.parametrize("signal_kind", ["hidden", "dense", "topk", "topk of all"])
def test_dense_outputs_and_outputs_with_a_head_give_one_loss(
    signal_kind: str, ignored: int
) -> None:
    objective, batch = _objective(*MIXTURE), _batch(ignored)
    hidden, weight = _student(batch)
    signals = {"teacher": _signal(signal_kind, len(hidden))}
    numbers = objective.numbers(Progress(0, 10), {})
    scales = {"cross_entropy": 0.5, "forward_kl": 0.2, "reverse_kl": 0.3, "jensen_shannon": 0.7}
    answers = []
    for outputs in (Outputs(hidden=hidden, head=Head(weight)), Outputs(logits=hidden @ weight.t())):
        loss, totals = objective.loss(outputs, batch, signals, numbers, scales)
        assert list(totals) == list(scales)
        assert not any(total.requires_grad for total in totals.values())
        torch.testing.assert_close(loss, sum(scales[name] * totals[name] for name in scales))
        answers.append((loss, totals, torch.autograd.grad(loss, (hidden, weight))))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-6)
    assert (answers[0][0] > 0) == (ignored < 12)


def test_the_numbers_of_the_step_are_what_the_loss_uses() -> None:
    ramp = {"kind": "piecewise", "points": [[0, 1.0], [10, 2.0]]}
    objective = _objective({"kind": "forward_kl", "temperature": ramp})
    batch = _batch()
    hidden, weight = _student(batch)
    signals = {"teacher": _signal("hidden", len(hidden))}
    outputs, scales = Outputs(hidden=hidden, head=Head(weight)), {"forward_kl": 1.0}
    fixed = _objective({"kind": "forward_kl", "temperature": 2.0})
    for step, same in ((10, True), (0, False)):
        loss, _ = objective.loss(
            outputs, batch, signals, objective.numbers(Progress(step, 10), {}), scales
        )
        other, _ = fixed.loss(outputs, batch, signals, fixed.numbers(Progress(0, 10), {}), scales)
        assert torch.equal(loss, other) == same


@dataclass(frozen=True)
class MeanHidden:
    """A term of another kind: squares of hidden states, with a number of its own."""

    name: str = "mean_hidden"

    def asks(self) -> tuple[Ask, ...]:
        return (Ask("assistant"),)

    def numbers(self) -> Mapping[str, Number]:
        return {"weight": 1.0, "power": 2.0}

    def count(self, batch: Batch, signals: Signals) -> Tensor:
        return torch.tensor(1.0)

    def total(
        self, outputs: Outputs, batch: Batch, signals: Signals, numbers: Mapping[str, float]
    ) -> Tensor:
        assert outputs.hidden is not None
        return (outputs.hidden ** numbers["power"]).sum()


def test_a_term_of_another_kind_stands_beside_the_vocabulary_terms() -> None:
    plain = _objective({"kind": "cross_entropy"})
    objective = Objective(plain.vocabulary, (MeanHidden(),))
    batch = _batch()
    hidden, weight = _student(batch)
    outputs = Outputs(hidden=hidden, head=Head(weight))
    assert objective.asks() == (Ask("assistant"),)
    assert objective.numbers(Progress(0, 1), {})["mean_hidden.power"] == 2.0
    assert float(objective.counts(batch, {})["mean_hidden"]) == 1.0
    scales = {"cross_entropy": 1.0, "mean_hidden": 0.25}
    numbers = objective.numbers(Progress(0, 1), {})
    both, totals = objective.loss(outputs, batch, {}, numbers, scales)
    alone, _ = plain.loss(outputs, batch, {}, numbers, scales)
    torch.testing.assert_close(both, alone + 0.25 * hidden.square().sum())
    torch.testing.assert_close(totals["mean_hidden"], hidden.detach().square().sum())
    (gradient,) = torch.autograd.grad(both - alone, hidden)
    torch.testing.assert_close(gradient, 0.5 * hidden.detach())


def test_two_terms_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct names"):
        Objective((), (MeanHidden(), MeanHidden()))


def test_the_loss_works_inside_a_modules_forward_and_reaches_a_tied_weight() -> None:
    batch, objective = _batch(), _objective({"kind": "cross_entropy"})

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(VOCABULARY, WIDTH)

        def forward(self) -> Tensor:
            hidden = self.embedding(batch.kept_targets)
            outputs = Outputs(hidden=hidden, head=Head(self.embedding.weight))
            return objective.loss(outputs, batch, {}, {}, {"cross_entropy": 1.0})[0]

    module = Tied()
    module().backward()
    weight = module.embedding.weight
    logits = weight[batch.kept_targets] @ weight.t()
    want = torch.nn.functional.cross_entropy(logits, batch.kept_targets, reduction="sum")
    (expected,) = torch.autograd.grad(want, weight)
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-5)


def test_outputs_with_nothing_in_them_are_refused() -> None:
    with pytest.raises(ValueError, match=r"neither \(hidden, head\) nor logits"):
        _objective({"kind": "cross_entropy"}).loss(
            Outputs(), _batch(), {}, {}, {"cross_entropy": 1.0}
        )


@pytest.mark.parametrize("head", [True, False])
def test_a_signal_of_other_positions_is_refused(head: bool) -> None:
    batch = _batch()
    hidden, weight = _student(batch)
    objective = _objective({"kind": "forward_kl"})
    logits = hidden @ weight.t()
    outputs = Outputs(hidden=hidden, head=Head(weight)) if head else Outputs(logits=logits)
    with pytest.raises(ValueError, match=r"signal of 'teacher' covers 5 positions.* 8"):
        objective.loss(
            outputs,
            batch,
            {"teacher": _signal("dense", 5)},
            objective.numbers(Progress(0, 1), {}),
            {"forward_kl": 1.0},
        )
