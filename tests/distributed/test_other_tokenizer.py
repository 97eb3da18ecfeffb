"""Whole jobs with a teacher that reads other tokens than the student."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from other_tokenizer import save_other_teacher, save_renamed_teacher

from orchestrator.events import Event, StepDone, Warned
from orchestrator.run_folder import RunFolder
from orchestrator.session import Session
from orchestrator.spec import JobSpec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

TERMS = [{"kind": "cross_entropy", "weight": 0.5}, {"kind": "universal", "temperature": 2.0}]
STEPS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tokenizers")
    tiny.save_text(found / "text", 24)
    tiny.save_teacher(found / "plain")
    save_renamed_teacher(found / "renamed")
    save_other_teacher(found / "other")
    return found


def job(root: Path, roles: dict[str, str], **changes: Any) -> JobSpec:
    named = {
        name: {"path": str(root / folder), "resources": {"cpus": 0.25}}
        for name, folder in roles.items()
    }
    return tiny.job(
        root / "plain",
        root / "text",
        root / "runs",
        **{
            "roles": named,
            "objective": {"terms": TERMS},
            "training": {
                "steps": STEPS,
                "global_batch": 8,
                "micro_batch": 4,
                "resources": {"cpus": 0.25},
                "optimizer": {"lr": 3e-3, "eps": 1e-3},
                "checkpoint": {"every_steps": STEPS},
            },
            "cache": {"path": str(root / "cache"), "max_bytes": 1 << 26},
            **changes,
        },
    )


class Told:
    """What a session says, by kind."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.warnings: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.losses.append(event.metrics["loss/universal"])
        if isinstance(event, Warned):
            self.warnings.append(event.text)


@pytest.mark.slow
def test_jobs_with_another_tokenizer(root: Path):
    told = Told()

    def played(spec: JobSpec, name: str) -> tuple[dict[str, Any], list[float]]:
        told.losses, told.warnings = [], []
        folder = RunFolder.at(spec.storage, name)
        folder.write([spec], 0, [name])
        return session.run_job(spec, folder, {}, resume=False), told.losses

    plain = job(root, {"teacher": "plain"})
    with Session([plain], told) as session:
        _, expected = played(plain, "plain")
        # The same ids by a tokenizer that counts as another: paired position by position.
        summary, losses = played(job(root, {"teacher": "renamed"}), "renamed")
        assert losses == pytest.approx(expected, rel=1e-5)
        assert "kl" not in summary["evaluation"] and any("another" in w for w in told.warnings)

        other = job(root, {"teacher": "other"})
        summary, losses = played(other, "other")
        assert losses[-1] < losses[0]
        asked = summary["cache"]
        assert asked["misses"] > 0 and summary["evaluation"]["student"]["loss"] > 0
        summary, again = played(other, "again")
        assert again == losses and summary["cache"]["misses"] == 0

        # Beside a role of the student's own tokens, which is asked about every position.
        both = job(
            root,
            {"teacher": "other", "peer": "plain"},
            objective={"terms": [*TERMS, {"kind": "forward_kl", "role": "peer"}]},
        )
        summary, _ = played(both, "both")
        assert "kl" in summary["evaluation"]
        narrowed = job(
            root,
            {"teacher": "other"},
            objective={"terms": TERMS, "select": {"measure": "random", "share": 0.5, "group": 4}},
        )
        summary, some = played(narrowed, "narrowed")
        assert len(some) == STEPS and summary["cache"]["misses"] == 0
        found = session.label_job(other, "label", {})
        assert [part["computed"] for part in found["labelled"]] == [0]
