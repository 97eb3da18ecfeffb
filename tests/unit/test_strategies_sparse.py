"""Top-k teachers: the ladder, the bucket, vocabularies."""

import math

import pytest
import torch
from loss_oracle import topk_signal

from strategies.contract import TopKSignal
from strategies.divergences import forward_kl, reverse_kl
from strategies.sparse import ABSENT, as_dense, coarse_student, coarse_teacher, log_rest


def _signal(probabilities: list[float], k: int, ladder: tuple[float, ...]) -> TopKSignal:
    return topk_signal(torch.tensor([probabilities], dtype=torch.float64).log(), k, ladder)


EVEN = [0.25, 0.25, 0.25, 0.25]
SLOPING = [0.5, 0.2, 0.15, 0.1, 0.05]


def test_the_bucket_holds_what_the_kept_entries_leave() -> None:
    coarse = coarse_teacher(_signal(SLOPING, 2, (1.0,)), 1.0, student_width=5).exp()
    torch.testing.assert_close(coarse, torch.tensor([[0.5, 0.2, 0.3]]))


def test_the_students_bucket_is_the_sum_of_what_the_teacher_did_not_keep() -> None:
    logits = torch.tensor([SLOPING]).log()
    coarse = coarse_student(logits, torch.tensor([[3, 0]]), 1.0).softmax(1)
    torch.testing.assert_close(coarse, torch.tensor([[0.1, 0.5, 0.4]]))


def test_a_tiny_bucket_of_either_side_is_not_lost_to_rounding() -> None:
    logits = torch.tensor([[0.0, -60.0, -61.0]])
    expected = -60 + math.log1p(math.exp(-1))
    ours = coarse_student(logits, torch.tensor([[0]]), 1.0).log_softmax(1)[0, 1]
    theirs = coarse_teacher(topk_signal(logits, 1, (1.0,)), 1.0, 3)[0, 1]
    assert ours.item() == pytest.approx(expected) and theirs.item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_a_rung_of_the_ladder_is_exact(temperature: float) -> None:
    signal = _signal(SLOPING, 2, (1.0, 2.0, 4.0))
    roots = torch.tensor(SLOPING) ** (1 / temperature)
    expected = torch.tensor([[*roots[:2], roots[2:].sum()]]) / roots.sum()
    torch.testing.assert_close(coarse_teacher(signal, temperature, 5).exp(), expected)


def test_each_position_may_have_its_own_temperature() -> None:
    logits = torch.tensor([SLOPING, SLOPING[::-1], SLOPING]).log()
    signal = topk_signal(logits, 2, (1.0, 2.0, 4.0))
    wanted = torch.tensor([4.0, 1.0, 1.7])
    together = coarse_teacher(signal, wanted, 5)
    for row, temperature in enumerate(wanted.tolist()):
        alone = coarse_teacher(signal, temperature, 5)[row]
        torch.testing.assert_close(together[row], alone)


def test_between_rungs_the_bucket_is_linear_in_the_inverse_temperature() -> None:
    # Even probabilities: log 2 - log 4 / T, linear in 1 / T, so interpolation is exact.
    signal = _signal(EVEN, 2, (1.0, 2.5, 4.0))
    for temperature in (1.3, 2.0, 3.9):
        got = log_rest(signal, temperature).item()
        assert got == pytest.approx(math.log(2) - math.log(4) / temperature, abs=1e-6)


def test_between_rungs_the_bucket_errs_upwards() -> None:
    signal = _signal(SLOPING, 2, (1.0, 4.0))
    roots = torch.tensor(SLOPING) ** (1 / 2.0)
    exact = (roots[2:].sum() / roots.sum()).item()
    assert exact < coarse_teacher(signal, 2.0, 5)[0, -1].exp().item() < exact + 0.1


@pytest.mark.parametrize("temperature", [0.5, 4.5, torch.tensor([4.5])])
def test_a_temperature_outside_the_ladder_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature .* outside .* ladder \[1.0, 4.0\]"):
        log_rest(_signal(EVEN, 2, (1.0, 4.0)), temperature)


def test_a_temperature_rounded_to_float32_is_still_on_its_rung() -> None:
    signal = _signal(SLOPING, 2, (0.7,))
    rounded = coarse_teacher(signal, torch.tensor([0.7]), 5)
    torch.testing.assert_close(rounded, coarse_teacher(signal, 0.7, 5))


def test_kept_entries_that_the_wire_has_rounded_up_are_renormalised() -> None:
    signal = TopKSignal(
        torch.tensor([[0, 1]]),
        torch.tensor([[0.7, 0.4]]).log(),
        torch.tensor([[0.1]]).log(),
        (1.0,),
        5,
    )
    coarse = coarse_teacher(signal, 1.0, 5).exp()
    torch.testing.assert_close(coarse, torch.tensor([[7 / 12, 4 / 12, 1 / 12]]))


def test_kept_ids_beyond_the_student_are_dropped_and_the_rest_renormalised() -> None:
    signal = _signal(SLOPING[::-1], 2, (1.0,))  # keeps ids 4 and 3
    coarse = coarse_teacher(signal, 1.0, student_width=4).exp()
    torch.testing.assert_close(coarse, torch.tensor([[0.0, 0.4, 0.6]]))
    student = coarse_student(torch.zeros(1, 4), signal.ids, 1.0).softmax(1)
    torch.testing.assert_close(student, torch.tensor([[0.0, 0.25, 0.75]]))


def test_a_teacher_that_rules_the_rest_out_has_an_absent_bucket() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])
    coarse = coarse_teacher(topk_signal(logits, 2, (1.0, 2.0)), 1.5, 4)
    torch.testing.assert_close(coarse[0, :2].exp(), torch.tensor([0.5, 0.5]))
    assert coarse[0, 2] < ABSENT / 2


def test_a_student_no_wider_than_the_kept_entries_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps 3 entries of 5, but the student has only 3"):
        coarse_teacher(_signal(SLOPING, 3, (1.0,)), 1.0, student_width=3)


def test_only_a_signal_that_keeps_everything_is_dense() -> None:
    assert as_dense(_signal(SLOPING, 4, (1.0,))) is None
    whole = as_dense(_signal(SLOPING[::-1], 5, (1.0,)))
    assert whole is not None
    torch.testing.assert_close(whole.exp(), torch.tensor([SLOPING[::-1]]))


def test_a_bucket_below_float32_resolution_costs_nothing_at_equality() -> None:
    logits = torch.tensor([[0.0, -40.0, -41.0]])
    signal = topk_signal(logits, 1, (1.0,))
    coarse = coarse_student(logits, signal.ids, 1.0)
    assert abs(forward_kl(coarse, coarse_teacher(signal, 1.0, 3)).item()) < 1e-9
    assert abs(reverse_kl(coarse, coarse_teacher(signal, 1.0, 3)).item()) < 1e-9
