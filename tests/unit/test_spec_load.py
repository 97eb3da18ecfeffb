"""Job files: overrides, anchors, lists, and what the errors say."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import SpecError
from orchestrator.spec import JobSpec, load_jobs, resolved_yaml

JOB: dict[str, Any] = {
    "name": "one",
    "student": {"architecture": {"model_type": "llama"}},
    "data": {"sources": [{"kind": "text", "path": "a.txt"}]},
    "objective": {"terms": [{"kind": "cross_entropy"}]},
    "training": {"steps": 200},
}


def write(folder: Path, document: Any) -> Path:
    """A job file."""
    path = folder / "job.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def refused(folder: Path, *overrides: str, document: Any = JOB) -> str:
    """The message of the refusal."""
    with pytest.raises(SpecError) as caught:
        load_jobs(write(folder, document), overrides)
    return str(caught.value)


def test_one_job_and_a_list_of_jobs_are_read(tmp_path: Path) -> None:
    assert [job.name for job in load_jobs(write(tmp_path, JOB))] == ["one"]
    both = {"jobs": [JOB, {**JOB, "name": "two"}]}
    assert [job.name for job in load_jobs(write(tmp_path, both))] == ["one", "two"]


def test_an_override_reaches_every_job_or_the_one_it_names(tmp_path: Path) -> None:
    path = write(tmp_path, {"jobs": [JOB, {**JOB, "name": "two"}]})
    overrides = ["training.steps=300", "two:training.steps=400", "0:seed=7"]
    one, two = load_jobs(path, overrides)
    assert (one.training.steps, one.seed) == (300, 7)
    assert (two.training.steps, two.seed) == (400, 0)


def test_an_override_of_one_job_leaves_an_anchor_s_other_users_alone(tmp_path: Path) -> None:
    text = """
    jobs:
      - name: one
        student: {architecture: {model_type: llama}}
        data: &data {sources: [{kind: text, path: a.txt}]}
        objective: {terms: [{kind: cross_entropy}]}
        training: &training {steps: 200}
      - name: two
        student: {architecture: {model_type: llama}}
        data: *data
        objective: {terms: [{kind: cross_entropy}]}
        training: *training
    """
    overrides = ["two:training.steps=400", "two:data.sources.0.path=b.txt"]
    one, two = load_jobs(write(tmp_path, text), overrides)
    assert (one.training.steps, two.training.steps) == (200, 400)
    assert one.data.sources[0].model_dump()["path"] == "a.txt"


def test_a_default_gives_way_to_file_and_override(tmp_path: Path) -> None:
    document = {"jobs": [JOB, {**JOB, "name": "two", "ray": {"address": "file:1"}}]}
    path = write(tmp_path, document)
    defaults = {"ray.address": "env:1", "tracking.uri": "http://env"}
    one, two = load_jobs(path, ["one:tracking.uri=http://set"], defaults)
    assert (one.ray.address, two.ray.address) == ("env:1", "file:1")
    assert (one.tracking.uri, two.tracking.uri) == ("http://set", "http://env")


def test_a_default_is_text_even_if_it_looks_like_a_number(tmp_path: Path) -> None:
    (job,) = load_jobs(write(tmp_path, JOB), (), {"ray.address": "6379"})
    assert job.ray.address == "6379"


def test_an_unknown_key_names_the_nearest_known_one_of_its_own_place(tmp_path: Path) -> None:
    message = refused(tmp_path, "data.sources.0.globb=x.md")
    assert message == (
        "data.sources.0.globb: is not a known key. Did you mean 'glob'? "
        "Known: glob, held_out, kind, path"
    )


def test_keys_of_the_file_that_look_like_tags_stay_in_the_path(tmp_path: Path) -> None:
    """`text` and `step` are kinds, and here a role is called so."""
    for name in ("text", "step", "float"):
        message = refused(tmp_path, f"roles={{{name}: {{path: a, dtype: float3}}}}")
        assert message.startswith(f"roles.{name}.dtype: is 'float3'. Did you mean 'float32'?")


def test_an_error_inside_a_schedule_is_not_hidden_by_not_a_number(tmp_path: Path) -> None:
    message = refused(tmp_path, "objective.terms.0.weight={kind: linear, start: 1}")
    assert message == "objective.terms.0.weight.end: is missing. Add it"


def test_a_missing_kind_lists_the_kinds(tmp_path: Path) -> None:
    message = refused(tmp_path, "pool={window_bytes: 1}")
    assert message == "pool: has no kind. Add kind: one of ephemeral, standing, none"


def test_the_job_of_a_list_is_named_and_the_other_errors_counted(tmp_path: Path) -> None:
    bad = {**JOB, "name": "two", "seed": "x", "deterministic": "maybe"}
    message = refused(tmp_path, document={"jobs": [JOB, bad]})
    assert message.startswith("jobs.1.seed: is 'x'")
    assert message.endswith("(1 more after this one)")


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("training.epochs=3", "training.epochs: is 3 where steps is 200"),
        ("training.steps=null", "training.steps: is missing, and epochs too"),
        ("training.global_batch=7", "training.global_batch: is 7, not divisible"),
        ("training.learning_rate.warmup_steps=200", "training.learning_rate.warmup_steps: is 200"),
        ("objective.terms.0.weight=-1", "objective.terms.0.weight: weight takes values from -1"),
        ("objective.terms.0.weight=0", "objective: every term has weight 0"),
        ("roles={student: {path: a}}", "roles.student: is trained, not served"),
        ("student={path: a, hub: b}", "student: has 2 sources (path, hub)"),
        ("student.revision=main", "student: revision is only used with hub"),
        ("name=Bad Name", "name: is 'Bad Name'. Write something that matches"),
        ("data.held_out=1", "data.held_out: is 1"),
        ("roles={t: {path: a, resources: {gpus: 2}}}", "roles.t.parallel: is none"),
        ("roles={t: {path: a, parallel: layers}}", "roles.t.parallel: is layers"),
        ("student.job=later", "student: has 2 sources"),
    ],
)
def test_a_refusal_names_the_field_and_the_value(tmp_path: Path, override: str, start: str) -> None:
    assert refused(tmp_path, override).startswith(start)


def test_an_earlier_job_must_come_earlier(tmp_path: Path) -> None:
    later = {**JOB, "name": "two", "student": {"job": "one"}}
    assert load_jobs(write(tmp_path, {"jobs": [JOB, later]}))[1].student.job == "one"
    message = refused(tmp_path, document={"jobs": [later, JOB]})
    assert message.startswith("jobs.0.student.job: names 'one', which is not an earlier job")


def test_two_jobs_of_one_name_are_refused(tmp_path: Path) -> None:
    assert "used twice" in refused(tmp_path, document={"jobs": [JOB, JOB]})


def test_a_fully_filled_job_survives_yaml_and_json(tmp_path: Path) -> None:
    document = {
        **JOB,
        "student": {"import": "package.module:build", "arguments": {"width": 8}},
        "roles": {
            "teacher": {
                "hub": "someone/model",
                "revision": "abc",
                "encoding": {"kind": "topk", "k": 8, "temperatures": [1.0, 1.5, 2.0]},
                "resources": {"cpus": 0.5, "custom": {"teacher": 1}},
            },
            "judge": {"registry": "models:/judge/3"},
        },
        "objective": {
            "terms": [
                {
                    "kind": "jensen_shannon",
                    "beta": {"kind": "linear", "start": 0.1, "end": 0.9},
                    "temperature": {"kind": "piecewise", "points": [[0, 2.0], [100, 1.0]]},
                },
                {
                    "kind": "cross_entropy",
                    "weight": {"kind": "step", "start": 1, "factor": 0.5} | {"every": 10},
                },
            ]
        },
        "pool": {"kind": "standing", "name": "shared"},
        "evaluation": {"generate": None, "rows": None, "against": "judge"},
        "tracking": {"uri": "http://127.0.0.1:5000", "tags": {"team": "a"}},
        "training": {"epochs": 2, "clip": None, "deepspeed": {"zero_optimization": {"x": 1}}},
    }
    (job,) = load_jobs(write(tmp_path, document))
    assert JobSpec.model_validate_json(job.model_dump_json(by_alias=True)) == job
    assert load_jobs(write(tmp_path, resolved_yaml([job]))) == [job]
