"""Jobs of classifiers: what is filled in, and what is refused with which remedy."""

from pathlib import Path
from typing import Any

import digits
import pytest
import yaml

from orchestrator.errors import SpecError
from orchestrator.spec import load_jobs, resolved_yaml
from orchestrator.spec.data import DataSpec
from orchestrator.spec.models import FullEncoding, RoleSpec

TEACHER = {"teacher": {**digits.student(), "encoding": {"kind": "topk", "k": 4}}}
TEXT = {"sources": [{"kind": "text", "path": "."}]}


def source(**format: Any) -> dict[str, Any]:
    return {"kind": "jsonl", "path": "x.jsonl", "format": format}


def load(tmp_path: Path, raw: dict[str, Any]) -> Any:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(raw))
    return load_jobs(file)


def test_defaults_are_those_of_classifiers_and_come_back_from_the_resolved_file(
    tmp_path: Path,
) -> None:
    roles = {"teacher": digits.student()}
    (job,) = load(tmp_path, digits.raw_job(roles=roles))
    assert isinstance(job.roles["teacher"].encoding, FullEncoding)
    assert job.evaluation.generate is None
    assert (job.data.packing, job.data.long_documents) == (False, "truncate")
    assert (job.data.task, job.data.reads_text, job.data.row_tokens) == ("classifier", False, None)
    (tmp_path / "again.yaml").write_text(resolved_yaml([job]))
    assert load_jobs(tmp_path / "again.yaml") == [job]


def test_causal_roles_keep_their_defaults() -> None:
    assert RoleSpec.model_validate({"path": "x"}).encoding.kind == "hidden"
    data = DataSpec.model_validate(TEXT)
    assert (data.packing, data.long_documents, data.row_tokens) == (True, "split", 512)


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"data": TEXT}, "student.task", "is classifier, and the data's format text"),
        ({"student": {"path": "x"}}, "student.task", "is causal_lm.*Set it to classifier"),
        ({"roles": {"teacher": {"path": "x"}}}, "roles.teacher.task", "is causal_lm"),
        ({"student": {**digits.student(), "lora": {}}}, "student.lora", "causal models only"),
        ({"student": {**digits.student(), "tokenizer": "t"}}, "student.tokenizer", "not tokenised"),
        ({"evaluation": {"generate": {}}}, "evaluation.generate", "writes nothing"),
        ({"data": digits.data(packing=True)}, "data.packing", "have a row each"),
        ({"data": digits.data(workers=2)}, "data.workers", "not tokenised"),
        ({"data": digits.data(long_documents="split")}, "data.long_documents", "Use truncate"),
        (
            {"roles": {"teacher": {**digits.student(), "encoding": {"kind": "hidden"}}}},
            "roles.teacher.encoding.kind",
            "Use full",
        ),
        (
            {"data": {"sources": [source(kind="features", label=None)]}},
            "objective.terms.0.kind",
            "cross_entropy, which learns from labels",
        ),
        (
            {
                "data": {
                    "sources": [source(kind="features", label=None)],
                    "corrupt": {"label_noise": 0.1},
                }
            },
            "data.corrupt.label_noise",
            "samples without labels",
        ),
        (
            {"data": {"sources": [source(kind="features", label=None, classes=["a", "b"])]}},
            "data.sources.0.format.classes",
            "label is null",
        ),
        (
            {"data": {"sources": [source(kind="features", classes=["a", "a"])]}},
            "data.sources.0.format.classes",
            "with a repeat",
        ),
        (
            {"data": {"sources": [source(kind="features"), source(kind="labelled_text")]}},
            "data.sources.1.format.kind",
            "no model reads both",
        ),
        (
            {"data": {"sources": [source(kind="labelled_text"), source(kind="text")]}},
            "data.sources.1.format.kind",
            "no model reads both",
        ),
        (
            {
                "data": {
                    "sources": [
                        source(kind="features", shape=[8, 8]),
                        source(kind="features", shape=[1, 8, 8]),
                    ]
                }
            },
            "data.sources.1.format.shape",
            "Make them one",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(
    tmp_path: Path, changes: dict[str, Any], field: str, told: str
) -> None:
    with pytest.raises(SpecError, match=told) as refused:
        load(tmp_path, digits.raw_job(**changes))
    assert str(refused.value).startswith(f"{field}: ")


def test_of_text_only_a_fraction_can_be_taken() -> None:
    assert DataSpec.model_validate({**TEXT, "corrupt": {"fraction": 0.5}}).corrupt.fraction == 0.5
    with pytest.raises(ValueError, match="text without labels"):
        DataSpec.model_validate({**TEXT, "corrupt": {"imbalance": 2}})


def test_samples_without_labels_may_be_distilled(tmp_path: Path) -> None:
    data = {"sources": [source(kind="features", label=None)]}
    terms = {"terms": [{"kind": "forward_kl"}]}
    (job,) = load(tmp_path, digits.raw_job(roles=TEACHER, data=data, objective=terms))
    assert not job.data.has_labels


def test_images_are_given_as_pixel_values_unless_the_format_names_another() -> None:
    def name(**format: Any) -> str:
        first: Any = DataSpec.model_validate({"sources": [source(kind="features", **format)]})
        return first.formats[0].input_name

    assert name() == name(shape=[64]) == "features"
    assert name(shape=[3, 8, 8]) == "pixel_values"
    assert name(shape=[3, 8, 8], input="x") == name(input="x") == "x"
