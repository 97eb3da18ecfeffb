"""The best state so far: which it is, and what a job may ask for."""

from typing import Any

import digits
import pytest
from pydantic import ValidationError

from orchestrator.errors import SpecError
from orchestrator.spec import JobSpec
from orchestrator.spec.job import BestSpec
from orchestrator.students.best import Best, better

LOW, HIGH = BestSpec(), BestSpec(metric="student.accuracy", better="higher")


def seen(loss: float, accuracy: float) -> dict[str, Any]:
    return {"positions": 8, "kl": loss, "student": {"loss": loss, "accuracy": accuracy}}


def test_the_best_is_the_first_of_the_best() -> None:
    evaluations = [(2, seen(3.0, 0.1)), (4, seen(1.0, 0.9)), (6, seen(1.0, 0.9)),
                   (8, seen(2.0, 0.5))]  # fmt: skip
    for spec, wanted in ((LOW, Best(4, 1.0)), (HIGH, Best(4, 0.9))):
        best = None
        for step, evaluation in evaluations:
            best = better(spec, best, step, evaluation)
        assert best == wanted


def test_an_evaluation_where_the_number_was_not_due_changes_nothing() -> None:
    spec = BestSpec(metric="diagnostics.objective.total")
    assert better(spec, Best(3, 1.0), 5, seen(0.1, 1.0)) == Best(3, 1.0)


def test_a_number_that_evaluation_does_not_have_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"student\.lss.*student\.loss"):
        better(BestSpec(metric="student.lss"), None, 5, seen(0.1, 1.0))


def test_a_misspelt_number_without_a_part_is_refused_and_not_taken_for_one_not_due() -> None:
    spec = BestSpec(metric="kll")
    assert better(spec, None, 5, {"diagnostics": {"objective": {"total": 1.0}}}) is None
    with pytest.raises(SpecError, match=r"is kll.*kl"):
        better(spec, None, 5, seen(0.1, 1.0))


def test_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(SpecError, match="no finite number"):
        better(LOW, Best(3, 1.0), 5, seen(float("nan"), 1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluation": {"rows": 8}}, r"evaluation\.every_steps is absent"),
        (
            {"data": {**digits.data(), "held_out": 0.0}},
            r"needs held-out data, and data\.held_out, or that of each source, is 0",
        ),
        ({"best": {"metric": "diagnostics.objective.total"}}, r"no such diagnostic \(none\)"),
        (
            {
                "best": {"metric": "diagnostics.objective.total"},
                "evaluation": {"diagnostics": [{"kind": "objective"}]},
            },
            r"every_steps of diagnostic objective is absent",
        ),
    ],
)
def test_a_best_that_cannot_be_told_is_refused(change: dict[str, Any], message: str) -> None:
    raw = digits.raw_job(evaluation={"every_steps": 4}) | {
        key: value for key, value in change.items() if key != "best"
    }
    raw["training"]["checkpoint"] = {"every_steps": 4, "best": change.get("best", {})}
    with pytest.raises(ValidationError, match=message):
        JobSpec.model_validate(raw)
