"""Top-k teachers: the ladder, the bucket, vocabularies."""

import math

import pytest
import torch

from strategies.contract import TopKSignal
from strategies.divergences import forward_kl, reverse_kl
from strategies.sparse import as_dense, coarse_student, coarse_teacher, log1mexp, log_partition


def _signal(probabilities: list[float], k: int, ladder: tuple[float, ...]) -> TopKSignal:
    logprobs = torch.tensor([probabilities], dtype=torch.float64).log()
    kept = logprobs.topk(k)
    log_z = torch.stack([torch.logsumexp(logprobs / t, 1) for t in ladder], 1)
    return TopKSignal(kept.indices, kept.values.float(), log_z.float(), ladder, len(probabilities))


EVEN = [0.25, 0.25, 0.25, 0.25]
SLOPING = [0.5, 0.2, 0.15, 0.1, 0.05]


def test_the_bucket_holds_what_the_kept_entries_leave() -> None:
    coarse = coarse_teacher(_signal(SLOPING, 2, (1.0,)), 1.0, student_width=5).exp()
    torch.testing.assert_close(coarse, torch.tensor([[0.5, 0.2, 0.3]]))


def test_the_students_bucket_is_the_sum_of_what_the_teacher_did_not_keep() -> None:
    logits = torch.tensor([SLOPING]).log()
    coarse = coarse_student(logits, torch.tensor([[3, 0]]), 1.0).softmax(1)
    torch.testing.assert_close(coarse, torch.tensor([[0.1, 0.5, 0.4]]))


def test_a_tiny_bucket_of_the_student_is_not_lost_to_rounding() -> None:
    logits = torch.tensor([[0.0, -60.0, -61.0]])
    rest = coarse_student(logits, torch.tensor([[0]]), 1.0).log_softmax(1)[0, 1].item()
    assert rest == pytest.approx(-60 + math.log1p(math.exp(-1)))


def test_a_rung_of_the_ladder_is_exact() -> None:
    signal = _signal(SLOPING, 2, (1.0, 2.0))
    roots = torch.tensor(SLOPING).sqrt()
    expected = torch.tensor([[*roots[:2], roots[2:].sum()]]) / roots.sum()
    torch.testing.assert_close(coarse_teacher(signal, 2.0, 5).exp(), expected)


def test_between_rungs_the_partition_is_linear_in_the_inverse_temperature() -> None:
    # Even probabilities: log z = (1 - 1 / T) ln 4, linear in 1 / T, so interpolation is exact.
    signal = _signal(EVEN, 2, (1.0, 4.0))
    for temperature in (1.3, 2.0, 3.9):
        got = log_partition(signal, temperature).item()
        assert got == pytest.approx((1 - 1 / temperature) * math.log(4), rel=1e-6)


def test_between_rungs_the_bucket_errs_upwards() -> None:
    signal = _signal(SLOPING, 2, (1.0, 4.0))
    roots = torch.tensor(SLOPING) ** (1 / 2.0)
    exact = (roots[2:].sum() / roots.sum()).item()
    assert exact < coarse_teacher(signal, 2.0, 5)[0, -1].exp().item() < exact + 0.1


def test_temperature_one_is_known_without_a_rung() -> None:
    signal = _signal(SLOPING, 2, (2.0, 4.0))
    assert log_partition(signal, 1.0).item() == 0.0
    inside = log_partition(signal, 1.5).item()
    assert 0.0 < inside < log_partition(signal, 2.0).item()


@pytest.mark.parametrize("temperature", [0.5, 4.5])
def test_a_temperature_outside_the_ladder_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature .* outside .* ladder \[1.0, 4.0\]"):
        log_partition(_signal(EVEN, 2, (1.0, 4.0)), temperature)


def test_kept_entries_that_sum_to_more_than_one_are_renormalised() -> None:
    signal = TopKSignal(
        torch.tensor([[0, 1]]),
        torch.tensor([[0.7, 0.4]]).log(),
        torch.zeros(1, 1),
        (1.0,),
        5,
    )
    coarse = coarse_teacher(signal, 1.0, 5).exp()
    torch.testing.assert_close(coarse, torch.tensor([[7 / 11, 4 / 11, 0.0]]))
    assert coarse[0, 2] > 0  # so that a divergence from the student's side is finite


def test_kept_ids_beyond_the_student_are_dropped_and_the_rest_renormalised() -> None:
    signal = _signal(SLOPING[::-1], 2, (1.0,))  # keeps ids 4 and 3
    coarse = coarse_teacher(signal, 1.0, student_width=4).exp()
    torch.testing.assert_close(coarse, torch.tensor([[0.0, 0.4, 0.6]]))
    student = coarse_student(torch.zeros(1, 4), signal.ids, 1.0).softmax(1)
    torch.testing.assert_close(student, torch.tensor([[0.0, 0.25, 0.75]]))


def test_a_student_no_wider_than_the_kept_entries_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps 3 entries of 5, but the student has only 3"):
        coarse_teacher(_signal(SLOPING, 3, (1.0,)), 1.0, student_width=3)


def test_only_a_signal_that_keeps_everything_is_dense() -> None:
    assert as_dense(_signal(SLOPING, 4, (1.0,))) is None
    whole = as_dense(_signal(SLOPING[::-1], 5, (1.0,)))
    assert whole is not None
    torch.testing.assert_close(whole.exp(), torch.tensor([SLOPING[::-1]]))


def test_log1mexp_is_accurate_at_both_ends() -> None:
    got = log1mexp(torch.tensor([-1e-6, -math.log(2), -40.0], dtype=torch.float32))
    assert got.tolist() == pytest.approx([math.log(1e-6), math.log(0.5), -math.exp(-40)], rel=1e-6)


def test_a_bucket_below_float32_resolution_costs_almost_nothing_at_equality() -> None:
    logits = torch.tensor([[0.0, -40.0, -41.0]])
    signal = TopKSignal(torch.tensor([[0]]), torch.zeros(1, 1), torch.zeros(1, 1), (1.0,), 3)
    coarse = coarse_student(logits, signal.ids, 1.0)
    assert 0 <= forward_kl(coarse, coarse_teacher(signal, 1.0, 3)).item() < 1e-5
    assert 0 <= reverse_kl(coarse, coarse_teacher(signal, 1.0, 3)).item() < 1e-5
