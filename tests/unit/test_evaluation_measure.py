"""Held-out numbers from sums."""

import math

import pytest

from orchestrator.evaluation.measure import Evaluation, add, calibration_error, perplexity

PART = {
    "nll": 6.0,
    "count": 4.0,
    "correct": 1.0,
    "calibration_count": [1.0, 3.0],
    "calibration_confidence": [0.4, 2.4],
    "calibration_correct": [1.0, 0.0],
}
COMPARED = {"teacher_nll": 4.0, "teacher_correct": 3.0, "agreement": 2.0, "kl": 1.0}


def test_sums_become_means_over_positions() -> None:
    found = Evaluation.from_sums({**PART, **COMPARED})
    assert found.positions == 4
    assert found.student_loss == 1.5
    assert found.student_perplexity == pytest.approx(math.exp(1.5))
    assert found.student_accuracy == 0.25
    assert found.teacher_loss == 1.0
    assert found.teacher_accuracy == 0.75
    assert found.top1_agreement == 0.5
    assert found.kl == 0.25


def test_calibration_error_is_the_weighted_gap_between_confidence_and_accuracy() -> None:
    # bin 1: |1 - 0.4| = 0.6 over one position; bin 2: |0 - 0.8| over three: (0.6 + 2.4) / 4
    assert Evaluation.from_sums(PART).calibration_error == pytest.approx(0.75)
    assert calibration_error([2.0], [1.5], [1.5]) == 0.0
    assert calibration_error([0.0], [0.0], [0.0]) == 0.0


def test_without_a_role_the_comparison_is_absent_not_zero() -> None:
    found = Evaluation.from_sums(PART)
    assert found.kl is None
    assert "held_out/kl" not in found.metrics()
    assert found.metrics()["held_out/student_loss"] == 1.5


def test_without_labels_likeness_alone_is_measured() -> None:
    found = Evaluation.from_sums({"count": 4.0, "agreement": 2.0, "kl": 1.0})
    assert found.to_dict() == {"positions": 4, "top1_agreement": 0.5, "kl": 0.25}
    named = {"positions": 4, "top1_agreement": 0.5, "kl": 0.25}
    assert found.metrics() == {f"held_out/{name}": value for name, value in named.items()}


def test_a_top_k_teacher_has_agreement_but_no_loss() -> None:
    known = {name: value for name, value in COMPARED.items() if name != "teacher_nll"}
    found = Evaluation.from_sums({**PART, **known})
    assert (found.teacher_loss, found.teacher_perplexity) == (None, None)
    assert (found.top1_agreement, found.kl, found.teacher_accuracy) == (0.5, 0.25, 0.75)


def test_adding_parts_in_any_order_equals_measuring_the_whole() -> None:
    other = {**PART, "nll": 1.0, "count": 1.0, "calibration_count": [0.0, 1.0]}
    both = add(add({}, PART), other)
    assert both == add(other, PART)
    assert both["nll"] == 7.0
    assert both["calibration_count"] == [1.0, 4.0]
    assert Evaluation.from_sums(both).student_loss == 7.0 / 5.0


def test_parts_that_measured_different_things_do_not_add() -> None:
    with pytest.raises(ValueError, match="different things"):
        add(PART, {**PART, **COMPARED})
    with pytest.raises(ValueError, match="calibration_count"):
        add(PART, {**PART, "calibration_count": [1.0]})


def test_nothing_measured_is_an_error_that_says_what_to_raise() -> None:
    with pytest.raises(ValueError, match=r"evaluation\.rows"):
        Evaluation.from_sums({**PART, "count": 0.0})
    with pytest.raises(ValueError, match="calibration_correct"):
        Evaluation.from_sums({k: v for k, v in PART.items() if k != "calibration_correct"})


def test_a_dict_names_the_teacher_only_when_one_was_compared() -> None:
    alone = Evaluation.from_sums(PART).to_dict()
    assert set(alone) == {"positions", "student"}
    compared = Evaluation.from_sums({**PART, **COMPARED})
    nested = compared.to_dict()
    assert nested["student"]["loss"] == compared.student_loss
    assert nested["teacher"]["perplexity"] == compared.teacher_perplexity
    assert (nested["top1_agreement"], nested["kl"]) == (compared.top1_agreement, compared.kl)


def test_perplexity_of_a_huge_loss_is_infinite_not_an_error() -> None:
    assert perplexity(1e6) == math.inf
