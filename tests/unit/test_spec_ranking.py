"""Jobs of rankers: what is filled in, and what is refused with which remedy."""

from pathlib import Path
from typing import Any

import digits
import pytest
import yaml
from ranking import raw_job, write_csv

from orchestrator.errors import SpecError
from orchestrator.spec import JobSpec, load_jobs, resolved_yaml
from orchestrator.spec.models import FullEncoding
from orchestrator.spec.paths import absolute_paths

PATH = Path("x.csv")
TEACHER = {"teacher": raw_job(PATH, 2, 2)["student"]}


def load(tmp_path: Path, raw: dict[str, Any]) -> JobSpec:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(raw))
    return load_jobs(file)[0]


def test_defaults_are_those_of_classifiers_and_come_back_from_the_resolved_file(
    tmp_path: Path,
) -> None:
    job = load(tmp_path, raw_job(PATH, 2, 2, roles=TEACHER))
    assert isinstance(job.roles["teacher"].encoding, FullEncoding)
    assert (job.data.task, job.data.ranks_items, job.data.has_labels) == ("classifier", True, False)
    assert (job.data.packing, job.data.held_out, job.data.row_tokens) == (False, 0.0, None)
    (tmp_path / "job.yaml").write_text(resolved_yaml([job]))
    assert load_jobs(tmp_path / "job.yaml") == [job]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (
            raw_job(PATH, 2, 2, objective={"terms": [{"kind": "cross_entropy"}]}),
            r"terms\.0\.kind.*learns from labels.*format has the items of each user",
        ),
        (
            digits.raw_job(objective={"terms": [{"kind": "bpr"}]}),
            r"terms\.0\.kind.*is bpr.*order of items.*is features.*Give the data format interac",
        ),
        (
            digits.raw_job(evaluation={"diagnostics": [{"kind": "ranking"}]}),
            r"diagnostics\.0\.kind.*is ranking.*is features",
        ),
        (
            raw_job(PATH, 2, 2, evaluation={"diagnostics": [{"kind": "omega"}]}, roles=TEACHER,
                    objective={"recipe": {"kind": "unkd"}}),
            r"diagnostics\.0\.kind.*reads labels.*the items of each user",
        ),
        (
            raw_job(PATH, 2, 2, evaluation={"diagnostics": [{"kind": "ranking", "role": "t"}]}),
            r"diagnostics\.0\.role.*is 't'",
        ),
        (
            raw_job(PATH, 2, 2, objective={"recipe": {"kind": "unkd"}},
                    roles={"teacher": {**TEACHER["teacher"], "encoding": {"kind": "topk"}}}),
            r"roles\.teacher\.encoding\.kind.*is topk.*Use one of full",
        ),
        (
            raw_job(PATH, 2, 2, roles=TEACHER, objective={
                "terms": [{"kind": "stratified_pairs", "strata": 5, "pairs": 4}]}),
            r"terms\.0.*pairs is 4, and strata is 5.*Set pairs to 5 or more",
        ),
        (
            raw_job(PATH, 2, 2, roles=TEACHER, objective={
                "recipe": {"kind": "unkd", "strata": 5, "pairs": 4}}),
            r"objective\.recipe.*pairs is 4, and strata is 5",
        ),
        (
            raw_job(PATH, 2, 2, roles=TEACHER, objective={
                "recipe": {"kind": "condensation", "label_share": 0.0, "mix": 0.7}}),
            r"between_epochs\.mix.*users cannot be blended",
        ),
        (
            {**raw_job(PATH, 2, 2), "student": {**TEACHER["teacher"], "tokenizer": "t"}},
            r"student\.tokenizer.*interactions are not tokenised",
        ),
        (
            {**raw_job(PATH, 2, 2), "data": {"sources": [
                {"kind": "csv", "path": "x.csv", "format": {"kind": "interactions"},
                 "held_out": 1}]}},
            r"sources\.0\.held_out.*of users a share of each.*Set data\.held_out",
        ),
    ],
    ids=range(11),
)  # fmt: skip
def test_a_job_that_cannot_be_is_refused_with_its_field(
    tmp_path: Path, raw: dict[str, Any], told: str
) -> None:
    with pytest.raises(SpecError, match=told):
        load(tmp_path, raw)


def test_the_file_of_a_graph_is_made_absolute_and_other_paths_are_left(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "x.csv", [(1, 2, 3)])
    raw = raw_job(file, 2, 2)
    for path in (str(file), "no/file"):
        raw["student"]["arguments"] = {"path": path, "width": 3}
        found = absolute_paths(JobSpec.model_validate(raw))
        assert found.student.arguments == {"path": path, "width": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        raw["student"]["arguments"] = {"path": "x.csv"}
        found = absolute_paths(JobSpec.model_validate(raw))
    assert found.student.arguments == {"path": str(file)}


def test_the_best_is_chosen_by_lists_of_users_of_which_one_item_each_is_held_out(
    tmp_path: Path,
) -> None:
    raw = raw_job(PATH, 2, 2)
    assert raw["data"]["sources"][0]["format"]["leave_one_out"] and not raw["data"].get("held_out")
    raw["training"]["checkpoint"] = {
        "best": {"metric": "diagnostics.ranking.recall_at_2", "better": "higher"}
    }
    raw["evaluation"] = {"diagnostics": [{"kind": "ranking", "cutoffs": [2], "every_steps": 10}]}
    assert load(tmp_path, raw).training.checkpoint.best is not None
