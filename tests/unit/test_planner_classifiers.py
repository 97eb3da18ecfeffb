"""Classifiers before anything starts: plans, files and pools."""

import json
from pathlib import Path
from typing import Any

import digits
import pytest

from orchestrator.data import Reading
from orchestrator.errors import SpecError
from orchestrator.planner import plan, preflight
from orchestrator.pool import readings
from orchestrator.pool.stock import role_digest
from orchestrator.signals_doctor.examine import examine
from orchestrator.spec import JobSpec
from orchestrator.standing import standing_plan

BERT = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_labels": 5}
ROLE = {"architecture": BERT, "task": "classifier"}
KL = {"terms": [{"kind": "forward_kl"}]}
STANDING = {"kind": "standing", "name": "shared"}


def distilled(**changes: Any) -> JobSpec:
    return digits.job(**{"roles": {"teacher": digits.student()}, "objective": KL, **changes})


def test_a_plan_counts_one_position_a_sample() -> None:
    found = plan(distilled(roles={"teacher": ROLE}), None)
    assert found.tokens_per_step == 32
    (role,) = found.roles
    assert (role.encoding, role.bytes_per_position, role.request_bytes) == ("full", 20, 16 * 20)
    assert role.head_bytes == 0


def test_features_need_no_tokenizer(tmp_path: Path) -> None:
    preflight([distilled(storage=str(tmp_path))])


@pytest.mark.parametrize(
    ("format", "field"),
    [
        ({"kind": "features", "fields": ["a", "c"]}, "fields"),
        ({"kind": "features", "fields": ["a", "b"], "label": "kind"}, "label"),
        ({"kind": "labelled_text", "field": "words"}, "field"),
    ],
)
def test_a_field_that_a_file_lacks_is_named(
    tmp_path: Path, format: dict[str, Any], field: str
) -> None:
    (tmp_path / "t.csv").write_text("a,b,label\n1,2,0\n")
    source = {"kind": "csv", "path": str(tmp_path / "t.csv"), "format": format}
    with pytest.raises(SpecError, match="Use one of: a, b, label") as refused:
        preflight([digits.job(data={"sources": [source]})])
    assert str(refused.value).startswith(f"data.sources.0.format.{field}: ")


def test_few_features_are_not_too_short_for_the_context(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("features,label\n1,0\n")
    source = {"kind": "csv", "path": str(tmp_path / "t.csv"), "format": {"kind": "features"}}
    preflight([digits.job(data={"sources": [source]}, storage=str(tmp_path))])


def test_a_standing_pool_is_told_how_its_roles_read() -> None:
    job = distilled(pool=STANDING)
    assert standing_plan([job]).load_of("teacher").reading == Reading("features")
    assert readings(job) == {"teacher": Reading("features")}
    data = digits.data()
    data["sources"][0]["format"] = {"kind": "features", "shape": [8, 8]}
    with pytest.raises(SpecError, match=r"as features\[8,8\] in digits, and as features\[\]"):
        standing_plan([job, distilled(pool=STANDING, data=data)])


def test_a_folder_read_in_another_way_is_another_source(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    (tmp_path / "model.safetensors").write_bytes(b"")
    data = digits.data()
    data["sources"][0]["format"] = {"kind": "features", "shape": [8, 8]}
    role = {"path": str(tmp_path), "task": "classifier"}
    flat, square = distilled(roles={"teacher": role}), distilled(roles={"teacher": role}, data=data)
    assert role_digest(flat, "teacher") == role_digest(flat, "teacher")
    assert role_digest(flat, "teacher") != role_digest(square, "teacher")


def test_the_doctor_of_signals_says_that_it_checks_causal_models_only() -> None:
    with pytest.raises(SpecError, match=r"digits.student.task.*next-token targets"):
        next(examine([distilled()], print))
