"""Jobs with a role's weights beside the student: stopped and resumed, on two ranks, of language."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import digits
import pytest
import tiny
from houses import Player

from orchestrator.events import Event, StepDone
from orchestrator.run_folder import RunFolder
from orchestrator.session import Session
from orchestrator.spec import JobSpec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

STEPS, LONG = 10, 100
"""Of a job; of one that is stopped, which must not end before it hears of it."""
RECIPES: dict[str, dict[str, Any]] = {
    "role_gradient": {"kind": "modified_gradient", "role_share": 0.5, "unbiased": True},
    "blockwise_logits": {"kind": "blockwise_logits", "layers": {"stages.1": "stages.1"}},
}
"""By the term whose loss is looked at."""
ROLES = {
    # names and shapes of the student's and more, and other weights from its second block on
    "role_gradient": digits.student(width=16, depth=3, activation="tanh"),
    "blockwise_logits": digits.student(width=24, depth=2),
}


@dataclass
class House(Player):
    """One session of a number of workers."""

    def job(self, term: str, zero: int, steps: int = STEPS, every: int = STEPS) -> JobSpec:
        """A student that learns labels, and from an untrained role beside it."""
        data = digits.data()
        data["sources"][0]["format"]["shape"] = [64]
        role = {**ROLES[term], "resources": {"cpus": 0.25}}
        diagnostics = [{"kind": "modified_gradient"}] if term == "role_gradient" else []
        return digits.job(
            student=digits.student(width=16, depth=2),
            roles={"teacher": role},
            data=data,
            objective={"recipe": RECIPES[term]},
            training={
                "steps": steps,
                "global_batch": 32,
                "micro_batch": 8,
                "workers": self.workers,
                "zero": zero,
                "resources": {"cpus": 0.25},
                "optimizer": {"lr": 1e-2, "eps": 1e-3},
                "checkpoint": {"every_steps": every},
            },
            evaluation={"before": False, "rows": 64, "diagnostics": diagnostics},
            cache={"path": str(self.root / "cache")},
            storage=str(self.root / "runs"),
        )


def _house(root: Path, workers: int) -> Iterator[House]:
    house = House(root, workers)
    with Session([house.job("role_gradient", 0)], lambda event: house.hear(event)) as session:
        house.session = session
        yield house


Played = tuple[dict[str, Any], dict[int, dict[str, float]]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Played]]:
    """Played on one rank, by term and how."""
    for house in _house(tmp_path_factory.mktemp("alone"), 1):
        found: dict[tuple[str, str], Played] = {}
        for term in RECIPES:
            found[term, "whole"] = house.play(house.job(term, 0))
            found[term, "long"] = house.play(house.job(term, 0, LONG, LONG))
            found[term, "resumed"] = house.play(house.job(term, 0, LONG, every=3), stop_after=4)
        yield found


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    yield from _house(tmp_path_factory.mktemp("beside"), 2)


@pytest.mark.parametrize("term", RECIPES)
def test_a_student_learns_and_asks_nobody(alone: Any, term: str) -> None:
    summary, metrics = alone[term, "whole"]
    losses = [metrics[step][f"loss/{term}"] for step in sorted(metrics)]
    assert all(math.isfinite(loss) for loss in losses) and any(abs(loss) > 1e-4 for loss in losses)
    nlls = [metrics[step]["loss/cross_entropy"] for step in sorted(metrics)]
    assert sum(nlls[-3:]) < sum(nlls[:3])
    if term == "blockwise_logits":
        assert sum(losses[-3:]) < sum(losses[:3])
    assert summary["pool"]["samples"] == {"asked": 0, "delivered": 0, "consumed": 0}
    assert summary["evaluation"]["kl"] > 0  # held-out rows are asked about as ever


def test_the_diagnostic_says_how_near_the_modified_gradient_comes(alone: Any) -> None:
    found = alone["role_gradient", "whole"][0]["evaluation"]["diagnostics"]["modified_gradient"]
    assert found["batches"] == 16 and found["lam"] == 0.7
    assert -1 <= found["cosine"] <= 1 and -1 <= found["cosine_of_means"] <= 1
    assert found["norm_true"] > 0 and found["norm_modified"] > 0 and found["distance"] > 0


@pytest.mark.parametrize("term", RECIPES)
def test_a_job_that_was_stopped_ends_with_the_weights_of_one_that_was_not(
    alone: Any, term: str
) -> None:
    whole, resumed = alone[term, "long"][0], alone[term, "resumed"][0]
    assert resumed["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.parametrize(
    ("term", "zero"),
    [("role_gradient", 1), ("role_gradient", 2), ("blockwise_logits", 2), ("blockwise_logits", 3)],
)
def test_two_ranks_learn_what_one_learns(alone: Any, beside: House, term: str, zero: int) -> None:
    _, metrics = beside.play(beside.job(term, zero))
    _, wanted = alone[term, "whole"]
    for name in ("loss/total", f"loss/{term}", "train/gradient_norm"):
        got = [metrics[step][name] for step in sorted(metrics)]
        expected = [wanted[step][name] for step in sorted(wanted)]
        assert got == pytest.approx(expected, rel=1e-3, abs=2e-5), name
        assert got[0] == pytest.approx(expected[0], rel=1e-4, abs=1e-6), name


def test_a_language_model_in_bfloat16_has_its_role_beside_it(tmp_path: Path) -> None:
    teacher = tiny.save_teacher(tmp_path / "teacher", width=48)
    layers = [{"student": "model.layers.*", "role": "model.layers.*"}]
    spec = tiny.job(
        teacher,
        tiny.save_text(tmp_path / "text"),
        tmp_path / "runs",
        student={"architecture": tiny.architecture(48, 2), "tokenizer": str(tiny.TOKENIZER)},
        roles={"teacher": {"path": str(teacher), "resources": {"cpus": 0.25}}},
        objective={
            "terms": [
                {"kind": "cross_entropy"},
                {"kind": "role_gradient", "weight": 0.3},
                {"kind": "blockwise_logits", "layers": layers, "temperature": 2.0},
            ]
        },
        training={
            "steps": 6,
            "global_batch": 4,
            "micro_batch": 2,
            "zero": 2,
            "precision": "bf16",
            "resources": {"cpus": 0.25},
            "optimizer": {"lr": 3e-3},
            "checkpoint": {"every_steps": 6},
        },
    )
    metrics: list[dict[str, float]] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            metrics.append(dict(event.metrics))

    with Session([spec], listen) as session:
        folder = RunFolder.at(spec.storage, "run-1")
        folder.write([spec], 0, [folder.run_id])
        summary = session.run_job(spec, folder, {}, resume=False)
    assert summary["status"] == "done" and len(metrics) == 6
    for name in ("role_gradient", "blockwise_logits"):
        losses = [found[f"loss/{name}"] for found in metrics]
        assert all(math.isfinite(loss) and loss != 0 for loss in losses)
