"""Small studies for tests: a teacher and its student on digits, as plain data."""

from typing import Any

import digits

from orchestrator.study.load import study_of
from orchestrator.study.plan import plan_study
from orchestrator.study.spec import StudySpec

CE = [{"kind": "cross_entropy"}]
KD = [{"kind": "forward_kl", "temperature": 4.0}]


def raw_study(**changes: Any) -> dict[str, Any]:
    """Two noise levels, cross entropy against distillation, two seeds; `changes` replace parts."""
    teacher = {"job": "teacher", "task": "classifier", "resources": {"cpus": 0.5}}
    return {
        "name": "small",
        "jobs": [
            digits.raw_job("teacher"),
            digits.raw_job(
                "learner",
                student=digits.student(width=16),
                roles={"teacher": teacher},
                objective={"terms": CE},
            ),
        ],
        "vary": {
            "noise": {"0": {}, "40": {"data.corrupt.label_noise": 0.4}},
            "method": {"ce": {}, "kd": {"learner": {"objective.terms": KD}}},
        },
        "seeds": [0, 1],
        "metrics": [{"path": "student.accuracy", "name": "accuracy"}],
        "compare": {"axis": "method", "baseline": "ce"},
        **changes,
    }


def study(**changes: Any) -> StudySpec:
    """The same, validated."""
    return study_of(raw_study(**changes))


def measured(spec: StudySpec, **by_method: dict[int, float]) -> dict[str, dict[str, Any]]:
    """Summaries by key: each learner's accuracy by method and seed, the same at every noise."""
    plan = plan_study(spec)
    found: dict[str, dict[str, Any]] = {}
    for cell in plan.cells:
        for key in cell.jobs.values():
            found.setdefault(key, {"evaluation": {}})
        value = by_method[cell.arms["method"]][cell.seed]
        found[cell.jobs["learner"]] = {"evaluation": {"student": {"accuracy": value}}}
    return found
