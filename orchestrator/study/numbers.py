"""Summaries of jobs -> means, standard errors and paired tests. Pure; scipy when a test is made.

Promises: nothing is imputed; a number that is not there is left out and n says so. A job that
several cells share is one measurement: it counts once in a mean, never against itself, and
differences over several settings are averaged within a seed, so that n is that of seeds. A
statistic that is not defined (one seed, no spread at all) is None, never 0 or 1.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from orchestrator.evaluation.paths import number_at

from .plan import Arms, StudyPlan
from .spec import MetricSpec, StudySpec

Setting = tuple[tuple[str, str], ...]
"""Pairs of axis and arm."""


@dataclass(frozen=True, slots=True)
class Point:
    """What one cell measured."""

    setting: Setting
    seed: int
    values: Mapping[str, float]  # by metric; one that is not there was not measured
    missing: tuple[str, ...]  # keys of jobs that are not done
    measured: Mapping[str, str]  # by metric: key of the job whose student it is about

    def arm(self, axis: str) -> str:
        """Its arm of an axis."""
        return dict(self.setting)[axis]

    def without(self, axis: str) -> Setting:
        """Its arms of all other axes."""
        return tuple(pair for pair in self.setting if pair[0] != axis)


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds."""

    n: int
    mean: float
    error: float | None  # standard error of the mean; None: one value has none


@dataclass(frozen=True, slots=True)
class Row:
    """One setting of all axes."""

    setting: Setting
    seeds: int  # cells wanted
    done: int  # cells whose jobs are done
    means: Mapping[str, Mean]  # by metric


@dataclass(frozen=True, slots=True)
class Difference:
    """An arm less the baseline, pair by pair."""

    metric: str
    arm: str
    at: Setting | None  # arms of the other axes; None: all pairs together
    difference: Mean
    p: float | None  # two-sided paired t-test; None: not defined


@dataclass(frozen=True, slots=True)
class Variance:
    """One-way analysis of variance over the arms of the compared axis."""

    metric: str
    at: Setting
    f: float
    p: float
    groups: int
    n: int


@dataclass(frozen=True, slots=True)
class Results:
    """All numbers of a study."""

    points: tuple[Point, ...]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    variances: tuple[Variance, ...]

    def metrics(self) -> dict[str, float]:
        """Means of settings by metric name, for tracking."""
        return {
            "/".join(["study", metric, *(f"{axis} {arm}" for axis, arm in row.setting)]): mean.mean
            for row in self.rows
            for metric, mean in row.means.items()
        }


def gather(
    study: StudySpec, plan: StudyPlan, summaries: Mapping[str, Mapping[str, Any]]
) -> Results:
    """The numbers of what is done.

    Args:
        study: what to measure and compare.
        plan: its cells and jobs.
        summaries: of the jobs that are done, by key.
    """
    points = tuple(_points(study, plan, summaries))
    compare = study.compare
    differences, variances = [], []
    for metric in [metric.label for metric in study.metrics] if compare is not None else []:
        assert compare is not None
        arms = [arm for arm in study.vary[compare.axis] if arm != compare.baseline]
        places = list(dict.fromkeys(point.without(compare.axis) for point in points))
        for at in [*places, *([None] if len(places) > 1 else [])]:
            for arm in arms:
                pairs = differences_of(points, compare.axis, arm, compare.baseline, metric, at)
                if pairs:
                    differences.append(Difference(metric, arm, at, mean_of(pairs), paired_p(pairs)))
        for at in places:
            found = _variance(points, compare.axis, metric, at)
            if found is not None:
                variances.append(found)
    return Results(points, tuple(_rows(points)), tuple(differences), tuple(variances))


def value_of(summary: Mapping[str, Any], metric: MetricSpec) -> float | None:
    """A metric's number in a summary; None if there is none."""
    found = summary if metric.source == "summary" else summary.get("evaluation")
    return number_at(found, metric.path)


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and standard error.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no value has no mean; leave it out")
    n = len(values)
    return Mean(n, fmean(values), stdev(values) / math.sqrt(n) if n > 1 else None)


def differences_of(
    points: Sequence[Point], axis: str, arm: str, minus: str, metric: str, at: Setting | None
) -> list[float]:
    """An arm less another; see `paired`."""
    return paired(points, axis, arm, minus, metric, at, lambda ours, theirs: ours - theirs)


def paired(
    points: Sequence[Point],
    axis: str,
    arm: str,
    baseline: str,
    metric: str,
    at: Setting | None,
    compared: Callable[[float, float], float],
) -> list[float]:
    """Two arms compared, over cells that are alike in seed and all other axes; one number a seed.

    Of a seed with several pairs it is their mean. Pairs of the same two jobs count once, and a job
    is not compared with itself.

    Args:
        points: all.
        axis: of both arms.
        arm: what is compared.
        baseline: with what.
        metric: its name.
        at: arms that other axes must have; None: any.
        compared: of the two numbers of a pair.
    """
    wanted = set(at or ())

    def of(chosen: str) -> dict[tuple[Setting, int], Point]:
        return {
            (point.without(axis), point.seed): point
            for point in points
            if point.arm(axis) == chosen
            and metric in point.values
            and wanted.issubset(point.setting)
        }

    theirs = of(baseline)
    found: list[Found] = []
    for place, one in of(arm).items():
        other = theirs.get(place)
        if other is not None and other.measured[metric] != one.measured[metric]:
            jobs = one.measured[metric], other.measured[metric]
            found.append((one.seed, jobs, compared(one.values[metric], other.values[metric])))
    return by_seed(found)


Found = tuple[int, tuple[str, ...], float]
"""A seed, the jobs that a number comes from, and the number."""


def by_seed(found: Iterable[Found]) -> list[float]:
    """One number a seed, the mean of what it has; what comes from the same jobs counts once."""
    distinct: dict[tuple[str, ...], tuple[int, float]] = {}
    for seed, jobs, value in found:
        distinct.setdefault(jobs, (seed, value))
    seeds: dict[int, list[float]] = {}
    for seed, value in distinct.values():
        seeds.setdefault(seed, []).append(value)
    return [fmean(values) for values in seeds.values()]


def values_of(points: Iterable[Point], metric: str) -> list[float]:
    """A metric over some points, one number a seed."""
    there = [point for point in points if metric in point.values]
    return by_seed((p.seed, (p.measured[metric],), p.values[metric]) for p in there)


def paired_p(differences: Sequence[float]) -> float | None:
    """P of a two-sided paired t-test that the mean difference is 0; None if it is not defined."""
    if len(differences) < 2 or not _spread(differences):
        return None
    from scipy import stats

    found: Any = stats.ttest_1samp(differences, 0.0)
    return float(found.pvalue)


def _spread(values: Sequence[float]) -> bool:
    """Whether values differ by more than rounding."""
    return stdev(values) > 1e-12 * max(map(abs, values))


def _variance(points: Sequence[Point], axis: str, metric: str, at: Setting) -> Variance | None:
    arms: dict[str, dict[str, float]] = {}  # by arm and job: what is measured once counts once
    for point in points:
        if point.without(axis) == at and metric in point.values:
            arms.setdefault(point.arm(axis), {})[point.measured[metric]] = point.values[metric]
    jobs = [job for group in arms.values() for job in group]
    if len(set(jobs)) < len(jobs):
        return None  # arms that share a measurement are not independent
    whole = [list(group.values()) for group in arms.values() if len(group) > 1]
    if len(whole) < 3 or not any(map(_spread, whole)):
        return None  # of two groups the paired test says more
    if not _spread([fmean(group) for group in whole]):
        return None  # F would be rounding over rounding
    from scipy import stats

    found: Any = stats.f_oneway(*whole)
    n = sum(map(len, whole))
    return Variance(metric, at, float(found.statistic), float(found.pvalue), len(whole), n)


def _points(
    study: StudySpec, plan: StudyPlan, summaries: Mapping[str, Mapping[str, Any]]
) -> Iterator[Point]:
    for cell in plan.cells:
        missing = tuple(key for key in cell.jobs.values() if key not in summaries)
        values, measured = {}, {}
        for metric in study.metrics:
            key = cell.jobs[study.job_named(metric.job)]
            summary = summaries.get(key)
            value = None if summary is None else value_of(summary, metric)
            if value is not None:
                values[metric.label] = value
                measured[metric.label] = _measured_on(plan, key, metric)
        yield Point(_setting(cell.arms), cell.seed, values, missing, measured)


def _measured_on(plan: StudyPlan, key: str, metric: MetricSpec) -> str:
    """The job whose student a number is about: a role's may be an earlier one, which several
    learners measure alike."""
    job = plan.job(key)
    role = job.spec.roles.get(metric.path.partition(".")[0])
    if metric.source == "summary" or role is None:
        return key
    return next((need for need in job.needs if plan.job(need).name == role.job), key)


def _setting(arms: Arms) -> Setting:
    return tuple(arms.items())


def _rows(points: Sequence[Point]) -> Iterator[Row]:
    for setting in dict.fromkeys(point.setting for point in points):
        here = [point for point in points if point.setting == setting]
        labels = dict.fromkeys(label for point in here for label in point.values)
        means = {label: mean_of(values_of(here, label)) for label in labels}
        yield Row(setting, len(here), sum(not point.missing for point in here), means)
