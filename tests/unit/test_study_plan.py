"""Cells and jobs of a study: each job once, after what it needs, with a name that tells."""

import re

import pytest
import studies

from orchestrator.errors import SpecError
from orchestrator.study.lanes import Board, choose, left_s
from orchestrator.study.plan import StudyPlan, plan_study

NAMES = {
    "small-teacher-0-s0",
    "small-teacher-40-s0",
    "small-learner-0-ce-s0",
    "small-learner-0-kd-s0",
    "small-learner-40-ce-s0",
    "small-learner-40-kd-s0",
}


def _plan(**changes: object) -> StudyPlan:
    return plan_study(studies.study(**changes))


def _named(plan: StudyPlan, name: str) -> str:
    return next(job.key for job in plan.jobs if job.name == name)


def test_a_job_that_does_not_depend_on_an_axis_is_made_once() -> None:
    plan = _plan()
    assert len(plan.cells) == 8
    assert {job.name for job in plan.jobs} == NAMES | {name[:-1] + "1" for name in NAMES}
    shared = {cell.jobs["teacher"] for cell in plan.cells if cell.arms["noise"] == "40"}
    assert len(shared) == 2, "one teacher a seed, whatever the method"


def test_arms_that_set_the_same_are_one_job() -> None:
    arms = {"none": {}, "zero": {"data.corrupt.label_noise": 0.0}}
    plan = _plan(vary={"noise": arms}, compare=None)
    assert [job.name for job in plan.jobs if job.template == "learner"] == [
        "small-learner-s0",
        "small-learner-s1",
    ]
    assert len(plan.cells) == 4


def test_jobs_that_are_equal_are_one_whatever_they_are_called() -> None:
    raw = studies.raw_study(vary={}, compare=None, seeds=[0])
    raw["jobs"][1] = {**raw["jobs"][0], "name": "learner"}
    plan = plan_study(studies.study(**raw))
    assert [job.name for job in plan.jobs] == ["small-teacher-s0"]
    assert plan.cells[0].jobs["learner"] == plan.cells[0].jobs["teacher"]


def test_a_role_that_nobody_asks_ties_a_job_to_no_teacher() -> None:
    vary = {
        "method": {"ce": {}, "kd": {"learner": {"objective.terms": studies.KD}}},
        "teacher": {"short": {}, "long": {"teacher": {"training.epochs": 9}}},
    }
    plan = _plan(vary=vary)
    plain = [job for job in plan.jobs if job.template == "learner" and not job.needs]
    assert {job.name for job in plain} == {"small-learner-ce-short-s0", "small-learner-ce-short-s1"}
    assert all(job.spec.roles == {} for job in plain)
    taught = [job for job in plan.jobs if job.template == "learner" and job.needs]
    assert len(taught) == 4


def test_roles_name_the_jobs_of_their_own_cell() -> None:
    plan = _plan()
    for cell in plan.cells:
        learner = plan.job(cell.jobs["learner"])
        if cell.arms["method"] == "kd":
            teacher = plan.job(cell.jobs["teacher"])
            assert learner.spec.roles["teacher"].job == teacher.name
            assert learner.needs == (teacher.key,)
            assert learner.spec.data == teacher.spec.data
            assert learner.spec.seed == teacher.spec.seed == cell.seed


def test_students_of_a_teacher_follow_it() -> None:
    names = [job.name for job in _plan(seeds=[0]).jobs]
    assert names.index("small-learner-40-kd-s0") == names.index("small-teacher-40-s0") + 1


def test_only_and_skip_choose_cells() -> None:
    plan = _plan(only=[{"noise": 40}], skip=[{"method": ["ce"]}])
    assert [dict(cell.arms) for cell in plan.cells] == [{"noise": "40", "method": "kd"}] * 2
    with pytest.raises(SpecError, match="leaves no cell"):
        _plan(skip=[{"noise": [0, 40]}])


def test_a_seed_goes_where_the_study_says() -> None:
    plan = _plan(seeded={"learner": ["seed", "data.corrupt.seed"]})
    assert {job.spec.seed for job in plan.jobs if job.template == "teacher"} == {0}
    learners = [job.spec for job in plan.jobs if job.template == "learner"]
    assert {(spec.seed, spec.data.corrupt.seed) for spec in learners} == {(0, 0), (1, 1)}


def test_names_are_valid_even_where_arms_are_long() -> None:
    long = {f"{'Very Long Arm ' * 2}{i}": {"training.epochs": i + 1} for i in range(3)}
    also = {f"another rather long name {i}": {"training.threads": i + 1} for i in range(2)}
    plan = _plan(vary={"first": long, "second": also}, compare=None)
    names = [job.name for job in plan.jobs]
    assert len(set(names)) == len(names) == 24
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name) for name in names)


def test_a_cell_that_is_no_valid_job_says_which() -> None:
    vary = {"batch": {"good": {}, "odd": {"learner": {"training.global_batch": 33}}}}
    with pytest.raises(SpecError, match=r"jobs\.1\.training\.global_batch.*cell batch odd, seed 0"):
        _plan(vary=vary, compare=None)


def test_jobs_of_one_study_are_recorded_in_one_place() -> None:
    raw = studies.raw_study()
    raw["jobs"][1]["storage"] = "/elsewhere"
    with pytest.raises(SpecError, match=r"learner\.storage"):
        plan_study(studies.study(**raw))


# --- lanes ---------------------------------------------------------------------------------------


def test_a_lane_stays_with_the_teacher_it_has_made() -> None:
    plan = _plan(seeds=[0])
    teacher = plan.job(_named(plan, "small-teacher-40-s0"))
    board = Board(done=frozenset({teacher.key}))
    found = choose(plan, board, teacher, [])
    assert found is not None and found.name == "small-learner-40-kd-s0"


def test_a_second_lane_takes_another_teacher() -> None:
    plan = _plan(seeds=[0])
    first = choose(plan, Board(), None, [])
    assert first is not None and first.name == "small-teacher-0-s0"
    second = choose(plan, Board(running=frozenset({first.key})), None, [first])
    assert second is not None and second.key != first.key and second.key not in first.needs


def test_what_needs_a_failed_job_is_blocked_and_the_rest_is_not() -> None:
    plan = _plan(seeds=[0])
    board = Board(failed=frozenset({_named(plan, "small-teacher-40-s0")}))
    assert board.blocked(plan) == {_named(plan, "small-learner-40-kd-s0")}
    assert len(board.waiting(plan)) == 4


def test_the_time_left_counts_what_like_jobs_took() -> None:
    plan = _plan(seeds=[0])
    teacher, learner = (
        _named(plan, f"small-{name}") for name in ("teacher-0-s0", "learner-0-ce-s0")
    )
    board = Board(done=frozenset({teacher, learner}))
    assert left_s(plan, Board(), {}, 1) is None
    found = left_s(plan, board, {teacher: 2.0, learner: 10.0}, 2)
    assert found == pytest.approx((2.0 + 3 * 10.0) / 2)
