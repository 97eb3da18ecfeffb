"""Laws of a study's plan: whatever varies, each job is made once and after what it needs."""

import itertools
import re
from typing import Any

import hypothesis.strategies as st
import studies
from hypothesis import given, settings

from orchestrator.study.lanes import Board, choose
from orchestrator.study.load import study_of, study_yaml
from orchestrator.study.numbers import differences_of, gather, mean_of
from orchestrator.study.plan import PlannedJob, StudyPlan, plan_study
from orchestrator.study.spec import StudySpec

ARM_NAMES = st.text("abC. 0é", min_size=1, max_size=12)
SETTINGS: list[dict[str, Any]] = [
    {},
    {"training.threads": 2},
    {"data.corrupt.label_noise": 0.3},
    {"teacher": {"training.epochs": 5}},
    {"learner": {"objective.terms": studies.KD}},
    {"learner": {"objective.terms": studies.KD, "training.epochs": 4}},
]


@st.composite
def drawn_studies(draw: st.DrawFn) -> StudySpec:
    axes = draw(st.lists(st.sampled_from(["one", "two", "three"]), max_size=3, unique=True))
    vary = {
        axis: draw(st.dictionaries(ARM_NAMES, st.sampled_from(SETTINGS), min_size=1, max_size=3))
        for axis in axes
    }
    seeds = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
    seeded = draw(st.sampled_from([["seed"], {"learner": ["seed"]}]))
    return studies.study(vary=vary, compare=None, seeds=seeds, seeded=seeded)


def _bare(job: PlannedJob, plan: StudyPlan) -> dict[str, Any]:
    """What a job is, without any name: those it refers to in their place."""
    facts = job.spec.model_dump(mode="json")
    facts.pop("name")
    named = {each.name: each for each in plan.jobs}
    for model in (facts["student"], *facts["roles"].values()):
        if model["job"] is not None:
            model["job"] = _bare(named[model["job"]], plan)
    return facts


@settings(max_examples=25, deadline=None)
@given(drawn_studies())
def test_each_job_is_made_once_and_after_what_it_needs(study: StudySpec) -> None:
    plan = plan_study(study)
    bare = [_bare(job, plan) for job in plan.jobs]
    assert all(bare.count(each) == 1 for each in bare)
    place = {job.key: index for index, job in enumerate(plan.jobs)}
    assert all(place[need] < place[job.key] for job in plan.jobs for need in job.needs)
    assert {key for cell in plan.cells for key in cell.jobs.values()} >= set(place)
    expected = len(study.seeds)
    for arms in study.vary.values():
        expected *= len(arms)
    assert len(plan.cells) == expected


@settings(max_examples=25, deadline=None)
@given(drawn_studies())
def test_names_are_valid_unique_and_the_same_every_time(study: StudySpec) -> None:
    plan = plan_study(study)
    names = [job.name for job in plan.jobs]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name) for name in names)
    again = plan_study(study_of(study.model_dump(mode="json")))
    assert [(job.key, job.name) for job in again.jobs] == [(job.key, job.name) for job in plan.jobs]


@settings(max_examples=25, deadline=None)
@given(drawn_studies())
def test_students_of_one_teacher_are_side_by_side(study: StudySpec) -> None:
    pools = [job.pool for job in plan_study(study).jobs if job.needs]
    changes = sum(a != b for a, b in itertools.pairwise(pools))
    assert changes == max(0, len(set(pools)) - 1)


@settings(max_examples=25, deadline=None)
@given(drawn_studies(), st.integers(1, 4), st.randoms(use_true_random=False))
def test_lanes_do_every_job_once_in_whatever_order_they_end(
    study: StudySpec, lanes: int, random: Any
) -> None:
    plan = plan_study(study)
    done: set[str] = set()
    running: dict[int, PlannedJob] = {}
    last: dict[int, PlannedJob] = {}
    began: list[str] = []
    while len(done) < len(plan.jobs):
        for lane in range(lanes):
            if lane not in running:
                keys = frozenset(job.key for job in running.values())
                board = Board(frozenset(done), frozenset(), keys)
                job = choose(plan, board, last.get(lane), list(running.values()))
                if job is not None:
                    assert done.issuperset(job.needs)
                    running[lane] = job
                    began.append(job.key)
        lane = random.choice(sorted(running))  # raises if nothing runs: a lane waits for ever
        last[lane] = running.pop(lane)
        done.add(last[lane].key)
    assert sorted(began) == sorted(job.key for job in plan.jobs)


@settings(max_examples=25, deadline=None)
@given(drawn_studies())
def test_a_study_written_out_is_the_same_study(study: StudySpec) -> None:
    import yaml

    assert study_of(yaml.safe_load(study_yaml(study))) == study


VALUES = st.floats(-1e3, 1e3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=6))
def test_a_mean_difference_is_the_difference_of_means(pairs: list[tuple[float, float]]) -> None:
    spec = studies.study(
        vary={"method": studies.raw_study()["vary"]["method"]}, seeds=list(range(len(pairs)))
    )
    plan = plan_study(spec)
    columns = zip(*pairs, strict=True)
    ce, kd = (dict(enumerate(column)) for column in columns)
    results = gather(spec, plan, studies.measured(spec, ce=ce, kd=kd))
    (found,) = results.differences
    expected = mean_of(list(kd.values())).mean - mean_of(list(ce.values())).mean
    assert abs(found.difference.mean - expected) < 1e-9
    other = differences_of(results.points, "method", "ce", "kd", "accuracy", None)
    assert abs(mean_of(other).mean + found.difference.mean) < 1e-9
    assert found.p is None or 0 <= found.p <= 1
