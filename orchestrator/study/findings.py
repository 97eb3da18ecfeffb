"""What a study's assertions came to. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .numbers import Mean, Point, Results, by_seed, differences_of, mean_of, paired, values_of
from .spec import AssertionSpec, StudySpec


@dataclass(frozen=True, slots=True)
class Checked:
    """One assertion, with the number it is about."""

    what: str
    bound: str  # such as ">= 0.04"
    found: Mean | None  # None: no cell that it is about is done, or a ratio is to 0
    holds: bool
    refuted: str | None  # why it was found not to hold, when the study was written
    as_known: bool  # measured, and it holds unless refuted


def check_assertions(study: StudySpec, results: Results) -> tuple[Checked, ...]:
    """Every assertion of a study, in order."""
    return tuple(_checked(study, assertion, results.points) for assertion in study.assertions)


def _checked(study: StudySpec, assertion: AssertionSpec, points: Sequence[Point]) -> Checked:
    values = _values(study, assertion, points)
    found = mean_of(values) if values and all(map(math.isfinite, values)) else None
    holds = found is not None and _within(assertion, found.mean)
    return Checked(
        what=assertion.what or _said(study, assertion),
        bound=_bound(assertion),
        found=found,
        holds=holds,
        refuted=assertion.refuted,
        as_known=found is not None and holds == (assertion.refuted is None),
    )


def _values(study: StudySpec, assertion: AssertionSpec, points: Sequence[Point]) -> list[float]:
    axis, metric = study.axis_of(assertion), assertion.metric
    at = tuple(assertion.at.items())
    if assertion.minus is not None:
        return differences_of(points, axis, assertion.arm, assertion.minus, metric, at)
    if assertion.over is not None:
        return paired(points, axis, assertion.arm, assertion.over, metric, at, _ratio)
    wanted = {(axis, assertion.arm), *at}
    here = [p for p in points if wanted.issubset(p.setting) and metric in p.values]
    less = assertion.minus_metric
    if less is None:
        return values_of(here, metric)
    return by_seed(
        (p.seed, (p.measured[metric], p.measured[less]), p.values[metric] - p.values[less])
        for p in here
        if less in p.values
    )


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else math.nan


def _within(assertion: AssertionSpec, value: float) -> bool:
    if assertion.at_least is not None:
        return value >= assertion.at_least
    if assertion.at_most is not None:
        return value <= assertion.at_most
    assert assertion.equal_within is not None  # the spec has exactly one bound
    return abs(value) <= assertion.equal_within


def _bound(assertion: AssertionSpec) -> str:
    if assertion.at_least is not None:
        return f">= {assertion.at_least:g}"
    if assertion.at_most is not None:
        return f"<= {assertion.at_most:g}"
    return f"within {assertion.equal_within:g} of 0"


def _said(study: StudySpec, assertion: AssertionSpec) -> str:
    less = f" - {assertion.minus}" if assertion.minus is not None else ""
    less += f" / {assertion.over}" if assertion.over is not None else ""
    metric = assertion.metric
    if assertion.minus_metric is not None:
        metric += f" - {assertion.minus_metric}"
    at = ", ".join(f"{axis} {arm}" for axis, arm in assertion.at.items())
    return f"{assertion.arm}{less}: {metric}" + (f" at {at}" if at else "")
