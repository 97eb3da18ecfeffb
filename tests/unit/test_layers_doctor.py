"""`stillhouse doctor --layers`: the modules inside a job's models."""

import json
from pathlib import Path
from typing import Any

import digits
import pytest
import tiny
import yaml

from orchestrator.cli import exit_code
from orchestrator.layers_doctor import look

CONV = "orchestrator.models.reference:conv"


def test_layers_of_one_size_are_one_line(tmp_path: Path) -> None:
    teacher = tiny.save_teacher(tmp_path / "teacher")
    text = tiny.save_text(tmp_path / "text", documents=2)
    role = {"teacher": {"path": str(teacher), "attention": "eager"}}
    job = tiny.job(teacher, text, tmp_path / "runs", roles=role)
    found = {(one.model, one.pattern): one for one in look([job])}
    layer = found["teacher", "model.layers.*"]
    assert (layer.count, layer.size, layer.heads) == (2, "width 48", None)
    assert found["student", "model.layers.*"].size == "width 32"
    assert found["teacher", "model.layers.*.self_attn"].heads == 4
    assert found["student", "model.layers.*.self_attn"].heads is None


def _image_job(shape: list[int] | None) -> dict[str, Any]:
    raw = digits.raw_job()
    source = raw["data"]["sources"][0]
    source["format"] = {"kind": "features", "input": "pixel_values", "shape": shape}
    arguments = {"channels": 1, "size": 8, "classes": 10, "width": 4}
    raw["student"] = {"import": CONV, "task": "classifier", "arguments": arguments}
    return raw


def test_maps_are_shown_with_their_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(_image_job([1, 8, 8])))
    assert exit_code(["doctor", "--layers", str(file), "--json"]) == 0
    found = {(one["pattern"], one["size"]) for one in json.loads(capsys.readouterr().out)}
    assert {("stages.*", "4 x 8 x 8"), ("stages.*", "4 x 4 x 4"), ("head", "width 10")} <= found
    assert exit_code(["doctor", "--layers", str(file)]) == 0
    assert "4 x 8 x 8" in capsys.readouterr().out


def test_data_that_do_not_say_what_a_sample_is_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(digits.raw_job()))
    assert exit_code(["doctor", "--layers", str(file)]) == 2
    assert "shape: is absent" in capsys.readouterr().err.replace("\n", " ")
    assert exit_code(["doctor", "--layers", str(file), "--signals", str(file)]) == 2
