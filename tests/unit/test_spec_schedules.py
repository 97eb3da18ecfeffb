"""Schedules in job files: what a job allows them, and what its refusals say."""

from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.errors import SpecError
from orchestrator.spec import JobSpec
from orchestrator.spec.load import validate_jobs

ENTROPY = {"kind": "measure", "name": "doubt", "measure": "student_entropy"}
FOLLOW = {"kind": "follow", "quantity": "doubt", "between": [0.0, 1.0], "low": 1.0, "high": 3.0}


def _job(*terms: dict[str, Any], **changes: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "one",
            "student": {"architecture": {"model_type": "llama"}},
            "roles": {"teacher": {"path": "unused", **changes.pop("teacher", {})}},
            "data": {"sources": [{"kind": "text", "path": "a.txt"}]},
            "objective": {"terms": list(terms)},
            "training": {"steps": 200},
            **changes,
        }
    )


RAMP = {"kind": "linear", "start": 0.0, "end": 1.0, "per": "epoch"}
STAIRS = {"kind": "step", "start": 4, "factor": 0.5, "every": 1, "floor": 1, "per": "epoch"}
EPOCHS = {"epochs": 3, "checkpoint": {"every_steps": 10}}


@pytest.mark.parametrize(
    ("term", "field"),
    [
        ({"kind": "cross_entropy", "weight": RAMP}, "weight"),
        (
            {"kind": "forward_kl", "target": [{"kind": "towards_student", "share": RAMP}]},
            r"target\.0\.share",
        ),
        (
            {
                "kind": "forward_kl",
                "temperature": STAIRS,
            },
            "temperature",
        ),
    ],
)
def test_epochs_are_counted_in_jobs_of_epochs_only(term: dict[str, Any], field: str) -> None:
    message = rf"objective\.terms\.0\.{field}\.per: is epoch.*200.*Give training\.epochs"
    with pytest.raises(ValidationError, match=message):
        _job(term)
    assert _job(term, training=EPOCHS).training.epochs == 3


def test_a_schedule_is_the_same_after_the_job_was_written_and_read() -> None:
    follow = {**FOLLOW, "memory": 0.5}
    job = _job(
        {"kind": "forward_kl", "temperature": {"kind": "polynomial", "start": 4.0, "end": 1.0}},
        {"kind": "cross_entropy", "weight": follow},
        {
            "kind": "reverse_kl",
            "target": [{"kind": "towards_student", "share": {"kind": "taid", "end": 0.9}}],
        },
        ENTROPY,
    )
    assert JobSpec.model_validate(job.model_dump(mode="json", by_alias=True)) == job


def test_a_ladder_must_hold_all_that_an_adaptive_temperature_may_be() -> None:
    terms = ({"kind": "forward_kl", "temperature": FOLLOW}, ENTROPY)
    narrow = {"encoding": {"kind": "topk", "k": 8, "temperatures": [1.0, 1.5, 2.0]}}
    with pytest.raises(ValidationError, match="do not cover temperature 3"):
        _job(*terms, teacher=narrow)
    wide = {"encoding": {"kind": "topk", "k": 8, "temperatures": [1.0, 1.5, 2.0, 3.0]}}
    assert _job(*terms, teacher=wide)


def test_a_measure_of_a_role_needs_all_its_entries() -> None:
    topk = {"encoding": {"kind": "topk", "k": 8}}
    gap = {"kind": "measure", "measure": "gap"}
    with pytest.raises(ValidationError, match=r"roles\.teacher\.encoding\.kind.*full, hidden"):
        _job({"kind": "cross_entropy"}, gap, teacher=topk)
    assert _job({"kind": "cross_entropy"}, gap).used_roles == ("teacher",)
    assert _job({"kind": "cross_entropy"}, ENTROPY, teacher=topk).used_roles == ()


def test_a_measure_of_a_role_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"objective\.terms\.1\.role.*'assistant'"):
        _job({"kind": "cross_entropy"}, {"kind": "measure", "measure": "gap", "role": "assistant"})


@pytest.mark.parametrize(
    ("lr", "words"),
    [
        ({"kind": "piecewise", "points": [[0, 0.1], [9, 0.0]]}, r"from 0 to 0\.1, outside \(0"),
        ({"kind": "taid"}, r"optimizer\.lr\.kind: is taid.*counts steps"),
        ({**RAMP, "start": 0.1}, r"optimizer\.lr\.per: is epoch.*200"),
        ({"kind": "linaer", "start": 1, "end": 2}, "unknown kind 'linaer'.*'linear'"),
        (-1.0, r"is -1\.0.*greater than 0"),
    ],
)
def test_a_learning_rate_that_moves_is_above_0_and_counts_steps(lr: Any, words: str) -> None:
    raw = _job({"kind": "cross_entropy"}).model_dump(mode="json", by_alias=True)
    raw["training"]["optimizer"]["lr"] = lr
    with pytest.raises(SpecError, match=words):
        validate_jobs([raw])
