"""Which samples are asked about, and how a set shrinks: worked by hand, and its laws."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from strategies.contract import IGNORED, Batch, DenseSignal, Outputs
from strategies.objective import build_objective
from strategies.samples import Book, Epoch, condensed, narrowed, random_scores, size_after
from strategies.specs import ObjectiveSpec
from strategies.specs.samples import CondenseSpec, SelectSpec


def classified(count: int) -> Batch:
    """A row a sample, samples 10, 11, ..."""
    index = torch.arange(10, 10 + count).unsqueeze(1)
    return Batch({}, torch.zeros(count, 1, dtype=torch.int64), index)


def text() -> Batch:
    """Two rows: samples 0 and 1 share the first, sample 2 has the second."""
    index = torch.tensor([[0, 0, 0, 1, 1, 1], [2, 2, 2, 2, -1, -1]])
    targets = torch.tensor([[5, 5, IGNORED, 5, 5, IGNORED], [5, 5, 5, IGNORED, IGNORED, IGNORED]])
    return Batch({}, targets, index)


@pytest.mark.parametrize(("share", "count"), [(0.1, 1), (0.3, 3), (0.31, 4), (1.0, 10)])
def test_the_true_top_share_is_chosen_rounded_up(share: float, count: int) -> None:
    batch, values = classified(10), torch.rand(10, generator=torch.Generator().manual_seed(1))
    spec = SelectSpec(measure="student_entropy", share=share, group=10)
    chosen = narrowed(spec, values, batch).mask.squeeze(1).nonzero().squeeze(1).tolist()
    assert sorted(chosen) == sorted(values.topk(count).indices.tolist())
    assert len(chosen) == math.ceil(round(share * 10, 9))


@pytest.mark.parametrize("measure", ["student_margin", "student_confidence"])
def test_of_sureness_the_small_values_are_chosen(measure) -> None:
    values = torch.tensor([0.9, 0.1, 0.5, 0.2])
    spec = SelectSpec(measure=measure, share=0.5, group=4)
    assert narrowed(spec, values, classified(4)).mask.squeeze(1).tolist() == [0, 1, 0, 1]


def test_each_group_of_rows_is_ranked_by_itself() -> None:
    values = torch.tensor([9.0, 8.0, 1.0, 2.0])
    spec = SelectSpec(share=0.5, group=2)
    assert narrowed(spec, values, classified(4)).mask.squeeze(1).tolist() == [1, 0, 0, 1]


def test_a_sample_of_many_positions_counts_with_their_mean_and_goes_whole() -> None:
    # By kept position: sample 0 has (1, 1), sample 1 has (0, 3), sample 2 has (1.2, 1.2, 1.2).
    values = torch.tensor([1.0, 1.0, 0.0, 3.0, 1.2, 1.2, 1.2])
    spec = SelectSpec(share=0.6, group=2)
    narrow = narrowed(spec, values, text())
    assert set(narrow.sample_index[narrow.mask].tolist()) == {1, 2}
    assert narrow.mask.sum() == 5


def test_random_scores_are_one_a_sample_and_change_with_the_step() -> None:
    batch = text()
    first, again, later = (random_scores(batch, step) for step in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, later)
    assert first[0] == first[1] and first[0] != first[2]


def logits(seed: int, rows: int) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)).double()


def loss_of(asked: Batch | None, signal_rows: list[int]) -> tuple[Tensor, Tensor, dict]:
    spec = {"terms": [{"kind": "cross_entropy", "weight": 0.5}, {"kind": "forward_kl"}]}
    objective = build_objective(ObjectiveSpec.model_validate(spec))
    student = logits(0, 5).requires_grad_()
    signals = {"teacher": DenseSignal(logits(1, 5)[signal_rows])}
    batch = classified(5)
    by_role = None if asked is None else {"teacher": asked}
    counts = objective.counts(batch, signals, by_role)
    scales = {"cross_entropy": 0.5, "forward_kl": 1.0}
    loss, totals = objective.loss(
        Outputs(logits=student), batch, signals, objective_numbers(objective), scales, by_role
    )
    loss.backward()
    assert student.grad is not None
    return student.grad, loss.detach(), {"counts": counts, "totals": totals}


def objective_numbers(objective) -> dict[str, float]:
    return {"cross_entropy.weight": 0.5, "forward_kl.weight": 1.0, "forward_kl.temperature": 1.0}


def test_choosing_everything_is_choosing_nothing() -> None:
    spec = SelectSpec(share=1.0, group=5)
    everything = narrowed(spec, torch.rand(5), classified(5))
    with_choice, without = loss_of(everything, [0, 1, 2, 3, 4]), loss_of(None, [0, 1, 2, 3, 4])
    torch.testing.assert_close(with_choice[0], without[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(with_choice[1], without[1], rtol=1e-12, atol=1e-14)
    assert with_choice[2]["counts"] == without[2]["counts"]


def test_terms_of_roles_see_the_chosen_and_terms_of_labels_all() -> None:
    values = torch.tensor([5.0, 1.0, 4.0, 1.0, 1.0])
    asked = narrowed(SelectSpec(share=0.4, group=5), values, classified(5))
    gradient, _, more = loss_of(asked, [0, 2])
    student, teacher = logits(0, 5), logits(1, 5)
    q, p = student.softmax(1), teacher.softmax(1)
    labels = torch.zeros(5, 6).double()
    labels[:, 0] = 1
    wanted = 0.5 * (q - labels)
    wanted[[0, 2]] += (q - p)[[0, 2]]
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)
    assert float(more["counts"]["forward_kl"]) == 2 and float(more["counts"]["cross_entropy"]) == 5


# --- between epochs ------------------------------------------------------------------------------


def epoch(number: int, members: np.ndarray, samples: int, value: np.ndarray) -> Epoch:
    return Epoch(number, members, samples, Book(value, np.ones(samples, np.int64)), str)


def test_the_set_follows_the_formula_and_never_falls_below_its_share() -> None:
    spec = CondenseSpec(kind="condense", every=2, keep=0.7, stages=3)
    sizes = [size_after(spec, 1000, epochs) for epochs in range(12)]
    assert sizes == [1000, 1000, 900, 900, 800, 800, 700, 700, 700, 700, 700, 700]


@pytest.mark.parametrize("samples", [3, 15, 45, 997])
def test_no_size_rounds_below_the_share(samples: int) -> None:
    spec = CondenseSpec(kind="condense", every=1, stages=6, keep=0.7)
    sizes = [size_after(spec, samples, epochs) for epochs in range(9)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == samples
    assert 0.7 * samples <= sizes[-1] < 0.7 * samples + 1


def test_the_kept_are_those_with_the_top_scores() -> None:
    spec = CondenseSpec(kind="condense", every=1, keep=0.5, stages=1)
    value = np.array([0.1, 0.9, 0.3, 0.8, 0.2, 0.7])
    change = condensed(spec, epoch(1, np.arange(6), 6, value))
    assert change.members.tolist() == [1, 3, 5] and not change.blends


def test_the_value_is_a_mean_over_visits_and_many_visits_count_a_little_more() -> None:
    spec = CondenseSpec(kind="condense", every=1, keep=0.5, stages=1, cost_power=0.5)
    book = Book(np.array([1.0, 4.0]), np.array([1, 4]))  # the same mean
    change = condensed(spec, Epoch(1, np.arange(2), 2, book, str))
    assert change.members.tolist() == [1]


def test_what_is_dropped_is_blended_into_the_lowest_that_stay() -> None:
    spec = CondenseSpec(kind="condense", every=1, keep=0.75, stages=1, mix=0.7)
    value = np.array([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    change = condensed(spec, epoch(1, np.arange(8), 8, value))
    assert change.members.tolist() == [0, 1, 2, 3, 4, 5]
    assert {mine: (b.other, b.share) for mine, b in (change.blends or {}).items()} == {
        4: (6, 1.0),
        5: (7, pytest.approx(0.7)),
    }


def test_a_set_that_has_its_last_size_stays() -> None:
    spec = CondenseSpec(kind="condense", every=1, keep=0.5, stages=1)
    members = np.array([1, 3, 5])
    assert condensed(spec, epoch(2, members, 6, np.zeros(6))).members is members


def test_every_visit_is_counted_once_with_the_samples_mean() -> None:
    book = Book.of(4)
    values = torch.tensor([1.0, 3.0, 0.0, 3.0, 1.0, 2.0, 3.0])
    book.add(values, text())
    book.add(values, text())
    assert book.visits.tolist() == [2, 2, 2, 0]
    assert book.value.tolist() == [4.0, 3.0, 4.0, 0.0]
