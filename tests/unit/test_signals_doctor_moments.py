"""Which numbers the doctor checks losses at: those of the first step and of the last."""

from typing import Any

import numpy as np
import pytest

from orchestrator.data import SampleStore
from orchestrator.data.tokenise import Sample
from orchestrator.signals_doctor.losses import moments
from orchestrator.spec import JobSpec

DOUBT = {"kind": "measure", "name": "doubt", "measure": "student_entropy"}
FOLLOW = {"kind": "follow", "quantity": "doubt", "between": [0.0, 1.0], "low": 3.0, "high": 2.0}


def _store(samples: int = 10) -> SampleStore:
    tokens, learned = np.arange(1, 6, dtype=np.int32), np.ones(5, dtype=bool)
    return SampleStore.of([Sample(f"s{i}", tokens, learned) for i in range(samples)], "v1")


def _temperatures(temperature: Any, training: dict[str, Any]) -> list[tuple[str, float]]:
    job = JobSpec.model_validate(
        {
            "name": "one",
            "student": {"architecture": {"model_type": "llama"}},
            "roles": {"teacher": {"path": "unused"}},
            "data": {"sources": [{"kind": "text", "path": "a.txt"}], "packing": False},
            "objective": {"terms": [{"kind": "forward_kl", "temperature": temperature}, DOUBT]},
            "training": {"global_batch": 4, "checkpoint": {"every_steps": 1}, **training},
        }
    )
    return [(moment.when, moment.temperature) for moment in moments(job, _store())]


@pytest.mark.parametrize("training", [{"steps": 4}, {"epochs": 4}])
def test_a_number_that_does_not_move_is_checked_once(training: dict[str, Any]) -> None:
    assert _temperatures(2.0, training) == [("", 2.0)]


def test_a_schedule_is_checked_at_the_first_step_and_the_last() -> None:
    ramp = {"kind": "linear", "start": 4.0, "end": 1.0}
    assert _temperatures(ramp, {"steps": 3}) == [("start", 4.0), ("end", 2.0)]
    assert _temperatures(ramp, {"epochs": 1}) == [("start", 4.0), ("end", 2.0)]
    by_epoch = {**ramp, "per": "epoch"}
    assert _temperatures(by_epoch, {"epochs": 3}) == [("start", 4.0), ("end", 2.0)]
    assert _temperatures(by_epoch, {"epochs": 1}) == [("", 4.0)]


def test_what_follows_a_measure_is_checked_at_its_extremes() -> None:
    assert _temperatures(FOLLOW, {"steps": 3}) == [("start", 2.0), ("end", 3.0)]
