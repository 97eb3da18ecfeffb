"""Jobs that learn from a role's gradients: stopped and resumed, on two ranks, from the cache."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import digits
import pytest
from houses import Player

from orchestrator.session import Session
from orchestrator.spec import JobSpec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

STEPS, LONG = 12, 100
"""Of a job; of one that is stopped, which must not end before it hears of it."""
RECIPE = {"kind": "gradient_kd", "layers": {"stages.0": "stages.0"}}


@dataclass
class House(Player):
    """One session of a number of workers."""

    zero: int

    def job(self, steps: int = STEPS, every: int = STEPS) -> JobSpec:
        """A student that learns labels, logits and gradients of an untrained role."""
        data = digits.data()
        data["sources"][0]["format"]["shape"] = [64]
        role = {**digits.student(width=16, depth=1), "resources": {"cpus": 0.25}}
        return digits.job(
            student=digits.student(width=16, depth=0),
            roles={"teacher": role},
            data=data,
            objective={"recipe": RECIPE},
            training={
                "steps": steps,
                "global_batch": 32,
                "micro_batch": 8,
                "workers": self.workers,
                "zero": self.zero,
                "resources": {"cpus": 0.25},
                "optimizer": {"lr": 1e-2, "eps": 1e-3},
                "checkpoint": {"every_steps": every},
            },
            evaluation={
                "before": False,
                "rows": 64,
                "diagnostics": [{"kind": "input_gradients"}, {"kind": "objective"}],
            },
            cache={"path": str(self.root / f"cache-{self.workers}")},
            storage=str(self.root / f"runs-{self.workers}"),
        )


def _house(root: Path, workers: int, zero: int) -> Iterator[House]:
    house = House(root, workers, zero)
    with Session([house.job()], lambda event: house.hear(event)) as session:
        house.session = session
        yield house


Played = dict[str, tuple[dict[str, Any], dict[int, dict[str, float]]]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    for house in _house(tmp_path_factory.mktemp("alone"), 1, 0):
        whole = house.play(house.job())
        again = house.play(house.job())
        long = house.play(house.job(LONG, LONG))
        resumed = house.play(house.job(LONG, every=3), stop_after=4)
        yield {"whole": whole, "again": again, "long": long, "resumed": resumed}


def test_the_student_turns_to_where_the_role_looks(alone: Played) -> None:
    summary, metrics = alone["whole"]
    for term in ("by_input", "by_layers"):
        ways = [metrics[step][f"loss/{term}"] for step in sorted(metrics)]
        assert all(0 < way <= 4 for way in ways) and sum(ways[-3:]) < sum(ways[:3])
    found = summary["evaluation"]["diagnostics"]
    assert found["input_gradients"]["places"] == 64
    assert -1 <= found["input_gradients"]["cosine"] <= 1
    assert found["objective"]["by_input"] == pytest.approx(
        2 - 2 * found["input_gradients"]["cosine"], rel=1e-4
    )


def test_gradients_are_asked_once_and_then_read(alone: Played) -> None:
    first, second = alone["whole"][0], alone["again"][0]
    samples = first["pool"]["samples"]
    assert samples["asked"] == samples["consumed"] == 2 * STEPS * 32  # logits and gradients
    assert first["cache"]["misses"] > 0 and second["cache"]["misses"] == 0
    assert second["weights_sha256"] == first["weights_sha256"]


def test_a_job_that_was_stopped_ends_with_the_weights_of_one_that_was_not(alone: Played) -> None:
    assert alone["resumed"][0]["weights_sha256"] == alone["long"][0]["weights_sha256"]


def test_two_ranks_under_zero_2_learn_what_one_learns(
    alone: Played, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for house in _house(tmp_path_factory.mktemp("beside"), 2, 2):
        _, metrics = house.play(house.job())
    losses = [metrics[step]["loss/total"] for step in sorted(metrics)]
    wanted = [alone["whole"][1][step]["loss/total"] for step in sorted(metrics)]
    assert losses == pytest.approx(wanted, rel=2e-4)
    assert losses[0] == pytest.approx(wanted[0], rel=1e-5)
