"""A study file: what it may say, and how it is refused."""

from pathlib import Path
from typing import Any

import pytest
import studies
import yaml

from orchestrator.errors import SpecError
from orchestrator.study.load import load_study, study_yaml
from orchestrator.study.plan import plan_study
from orchestrator.study.spec import StudySpec

EXAMPLES = Path(__file__).parents[2] / "docs/examples/studies"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(studies.raw_study()))
    return path


def test_a_study_written_out_loads_back_to_an_equal_one(tmp_path: Path) -> None:
    study = studies.study()
    path = tmp_path / "again.yaml"
    path.write_text(study_yaml(study))
    assert load_study(path) == study


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_can_be_planned(path: Path) -> None:
    study = load_study(path)
    plan = plan_study(study)
    assert len(plan.cells) >= len(study.seeds)
    assert study.assertions, "an example says what it shows"
    assert study.about


def test_numbers_are_names_of_arms(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    raw = studies.raw_study()
    raw["vary"]["noise"] = {0: {}, 0.5: {"data.corrupt.label_noise": 0.5}}
    raw["assertions"] = [{"arm": 0.5, "metric": "accuracy", "at_least": 0.1}]
    path.write_text(yaml.safe_dump(raw))
    assert list(load_study(path).vary["noise"]) == ["0", "0.5"]


def test_an_override_reaches_the_study_or_its_jobs(file: Path) -> None:
    study = load_study(file, ["seeds=[7]", "learner:training.epochs=9", "training.threads=2"])
    assert study.seeds == [7]
    assert [job["training"]["epochs"] for job in study.jobs] == [3, 9]
    assert [job["training"]["threads"] for job in study.jobs] == [2, 2]


def test_a_default_of_the_environment_reaches_every_job(file: Path) -> None:
    study = load_study(file, (), {"tracking.uri": "http://here:5000"})
    assert {job["tracking"]["uri"] for job in study.jobs} == {"http://here:5000"}


def test_one_job_needs_no_list(tmp_path: Path) -> None:
    raw = studies.raw_study(vary={}, compare=None)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**raw, "jobs": raw["jobs"][0]}))
    assert load_study(path).job_named(None) == "teacher"


ARM = {"arm": "kd", "metric": "accuracy", "at_least": 0.0}


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"seeds": []}, "seeds", "at least"),
        ({"seeds": [1, 1]}, "seeds", "repeat"),
        ({"metrics": []}, "metrics", "at least"),
        ({"metrics": ["student.accuracy", "student.accuracy"]}, "metrics.1.name", "twice"),
        ({"metrics": [{"path": "kl", "job": "lerner"}]}, "metrics.0.job", "'learner'"),
        ({"compare": {"axis": "methode", "baseline": "ce"}}, "compare.axis", "'method'"),
        ({"compare": {"axis": "method", "baseline": "ke"}}, "compare.baseline", "'kd'"),
        ({"assertions": [{**ARM, "arm": "kdd"}]}, "assertions.0.arm", "'kd'"),
        ({"assertions": [{**ARM, "minus": "cee"}]}, "assertions.0.minus", "'ce'"),
        ({"assertions": [{**ARM, "metric": "acuracy"}]}, "assertions.0.metric", "'accuracy'"),
        ({"assertions": [{**ARM, "at": {"noise": 41}}]}, "assertions.0.at.noise", "'40'"),
        ({"assertions": [{**ARM, "at": {"nose": 40}}]}, "assertions.0.at.nose", "'noise'"),
        ({"assertions": [{**ARM, "at": {"method": "kd"}}]}, "assertions.0.at.method", "itself"),
        ({"assertions": [{**ARM, "at_most": 1.0}]}, "assertions.0.at_most", "exactly one"),
        ({"assertions": [{"arm": "kd", "metric": "accuracy"}]}, "assertions.0.at_least", "one of"),
        ({"only": [{"noise": "400"}]}, "only.0.noise", "'40'"),
        ({"skip": [{"nois": ["0"]}]}, "skip.0.nois", "'noise'"),
        ({"seeded": ["sed"]}, "seeded", "'seed'"),
        ({"seeded": {"lerner": ["seed"]}}, "seeded.lerner", "'learner'"),
        ({"sedes": [1]}, "sedes", "'seeds'"),
    ],
)
def test_what_is_unknown_or_missing_is_refused(
    changes: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(SpecError) as refused:
        studies.study(**changes)
    assert refused.value.field == field
    assert words in str(refused.value).replace("At least", "at least").replace("Exactly", "exactly")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"trainnig.epochs": 1}, "'training'"),
        ({"lerner": {"training.epochs": 1}}, "'learner'"),
        ({"storage": "/elsewhere"}, "whole study"),
        ({"learner": {"tracking.experiment": "x"}}, "whole study"),
    ],
)
def test_an_arm_sets_what_jobs_have_and_may_vary(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words) as refused:
        studies.study(vary={"size": {"large": overrides}}, compare=None)
    assert refused.value.field.startswith("vary.size.large")


def test_a_field_that_an_arm_misspells_is_found_before_anything_starts() -> None:
    study = studies.study(vary={"rate": {"low": {"training.optimizer.ir": 1}}}, compare=None)
    with pytest.raises(SpecError, match=r"optimizer\.ir.*cell rate low, seed 0.*'lr'"):
        plan_study(study)


def test_a_job_called_like_a_field_of_jobs_is_refused() -> None:
    raw = studies.raw_study(vary={}, compare=None)
    raw["jobs"][1]["name"] = "student"
    with pytest.raises(SpecError, match="student-job"):
        studies.study(**raw)


def test_an_arm_of_two_axes_needs_its_axis_said() -> None:
    vary = {"first": {"a": {}, "b": {"seed": 5}}, "second": {"a": {}, "c": {"seed": 6}}}
    check = {"arm": "a", "metric": "accuracy", "at_least": 0.0}
    with pytest.raises(SpecError, match="first and of second"):
        studies.study(vary=vary, compare=None, assertions=[check])
    said = studies.study(vary=vary, compare=None, assertions=[{**check, "axis": "second"}])
    assert said.axis_of(said.assertions[0]) == "second"


def test_a_name_that_yaml_reads_as_a_truth_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    text = yaml.safe_dump(studies.raw_study(vary={}, compare=None))
    path.write_text(text.replace("vary: {}", "vary: {skips: {off: {}}}"))
    with pytest.raises(SpecError, match=r"vary\.skips"):
        load_study(path)


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("- 1\n")
    with pytest.raises(SpecError, match="no study"):
        load_study(path)
    with pytest.raises(SpecError, match="no such file"):
        load_study(tmp_path / "absent.yaml")


def test_the_spec_knows_its_own_fields_by_name() -> None:
    assert {"name", "jobs", "vary", "seeds", "metrics"} <= set(StudySpec.model_fields)
