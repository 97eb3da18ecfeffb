"""Stages that never train the head are refused; others are not."""

from typing import Any

import digits
import pytest

from orchestrator.errors import SpecError
from orchestrator.planner.stages import check_head
from orchestrator.spec import JobSpec

HINT = {"terms": [{"kind": "hidden_states", "layers": [{"student": "a", "role": "a"}]}]}
LABELS = {"terms": [{"kind": "cross_entropy"}]}


def jobs(*objectives: dict[str, Any], student: dict[str, Any] | None = None) -> list[JobSpec]:
    """Stages `s0`, `s1`, ... of these objectives."""
    role = {"teacher": {"import": digits.MLP, "task": "classifier"}}
    found = []
    for index, objective in enumerate(objectives):
        given = student or digits.student()
        if index:
            given = {"job": f"s{index - 1}", "task": "classifier"}
        found.append(digits.job(name=f"s{index}", student=given, objective=objective, roles=role))
    return found


@pytest.mark.parametrize("objectives", [(HINT, HINT), (HINT, HINT, HINT)])
def test_stages_of_layers_alone_are_refused(objectives: tuple[dict[str, Any], ...]) -> None:
    stages = jobs(*objectives)
    last = len(stages) - 1
    names = ", ".join(job.name for job in stages)
    with pytest.raises(SpecError, match=rf"learn layers alone.*\({names}\).*last stage"):
        check_head(stages, last, "")
    for index in range(last):
        check_head(stages, index, "")


@pytest.mark.parametrize("objectives", [(HINT, LABELS), (LABELS, HINT), (HINT,)])
def test_stages_that_train_it_and_single_jobs_are_not(
    objectives: tuple[dict[str, Any], ...],
) -> None:
    stages = jobs(*objectives)
    for index in range(len(stages)):
        check_head(stages, index, "")


def test_a_student_that_has_learned_before_is_not_fresh() -> None:
    stages = jobs(HINT, HINT, student={"path": "somewhere", "task": "classifier"})
    check_head(stages, 1, "")
