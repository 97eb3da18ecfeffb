"""Means, paired tests, assertions and tables of a study."""

import json
import math
from pathlib import Path

import pytest
import studies

from orchestrator.study.findings import check_assertions
from orchestrator.study.numbers import (
    Mean,
    Results,
    gather,
    mean_of,
    paired_p,
    value_of,
)
from orchestrator.study.plan import plan_study
from orchestrator.study.run import StudyResult
from orchestrator.study.spec import MetricSpec, StudySpec
from orchestrator.study.table import as_markdown, as_page, as_text, grids
from orchestrator.study.text import mean_text, p_text
from orchestrator.study.write import write_tables

CE = {0: 0.80, 1: 0.84}
KD = {0: 0.90, 1: 0.92}


def _results(spec: StudySpec, without: tuple[str, ...] = ()) -> Results:
    plan = plan_study(spec)
    found = studies.measured(spec, ce=CE, kd=KD)
    gone = {job.key for job in plan.jobs if job.name in without}
    return gather(spec, plan, {key: value for key, value in found.items() if key not in gone})


def test_a_mean_has_the_standard_error_of_its_seeds() -> None:
    assert mean_of([1.0, 2.0, 4.0]) == Mean(
        3, pytest.approx(7 / 3), pytest.approx(math.sqrt(7 / 9))
    )
    assert mean_of([5.0]) == Mean(1, 5.0, None)


def test_a_paired_test_agrees_with_a_table() -> None:
    # t = 3 at 4 degrees of freedom: p = 0.03994
    differences = [1.0, 2.0, 3.0, 4.0, 5.0]
    t = 3.0 / math.sqrt(2.5 / 5)
    assert t == pytest.approx(4.2426, abs=1e-4)
    assert paired_p(differences) == pytest.approx(0.013236, abs=1e-6)


@pytest.mark.parametrize("differences", [[], [1.0], [0.1, 0.1, 0.1], [0.9 - 0.8, 0.85 - 0.75]])
def test_a_test_without_a_spread_is_not_defined(differences: list[float]) -> None:
    assert paired_p(differences) is None


def test_differences_are_paired_by_seed_and_the_other_axes() -> None:
    results = _results(studies.study())
    by_place = {found.at: found for found in results.differences}
    assert set(by_place) == {(("noise", "0"),), (("noise", "40"),), None}
    here = by_place[(("noise", "40"),)]
    assert here.arm == "kd" and here.difference.n == 2
    assert here.difference.mean == pytest.approx(0.09)
    assert here.difference.error == pytest.approx(0.01)
    # Over both noises: two pairs a seed, whose mean is one number.
    assert by_place[None].difference.n == 2


def test_a_baseline_that_settings_share_is_one_measurement_a_seed() -> None:
    """Arms that set the same are one job: three cells of a method and a seed are one number."""
    vary = {"method": {"ce": {}, "kd": {"learner": {"objective.terms": studies.KD}}}}
    spec = studies.study(vary={**vary, "width": {"one": {}, "same": {}, "wide": {}}})
    results = _results(spec)
    whole = next(found for found in results.differences if found.at is None)
    assert whole.difference.n == 2 and whole.difference.mean == pytest.approx(0.09)
    assert all(row.means["accuracy"].n == 2 for row in results.rows)


def test_a_job_is_not_compared_with_itself() -> None:
    spec = studies.study(vary={"method": {"ce": {}, "again": {}}})
    plan = plan_study(spec)
    values = {"ce": {0: 0.5, 1: 0.7}, "again": {0: 0.5, 1: 0.7}}
    results = gather(spec, plan, studies.measured(spec, **values))
    assert results.differences == () and results.variances == ()


def test_a_job_without_a_seed_is_measured_once() -> None:
    spec = studies.study(vary={"noise": {"0": {}}}, compare=None, seeded={"teacher": ["seed"]})
    plan = plan_study(spec)
    keys = {cell.jobs["learner"] for cell in plan.cells}
    values = {key: {"evaluation": {"student": {"accuracy": 0.5}}} for key in keys}
    (row,) = gather(spec, plan, values).rows
    assert row.means["accuracy"] == Mean(len(keys), 0.5, None if len(keys) == 1 else 0.0)


def test_a_cell_without_its_pair_is_left_out_and_counted() -> None:
    results = _results(studies.study(), without=("small-learner-40-ce-s1",))
    here = next(found for found in results.differences if found.at == (("noise", "40"),))
    assert here.difference == Mean(1, pytest.approx(0.10), None) and here.p is None
    row = next(r for r in results.rows if dict(r.setting) == {"noise": "40", "method": "ce"})
    assert (row.done, row.seeds) == (1, 2)
    assert row.means["accuracy"].n == 1


def test_a_number_that_is_not_there_is_not_a_zero() -> None:
    summary = {"evaluation": {"student": {"accuracy": 0.5, "loss": math.nan}}, "steps": 7}
    assert value_of(summary, MetricSpec(path="student.accuracy")) == 0.5
    assert value_of(summary, MetricSpec(path="student.loss")) is None
    assert value_of(summary, MetricSpec(path="teacher.accuracy")) is None
    assert value_of(summary, MetricSpec(path="steps", source="summary")) == 7.0


def test_the_variance_between_three_arms_is_tested() -> None:
    arms = {"ce": {}, "kd": {"learner": {"objective.terms": studies.KD}}}
    spec = studies.study(vary={"method": {**arms, "slow": {"learner": {"training.epochs": 9}}}})
    plan = plan_study(spec)
    values = {"ce": {0: 1.0, 1: 2.0}, "kd": {0: 2.0, 1: 3.0}, "slow": {0: 3.0, 1: 4.0}}
    found = gather(spec, plan, studies.measured(spec, **values)).variances
    assert len(found) == 1 and found[0].groups == 3
    assert found[0].f == pytest.approx(4.0)  # 2 between each, 0.5 within
    assert found[0].p == pytest.approx(0.1424, abs=1e-4)


def test_arms_of_one_mean_have_no_variance_between_them() -> None:
    """A twentieth has no float, so means that are equal on paper differ by rounding."""
    values = {0: 0.85, 1: 0.9, 2: 0.95}
    shifted = {0: 0.95, 1: 0.85, 2: 0.9}
    arms = {"ce": {}, "kd": {"learner": {"objective.terms": studies.KD}}}
    spec = studies.study(
        seeds=[0, 1, 2],
        vary={"method": {**arms, "slow": {"learner": {"training.epochs": 9}}}},
    )
    summaries = studies.measured(spec, ce=values, kd=shifted, slow=dict(values))
    assert gather(spec, plan_study(spec), summaries).variances == ()


def test_a_number_of_a_role_is_of_the_job_that_made_it() -> None:
    """However many learners measure their teacher, it is one network a seed."""
    arms = {
        str(epochs): {"learner": {"training.epochs": epochs, "objective.terms": studies.KD}}
        for epochs in (1, 2, 3)
    }
    spec = studies.study(
        vary={"method": arms},
        metrics=[{"path": "teacher.accuracy", "name": "accuracy"}],
        compare={"axis": "method", "baseline": "1"},
    )
    plan = plan_study(spec)
    summaries: dict[str, dict[str, object]] = {}
    for cell in plan.cells:
        summaries[cell.jobs["teacher"]] = {"evaluation": {}}
        told = {"teacher": {"accuracy": 0.8 + 0.1 * cell.seed}}
        summaries[cell.jobs["learner"]] = {"evaluation": told}
    results = gather(spec, plan, summaries)
    assert results.variances == () and results.differences == ()
    assert {row.means["accuracy"].n for row in results.rows} == {2}


@pytest.mark.parametrize(
    ("fields", "mean", "holds"),
    [
        ({"minus": "ce", "at": {"noise": "40"}, "at_least": 0.08}, 0.09, True),
        ({"minus": "ce", "at": {"noise": "40"}, "at_least": 0.1}, 0.09, False),
        ({"minus": "ce", "at_most": 0.0}, 0.09, False),
        ({"minus": "ce", "equal_within": 0.1}, 0.09, True),
        ({"at_least": 0.9}, 0.91, True),
        ({"over": "ce", "at_most": 1.1}, (0.90 / 0.80 + 0.92 / 0.84) / 2, False),
        ({"over": "ce", "at_most": 1.2}, (0.90 / 0.80 + 0.92 / 0.84) / 2, True),
        ({"minus_metric": "accuracy", "equal_within": 0.0}, 0.0, True),
    ],
)
def test_an_assertion_is_about_a_mean(fields: dict[str, object], mean: float, holds: bool) -> None:
    spec = studies.study(assertions=[{"arm": "kd", "metric": "accuracy", **fields}])
    (check,) = check_assertions(spec, _results(spec))
    assert check.found is not None and check.found.mean == pytest.approx(mean)
    assert check.holds is holds


def test_an_assertion_about_nothing_that_is_done_fails() -> None:
    fields = {"arm": "kd", "metric": "accuracy", "at": {"noise": "40"}, "at_least": 0.0}
    spec = studies.study(assertions=[fields])
    gone = ("small-learner-40-kd-s0", "small-learner-40-kd-s1")
    (check,) = check_assertions(spec, _results(spec, without=gone))
    assert check.found is None and not check.holds


@pytest.mark.parametrize(
    ("bound", "refuted", "as_known", "verdict"),
    [
        (0.08, None, True, "holds"),
        (0.10, None, False, "FAILS"),
        (0.10, "the teacher is worse", True, "refuted: the teacher is worse"),
        (0.08, "the teacher is worse", False, "HOLDS, though refuted before"),
    ],
)
def test_what_is_refuted_stays_and_must_go_on_failing(
    bound: float, refuted: str | None, as_known: bool, verdict: str
) -> None:
    fields = {"minus": "ce", "at": {"noise": "40"}, "at_least": bound, "refuted": refuted}
    spec = studies.study(assertions=[{"arm": "kd", "metric": "accuracy", **fields}])
    results = _results(spec)
    (check,) = check_assertions(spec, results)
    assert check.as_known is as_known
    assert StudyResult(Path(), results, (check,), {}).holds is as_known
    assert grids(spec, results, [check], {})[-1].rows[0][-1] == verdict


def test_what_is_refuted_is_measured() -> None:
    fields = {"at": {"noise": "40"}, "at_least": 0.0, "refuted": "it was"}
    spec = studies.study(assertions=[{"arm": "kd", "metric": "accuracy", **fields}])
    results = _results(spec, without=("small-learner-40-kd-s0", "small-learner-40-kd-s1"))
    (check,) = check_assertions(spec, results)
    assert not check.as_known
    nothing = {0: 0.0, 1: 0.0}
    ratio = [
        {"arm": "kd", "over": "ce", "metric": "accuracy", "at_least": 2.0, "refuted": "it was"}
    ]
    over = studies.study(assertions=ratio)
    found = gather(over, plan_study(over), studies.measured(over, ce=nothing, kd=KD))
    assert not check_assertions(over, found)[0].as_known  # a ratio to nothing is no number
    (grid,) = [grid for grid in grids(spec, results, [check], {}) if grid.title == "Assertions"]
    assert grid.rows[0][-1] == "FAILS"


@pytest.mark.parametrize(
    ("mean", "text"),
    [
        (Mean(3, 0.931234, 0.002345), "0.9312 ± 0.0023"),
        (Mean(3, 1234.5, 12.3), "1234 ± 12"),
        (Mean(3, 1234.6, 123.0), "1235 ± 123"),
        (Mean(1, 0.931234, None), "0.931"),
        (Mean(2, 0.5, 0.0), "0.500 ± 0.000"),
        (None, "-"),
    ],
)
def test_a_mean_is_shown_as_far_as_its_error_allows(mean: Mean | None, text: str) -> None:
    assert mean_text(mean, MetricSpec(path="x")) == text


def test_shares_are_shown_in_percent_and_differences_with_their_sign() -> None:
    metric = MetricSpec(path="x", percent=True)
    assert mean_text(Mean(3, 0.931234, 0.002345), metric) == "93.12 ± 0.23"
    assert mean_text(Mean(3, 0.05, 0.01), metric, signed=True) == "+5.0 ± 1.0"


@pytest.mark.parametrize(
    ("p", "text"), [(None, "-"), (0.0004, "<0.001"), (0.0314, "0.031"), (0.5, "0.50"), (1.0, "1.0")]
)
def test_a_p_is_never_shown_as_zero(p: float | None, text: str) -> None:
    assert p_text(p) == (text if text != "1.0" else "1.00")


def test_tables_name_what_is_missing_and_mark_the_best() -> None:
    spec = studies.study(assertions=[{"arm": "kd", "metric": "accuracy", "at_least": 0.99}])
    results = _results(spec, without=("small-learner-40-kd-s1",))
    failed = {"small-learner-40-kd-s1": "the pool was lost"}
    found = grids(spec, results, check_assertions(spec, results), failed)
    text = as_text(found)
    assert "1 of 2" in text and "the pool was lost" in text and "FAILS" in text
    best = [line for line in text.splitlines() if line.endswith("*")]
    assert len(best) == 2 and all(" kd " in line for line in best)


def test_markup_in_names_is_text() -> None:
    spec = studies.study(
        vary={"method": {"<b>a|b</b>": {}, "kd": {"seed": 3}}},
        compare={"axis": "method", "baseline": "kd"},
        about="5 < 6 & <script>",
    )
    plan = plan_study(spec)
    values = {
        cell.jobs["learner"]: {"evaluation": {"student": {"accuracy": 0.5}}} for cell in plan.cells
    }
    results = gather(spec, plan, values)
    found = grids(spec, results, (), {})
    assert "<b>" not in as_page(spec, found, {}) and "<script>" not in as_page(spec, found, {})
    assert "\\<b\\>a\\|b" in as_markdown(spec, found)


def test_the_files_of_a_study_need_nothing_else(tmp_path: Path) -> None:
    spec = studies.study()
    results = _results(spec)
    files = write_tables(tmp_path, spec, results, (), {})
    assert {file.name for file in files} == {
        "table.md",
        "table.html",
        "table.json",
        "plot-accuracy.svg",
    }
    plain = json.loads((tmp_path / "table.json").read_text())
    assert plain["differences"][0]["difference"]["mean"] == pytest.approx(0.09)
    page = (tmp_path / "table.html").read_text()
    assert "data:image/svg+xml" in page and "http" not in page.replace("http://www.w3.org", "")
    again = {file.name: file.read_bytes() for file in files}
    write_tables(tmp_path, spec, results, (), {})
    assert {file.name: file.read_bytes() for file in files} == again


def test_tracking_is_told_the_mean_of_every_cell() -> None:
    metrics = _results(studies.study()).metrics()
    assert metrics["study/accuracy/noise 40/method kd"] == pytest.approx(0.91)
    assert len(metrics) == 4
