"""A classifier's student, data and roles are refused where they do not fit, before any step."""

from types import SimpleNamespace
from typing import Any

import digits
import numpy as np
import pytest
import tiny
import torch
from torch import nn

from orchestrator.data import SampleStore
from orchestrator.data.tokenise import Sample
from orchestrator.errors import SpecError
from orchestrator.models.load import load_model
from orchestrator.signals.records import RoleDescription
from orchestrator.spec import JobSpec
from orchestrator.spec.models import ModelSpec
from orchestrator.students.fit import check_classifier

KL = {"terms": [{"kind": "forward_kl"}]}


def job_of(**changes: Any) -> JobSpec:
    return digits.job(**{"roles": {"teacher": digits.student()}, "objective": KL, **changes})


def store(words: int, dtype: Any = np.int32) -> SampleStore:
    make = np.random.default_rng(0)
    return SampleStore.of(
        Sample(f"s{i}", make.integers(1, 50, words + i).astype(np.int32), np.zeros(words + i), 0)
        if dtype is np.int32
        else Sample(f"s{i}", make.random(words, np.float32).view(np.int32), np.zeros(words), 0)
        for i in range(2)
    )


def check(
    student: dict[str, Any], samples: SampleStore, classes: int = 10, job: JobSpec | None = None,
    described: RoleDescription | None = None,
) -> None:  # fmt: skip
    loaded = load_model(ModelSpec.model_validate(student), for_training=True)
    data: Any = SimpleNamespace(classes=classes, train=samples)
    questions: Any = described and SimpleNamespace(
        source=SimpleNamespace(describe=lambda role: described)
    )
    check_classifier(job or job_of(), data, loaded, questions)
    assert loaded.module.training


def features(words: int = 64) -> SampleStore:
    return store(words, np.float32)


def test_what_fits_passes_and_the_student_is_left_as_it_was() -> None:
    check(digits.student(), features())
    check(digits.student(), features(), described=RoleDescription("t", "f", 10, 0, 1, reads=READS))


READS = "features[]"


@pytest.mark.parametrize(
    ("student", "words", "classes", "told"),
    [
        ({"classes": 9}, 64, 10, "has 9 classes, and the data have 10"),
        ({"inputs": 32}, 64, 10, r"does not run on two samples of the data, features \[2, 64\]"),
        ({}, 63, 10, r"features \[2, 63\]"),
    ],
)
def test_a_student_that_cannot_read_or_name_the_samples_is_refused(
    student: dict[str, Any], words: int, classes: int, told: str
) -> None:
    with pytest.raises(SpecError, match=f"^student: .*{told}"):
        check(digits.student(**student), features(words), classes)


class Liar(nn.Module):
    """Says that it has ten classes."""

    num_labels = 10

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 7)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer(features)


def test_a_student_that_gives_other_classes_than_it_says_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.models.reference.mlp", lambda **_: Liar())
    with pytest.raises(SpecError, match="10 classes, and gives 7 logits a sample"):
        check(digits.student(), features())


def test_a_decoder_that_knows_no_padding_is_refused_with_its_reason() -> None:
    llama = {**tiny.architecture(), "num_labels": 2}
    student = {"architecture": llama, "task": "classifier", "tokenizer": str(tiny.TOKENIZER)}
    source = {"kind": "jsonl", "path": "x", "format": {"kind": "labelled_text"}}
    job = digits.job(student=student, data={"sources": [source]})
    with pytest.raises(SpecError, match=r"two samples of the data.*padding"):
        check(student, store(5), 2, job)
    check({**student, "architecture": {**llama, "pad_token_id": 0}}, store(5), 2, job)


@pytest.mark.parametrize(
    ("role_classes", "reads", "told"),
    [
        (12, READS, "roles.teacher: has 12 classes, and the student 10"),
        (10, "text", r"reads samples as text, .* makes them features\[\]"),
    ],
)
def test_a_role_of_other_classes_or_inputs_is_refused(
    role_classes: int, reads: str, told: str
) -> None:
    described = RoleDescription("teacher", "f", role_classes, 0, 1, reads=reads)
    with pytest.raises(SpecError, match=told):
        check(digits.student(), features(), described=described)


class Opaque(nn.Module):
    """A classifier whose forward leaves torch, as one of trees would."""

    num_labels = 10

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[R, 64] -> [R, 10]."""
        return self.layer(torch.from_numpy(np.sign(features.detach().numpy())))


@pytest.mark.parametrize(
    ("kind", "opaque", "width", "told"),
    [
        ("backward_pass", False, 0, r"^roles\.teacher: has no gradient by its input"),
        ("backward_pass", True, 64, r"^student: has no gradient by its input.*kind boundary"),
        ("boundary_samples", True, 64, None),
        ("backward_pass", False, 64, None),
    ],
)
def test_samples_move_only_along_gradients_that_are_there(
    monkeypatch: pytest.MonkeyPatch, kind: str, opaque: bool, width: int, told: str | None
) -> None:
    if opaque:
        monkeypatch.setattr("orchestrator.models.reference.mlp", lambda **_: Opaque())
    data = digits.data()
    data["sources"][0]["format"]["shape"] = [64]
    recipe = {"kind": kind, "every": 1, "rounds": 1}
    job = job_of(data=data, objective={"recipe": recipe})
    described = RoleDescription(
        "teacher", "f", 10, 0, 1, reads="features[64]", input_width=width
    )  # fmt: skip
    if told is None:
        check(digits.student(), features(), job=job, described=described)
        return
    with pytest.raises(SpecError, match=told):
        check(digits.student(), features(), job=job, described=described)
