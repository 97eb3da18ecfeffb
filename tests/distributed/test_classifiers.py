"""Whole jobs of classifiers: a list of two on digits, its cache, its ranks; a text classifier."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import digits
import numpy as np
import pytest
import tiny
import torch
from sklearn.datasets import load_digits

from orchestrator.errors import SpecError
from orchestrator.events import Event, StepDone
from orchestrator.models.exported import Export
from orchestrator.models.forward import classify
from orchestrator.models.load import load_model
from orchestrator.run_folder import RunFolder
from orchestrator.session import Session
from orchestrator.spec import JobSpec
from orchestrator.spec.models import ModelSpec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@dataclass
class House:
    """One Ray session for the whole file, and the exports of what ran in it."""

    root: Path
    session: Session | None = None
    exports: dict[str, Export] = field(default_factory=dict)
    heard: list[Event] = field(default_factory=list)
    played: int = 0

    def job(self, name: str, **changes: Any) -> JobSpec:
        cache = {"path": str(self.root / "cache")}
        return digits.job(
            name=name, **{"cache": cache, "storage": str(self.root / "runs"), **changes}
        )

    def student_job(self, name: str, **changes: Any) -> JobSpec:
        terms = [
            {"kind": "cross_entropy", "weight": 0.5},
            {"kind": "forward_kl", "temperature": 4.0, "weight": 0.5},
        ]
        teacher = {"job": "teacher", "task": "classifier", "resources": {"cpus": 0.5}}
        return self.job(
            name,
            **{
                "student": digits.student(width=16, depth=0),
                "roles": {"teacher": teacher},
                "objective": {"terms": terms},
                **changes,
            },
        )

    def play(self, spec: JobSpec) -> dict[str, Any]:
        self.played += 1
        self.heard.clear()
        folder = RunFolder.at(spec.storage, f"run-{self.played}")
        folder.write([spec], 0, [folder.run_id])
        assert self.session is not None
        summary = self.session.run_job(spec, folder, self.exports, resume=False)
        self.exports[spec.name] = Export(f"{folder.uri}/export", spec.student)
        return summary

    def losses(self, term: str) -> list[float]:
        return [e.metrics[f"loss/{term}"] for e in self.heard if isinstance(e, StepDone)]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    found = House(tmp_path_factory.mktemp("house"))
    with Session([found.job("teacher")], found.heard.append) as session:
        found.session = session
        found.play(found.job("teacher", student=digits.student(width=64)))
        yield found


def test_a_student_of_labels_and_teacher_reads_digits(house: House) -> None:
    summary = house.play(house.student_job("student"))
    evaluation = summary["evaluation"]
    assert evaluation["student"]["accuracy"] > 0.8
    assert evaluation["teacher"]["accuracy"] > 0.9
    assert evaluation["positions"] == 367
    counts = summary["cache"]
    assert counts["misses"] == 1430 + 367  # each sample once, in the first epoch and held out
    # An epoch may begin while the last answers of the one before are on their way.
    assert counts["hits"] + counts["shared"] == 2 * 1430
    assert summary["tokens"] == 3 * 1430  # samples, of which each epoch has all once

    losses = house.losses("forward_kl")
    again = house.play(house.student_job("student"))
    assert again["cache"]["misses"] == 0 and again["cache"]["computed_tokens"] == 0
    assert again["pool"]["asked"] == 0
    assert house.losses("forward_kl") == losses
    assert again["weights_sha256"] == summary["weights_sha256"]


def test_the_export_of_an_imported_module_is_the_student_that_was_measured(house: House) -> None:
    folder = house.exports["teacher"].uri
    spec = ModelSpec(path=folder, task="classifier", allow_remote_code=True)
    module = load_model(spec).module
    images, labels = load_digits(return_X_y=True)
    features = torch.from_numpy((images / 16).astype(np.float32))
    with torch.no_grad():
        right = classify(module, {"features": features}).argmax(1).numpy() == labels
    assert right.mean() > 0.95


def test_a_student_with_fewer_classes_than_the_data_is_refused(house: House) -> None:
    with pytest.raises(SpecError, match="has 9 classes, and the data have 10"):
        house.play(house.job("few", student=digits.student(classes=9)))


@pytest.mark.slow
def test_a_text_classifier_learns_from_a_teacher_of_another_family(house: House) -> None:
    file = house.root / "texts.jsonl"
    lines = [
        f'{{"text": "{word} number {i} of {i % 13}", "kind": "{kind}"}}'
        for i in range(120)
        for word, kind in (("def", "code"), ("print", "talk"))
    ]
    file.write_text("\n".join(lines))
    format = {"kind": "labelled_text", "label": "kind", "classes": ["code", "talk"]}
    source = {"kind": "jsonl", "path": str(file), "format": format}
    data = {"sources": [source], "context": 16, "held_out": 0.2}
    text = {"task": "classifier", "tokenizer": str(tiny.TOKENIZER)}
    llama = {**tiny.architecture(), "num_labels": 2, "pad_token_id": 0}
    bert = {
        **{"model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_labels": 2},
        **{"num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 32},
    }
    house.play(house.job("teacher-text", student={**text, "architecture": llama}, data=data))
    teacher = {"job": "teacher-text", "task": "classifier", "resources": {"cpus": 0.5}}
    summary = house.play(
        house.job(
            "student-text",
            student={**text, "architecture": bert},
            roles={"teacher": teacher},
            data=data,
            objective={"terms": [{"kind": "forward_kl", "temperature": 2.0}]},
        )
    )
    assert summary["evaluation"]["teacher"]["accuracy"] > 0.9
    assert summary["evaluation"]["student"]["accuracy"] > 0.9
    assert summary["generated"] is None


@pytest.mark.slow
def test_two_ranks_and_another_cut_learn_the_same(house: House) -> None:
    training = digits.raw_job()["training"]
    house.play(
        house.student_job(
            "whole",
            training={**training, "epochs": None, "steps": 12, "checkpoint": {"every_steps": 12}},
        )
    )
    whole = house.losses("forward_kl")
    cut = {**training, "epochs": None, "steps": 12, "workers": 2, "micro_batch": 8}
    cut |= {"checkpoint": {"every_steps": 12}, "zero": 2}
    house.play(house.student_job("cut", training=cut))
    assert house.losses("forward_kl") == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_blends_are_new_samples_and_no_more_than_without_them(house: House) -> None:
    found = {}
    for name, fields in (("dropped", {}), ("blended", {"mix": 0.5})):
        recipe = {"kind": "condensation", "every": 1, "stages": 1, "keep": 0.5, **fields}
        found[name] = house.play(house.student_job(name, objective={"recipe": recipe}))
    dropped, blended = found["dropped"], found["blended"]
    assert blended["tokens"] == dropped["tokens"] == 1430 + 2 * 715
    # All 715 that are left are mixed with one that was dropped, but for the first, of which
    # nothing is taken. The teacher has said all but what it says of blends.
    assert blended["cache"]["misses"] == 714
    assert blended["weights_sha256"] != dropped["weights_sha256"]
