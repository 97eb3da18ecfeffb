"""Diagnostics of whole jobs: every kind, on one rank and on two, and without a trace."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import digits
import pytest
import tiny

from orchestrator.events import Evaluated, Event
from orchestrator.run_folder import RunFolder
from orchestrator.session import Session
from orchestrator.spec import JobSpec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

STEPS = 4
ALL: list[dict[str, Any]] = [
    {"kind": "gradient_noise", "batches": 6, "every_steps": 2},
    {"kind": "gradient_norm_by_layer", "batches": 4},
    {"kind": "omega", "lam": 0.7},
    {"kind": "fidelity", "prompts": 5, "prompt_tokens": 8, "tokens": 6},
    {"kind": "precision_recall", "prompts": 5, "prompt_tokens": 8, "tokens": 6},
]


class House:
    """One session of a number of workers."""

    def __init__(self, root: Path, workers: int) -> None:
        self.root, self.workers, self.played = root, workers, 0
        self.events: list[Event] = []
        self.session: Session | None = None

    def job(self, diagnostics: list[dict[str, Any]], **training: Any) -> JobSpec:
        """A job of a few steps with rows of one sample each."""
        return tiny.job(
            self.root / "teacher",
            self.root / "text",
            self.root / f"runs-{self.workers}",
            roles={"teacher": {"path": str(self.root / "teacher"), "resources": {"cpus": 0.25}}},
            data={
                "sources": [{"kind": "text", "path": str(self.root / "text")}],
                "context": 64,
                "held_out": 0.2,
                "packing": False,
                "long_documents": "truncate",
            },
            objective={"terms": [{"kind": "cross_entropy"}, {"kind": "forward_kl"}]},
            training={
                "steps": STEPS,
                "global_batch": 4,
                "micro_batch": 2,
                "workers": self.workers,
                "resources": {"cpus": 0.25},
                "optimizer": {"lr": 3e-3, "eps": 1e-3},
                "checkpoint": {"every_steps": STEPS},
                **training,
            },
            evaluation={
                "before": False,
                "rows": 8,
                "generate": None,
                "diagnostics": diagnostics,
            },
        )

    def play(self, spec: JobSpec) -> dict[str, Any]:
        """Run a job; its summary."""
        self.played += 1
        self.events.clear()
        folder = RunFolder.at(spec.storage, f"run-{self.played}")
        folder.write([spec], 0, [folder.run_id])
        assert self.session is not None
        summary = self.session.run_job(spec, folder, {}, resume=False)
        return summary | {"folder": folder.local}


def _house(root: Path, workers: int) -> Iterator[House]:
    house = House(root, workers)
    with Session([house.job([])], house.events.append) as session:
        house.session = session
        yield house


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("diagnostics")
    tiny.save_teacher(found / "teacher")
    tiny.save_text(found / "text", documents=60)
    return found


@pytest.fixture(scope="module")
def alone(root: Path) -> Iterator[dict[str, Any]]:
    """Summaries of jobs on one rank, and what was heard of the first."""
    for house in _house(root, 1):
        found: dict[str, Any] = {"all": house.play(house.job(ALL))}
        found["heard"] = [event for event in house.events if isinstance(event, Evaluated)]
        found["none"] = house.play(house.job([]))
        spec = digits.job(
            name="digits",
            data=digits.data(400),
            roles={"teacher": {**digits.student(depth=1), "resources": {"cpus": 0.25}}},
            objective={"terms": [{"kind": "forward_kl"}]},
            evaluation={"before": False, "rows": 64, "diagnostics": CLASSIFIERS},
            storage=str(root / "digits"),
            cache={"enabled": False},
        )
        found["digits"] = house.play(spec)
        yield found


CLASSIFIERS = [{"kind": "gradient_noise", "batches": 4}, {"kind": "omega"}, {"kind": "fidelity"}]


@pytest.fixture(scope="module")
def beside(root: Path, alone: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same on two ranks, after the first session has ended; and at the other stages."""
    for house in _house(root, 2):
        gradients = [{**ALL[0], "every_steps": 1}, ALL[1]]
        yield {
            "all": house.play(house.job(ALL)),
            "zero 2": house.play(house.job(gradients, zero=2)),
            "zero 2, none": house.play(house.job([], zero=2)),
            "zero 3": house.play(house.job(ALL[2:], zero=3)),
        }


def test_every_kind_is_in_the_evaluation(alone: dict[str, Any]) -> None:
    found = alone["all"]["evaluation"]["diagnostics"]
    assert list(found) == [one["kind"] for one in ALL]
    assert found["gradient_noise"]["batches"] == 6
    assert found["gradient_noise"]["trace_data"] > 0
    assert {"model.layers.0", "model.embed_tokens", "model.norm"} <= set(
        found["gradient_norm_by_layer"]
    )
    assert sum(found["omega"]["all"]["histogram"]) == pytest.approx(1)
    assert 0 <= found["fidelity"]["bleu"] <= 1 and found["fidelity"]["prompts"] == 5
    evaluated = alone["all"]["evaluation"]
    assert found["fidelity"]["agreement"] == pytest.approx(evaluated["top1_agreement"])
    assert found["precision_recall"]["recall"] == pytest.approx(-evaluated["student"]["loss"])
    assert found["precision_recall"]["written_tokens"] <= 5 * 6


def test_what_is_due_in_between_is_told_in_between(alone: dict[str, Any]) -> None:
    steps = {event.step: list(event.evaluation.get("diagnostics", {})) for event in alone["heard"]}
    assert steps == {2: ["gradient_noise"], STEPS: [one["kind"] for one in ALL]}


def test_the_report_shows_them(alone: dict[str, Any]) -> None:
    page = (alone["all"]["folder"] / "report.html").read_text()
    for name in ("gradient_noise", "omega", "precision_recall", "trace mixture", "bleu"):
        assert name in page


def test_a_student_is_left_as_it_was(alone: dict[str, Any], beside: dict[str, Any]) -> None:
    assert alone["all"]["weights_sha256"] == alone["none"]["weights_sha256"]
    assert beside["zero 2"]["weights_sha256"] == beside["zero 2, none"]["weights_sha256"]


def test_two_ranks_find_what_one_finds(alone: dict[str, Any], beside: dict[str, Any]) -> None:
    from orchestrator.evaluation.diagnostics.report import metrics

    one = metrics(alone["all"]["evaluation"]["diagnostics"])
    two = metrics(beside["all"]["evaluation"]["diagnostics"])
    assert set(one) == set(two)
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=2e-3, abs=1e-4), name


def test_gradients_are_the_same_at_stage_2_as_at_stage_0(beside: dict[str, Any]) -> None:
    zero, two = (beside[name]["evaluation"]["diagnostics"] for name in ("all", "zero 2"))
    for kind in ("gradient_noise", "gradient_norm_by_layer"):
        assert two[kind] == pytest.approx(zero[kind], rel=1e-3, abs=1e-5)


def test_texts_and_positions_are_measured_at_stage_3(beside: dict[str, Any]) -> None:
    three = beside["zero 3"]["evaluation"]["diagnostics"]
    for kind, found in beside["all"]["evaluation"]["diagnostics"].items():
        if kind in ("fidelity", "precision_recall"):
            assert three[kind] == pytest.approx(found, rel=1e-3, abs=1e-4)
    assert three["omega"]["all"]["mean"] == pytest.approx(
        beside["all"]["evaluation"]["diagnostics"]["omega"]["all"]["mean"], rel=1e-3
    )


def test_classifiers_have_what_needs_no_text(alone: dict[str, Any]) -> None:
    found = alone["digits"]["evaluation"]["diagnostics"]
    assert list(found) == [one["kind"] for one in CLASSIFIERS]
    assert "bleu" not in found["fidelity"]
