"""A study file: jobs, what varies, what is measured, and what must hold in the end. Pydantic only.

Promises: every name that refers to another part of the file is checked here, and what is unknown
comes with the nearest known name. Jobs stay plain data until `plan` has made their cells.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    model_validator,
)

from orchestrator.spec import JobSpec
from orchestrator.spec.explain import nearest
from orchestrator.spec.refuse import refusal
from strategies.specs import Spec

OWNED = ("name", "storage", "tracking", "ray")
"""Parts of a job that are the same in a whole study: where it runs and is recorded."""


def _as_text(value: Any) -> Any:
    """Numbers are welcome as names of arms; `no` and `off`, which YAML reads as false, are not."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def _text_keys(value: Any) -> Any:
    return (
        {_as_text(key): each for key, each in value.items()} if isinstance(value, dict) else value
    )


def _as_list(value: Any) -> Any:
    return [_as_text(each) for each in value] if isinstance(value, list) else [_as_text(value)]


def _path_alone(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Arm = Annotated[str, BeforeValidator(_as_text), Field(min_length=1, max_length=40)]
Overrides = dict[str, Any]
"""Dotted path -> value for every job, or name of a job -> such a mapping for it alone."""
Axis = Annotated[dict[Arm, Overrides], BeforeValidator(_text_keys), Field(min_length=1)]
Where = Annotated[
    dict[str, Annotated[list[Arm], BeforeValidator(_as_list), Field(min_length=1)]],
    Field(min_length=1),
]
"""Axis -> one arm or several: the cells that have one of them on each axis named."""


class MetricSpec(Spec):
    """One number of a job's summary."""

    path: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[\w/ -]+)*$")]
    """Dotted path in the job's evaluation, such as student.accuracy."""
    source: Literal["evaluation", "summary"] = "evaluation"
    """`summary`: the path starts at the whole summary, as in pool.asked."""
    job: str | None = None
    """The job of the file that is measured; absent: the last."""
    name: str | None = None
    """In tables and assertions; absent: the path."""
    better: Literal["higher", "lower"] = "higher"
    """Which way is up."""
    percent: bool = False
    """Tables show hundred times the number."""

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name or self.path


class CompareSpec(Spec):
    """Arms of an axis against one of them, paired by seed and the arms of all other axes."""

    axis: str
    baseline: Arm


class AssertionSpec(Spec):
    """What must hold of a mean over seeds: of an arm, or of a paired difference.

    `arm` alone: the mean of the metric. `minus`: of the metric less that of another arm of the same
    axis, pair by pair; `over`: by that of the other arm. `minus_metric`: less another metric of the
    same cell. Exactly one bound.
    """

    what: str | None = None
    """Said in the table; absent: made from the fields."""
    axis: str | None = None
    """Of `arm` and `minus`; absent: the one axis that has them."""
    arm: Arm
    minus: Arm | None = None
    over: Arm | None = None
    minus_metric: str | None = None
    at: dict[str, Arm] = {}
    """Arms of other axes; an axis not named is averaged over."""
    metric: str
    """Name of a metric of this study."""
    at_least: float | None = None
    at_most: float | None = None
    equal_within: NonNegativeFloat | None = None
    """Largest distance from 0 of a difference."""
    refuted: Annotated[str, Field(min_length=1)] | None = None
    """Why it was found not to hold; it stays as supposed, and the study fails should it hold."""

    @model_validator(mode="after")
    def _has_one_bound(self) -> "AssertionSpec":
        bounds = ("at_least", "at_most", "equal_within")
        given = [name for name in bounds if getattr(self, name) is not None]
        if len(given) != 1:
            raise refusal(
                given[1] if given else "at_least",
                f"is one of {len(given)} bounds" if given else "is missing, and every other bound",
                "Give exactly one of at_least, at_most, equal_within",
            )
        if self.equal_within is not None and self.minus is None and self.minus_metric is None:
            raise refusal("equal_within", "compares nothing", "Add minus or minus_metric")
        others = [n for n in ("minus", "over", "minus_metric") if getattr(self, n) is not None]
        if len(others) > 1:
            raise refusal(others[1], f"is given beside {others[0]}", "Remove one of the two")
        return self


class StudySpec(Spec):
    """Jobs x arms x seeds over one Ray session and one cache."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    """Begins the names of its jobs; its folder lies in their storage."""
    about: str = ""
    """What the study shows and what it does not; printed above its table."""
    jobs: Annotated[list[dict[str, Any]], Field(min_length=1)]
    """As in a job file; a later one may use an earlier one's student."""
    vary: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")], Axis] = {}
    """Axis -> arm -> what the arm sets."""
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    """Repetitions of every cell."""
    seeded: Annotated[list[str], Field(min_length=1)] | dict[str, list[str]] = ["seed"]
    """Dotted paths that are given the seed, in every job or by job."""
    only: Annotated[list[Where], Field(min_length=1)] | None = None
    """Cells that fit one of these are kept; absent: all."""
    skip: list[Where] = []
    """Cells that fit one of these are left out."""
    metrics: Annotated[
        list[Annotated[MetricSpec, BeforeValidator(_path_alone)]], Field(min_length=1)
    ]
    """What the table shows."""
    compare: CompareSpec | None = None
    """What is tested against what; absent: nothing."""
    assertions: list[AssertionSpec] = []
    """Checked at the end; one that fails fails the study."""

    def job_named(self, name: str | None) -> str:
        """A job's name in the file; None means the last job."""
        return name if name is not None else str(self.jobs[-1]["name"])

    def axis_of(self, assertion: AssertionSpec) -> str:
        """The axis that an assertion's arms are on."""
        return assertion.axis or next(
            axis for axis, arms in self.vary.items() if assertion.arm in arms
        )

    def metric(self, label: str) -> MetricSpec:
        """The metric of a name."""
        return next(metric for metric in self.metrics if metric.label == label)

    # --- names that refer to other parts ---------------------------------------------------------

    @model_validator(mode="after")
    def _jobs_have_names(self) -> "StudySpec":
        names = []
        for index, job in enumerate(self.jobs):
            name = job.get("name")
            if not isinstance(name, str):
                raise refusal(f"jobs.{index}.name", "is missing", "Name the job")
            if name in JobSpec.model_fields:
                raise refusal(
                    f"jobs.{index}.name",
                    f"is {name!r}, which is also a field of jobs, so an arm that sets "
                    f"{name!r} could mean either",
                    f"Rename it, for example {name}-job",
                )
            if name in names:
                raise refusal(f"jobs.{index}.name", f"{name!r} is used twice", "Rename one job")
            names.append(name)
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> "StudySpec":
        if len(set(self.seeds)) != len(self.seeds):
            raise refusal("seeds", f"are {self.seeds}, with a repeat", "Write each seed once")
        return self

    @model_validator(mode="after")
    def _arms_set_what_may_vary(self) -> "StudySpec":
        names = [str(job["name"]) for job in self.jobs]
        for axis, arms in self.vary.items():
            for arm, overrides in arms.items():
                for job, path, _ in settings(overrides, names):
                    where = f"vary.{axis}.{arm}" + ("" if job is None else f".{job}")
                    _check_path(f"{where}.{path}", path, names)
        for job, paths in self.seeded_by_job().items():
            if job is not None and job not in names:
                raise refusal(f"seeded.{job}", "is no job of this file", nearest(job, names))
            for path in paths:
                _check_path("seeded", path, names)
        return self

    def seeded_by_job(self) -> Mapping[str | None, list[str]]:
        """Paths that take the seed, by job; None: every job."""
        if isinstance(self.seeded, dict):
            return {job: list(paths) for job, paths in self.seeded.items()}
        return {None: list(self.seeded)}

    @model_validator(mode="after")
    def _cells_are_named(self) -> "StudySpec":
        for field, entries in (("only", self.only or []), ("skip", self.skip)):
            for index, where in enumerate(entries):
                for axis, arms in where.items():
                    for arm in arms:
                        self._check_arm(f"{field}.{index}.{axis}", axis, arm)
        return self

    @model_validator(mode="after")
    def _metrics_are_named(self) -> "StudySpec":
        names = [str(job["name"]) for job in self.jobs]
        labels = [metric.label for metric in self.metrics]
        for index, metric in enumerate(self.metrics):
            if metric.job is not None and metric.job not in names:
                raise refusal(
                    f"metrics.{index}.job",
                    f"is {metric.job!r}, which is no job of this file",
                    nearest(metric.job, names),
                )
            if metric.label in labels[:index]:
                raise refusal(
                    f"metrics.{index}.name",
                    f"{metric.label!r} is used twice",
                    "Give each metric a name of its own",
                )
        return self

    @model_validator(mode="after")
    def _comparison_is_named(self) -> "StudySpec":
        if self.compare is not None:
            self._check_axis("compare.axis", self.compare.axis)
            self._check_arm("compare.baseline", self.compare.axis, self.compare.baseline)
        return self

    @model_validator(mode="after")
    def _assertions_are_named(self) -> "StudySpec":
        labels = [metric.label for metric in self.metrics]
        for index, assertion in enumerate(self.assertions):
            field = f"assertions.{index}"
            for name in ("metric", "minus_metric"):
                label = getattr(assertion, name)
                if label is not None and label not in labels:
                    raise refusal(
                        f"{field}.{name}",
                        f"is {label!r}, which is no metric of this study",
                        nearest(label, labels),
                    )
            axis = self._axis_of(assertion, field)
            for name in ("minus", "over"):
                if (arm := getattr(assertion, name)) is not None:
                    self._check_arm(f"{field}.{name}", axis, arm)
            for other, arm in assertion.at.items():
                self._check_arm(f"{field}.at.{other}", other, arm)
                if other == axis:
                    raise refusal(
                        f"{field}.at.{other}", "is the axis of the arm itself", "Remove it"
                    )
        return self

    def _axis_of(self, assertion: AssertionSpec, field: str) -> str:
        if assertion.axis is not None:
            self._check_axis(f"{field}.axis", assertion.axis)
            self._check_arm(f"{field}.arm", assertion.axis, assertion.arm)
            return assertion.axis
        fitting = [axis for axis, arms in self.vary.items() if assertion.arm in arms]
        if not fitting:
            every = [arm for arms in self.vary.values() for arm in arms]
            raise refusal(
                f"{field}.arm",
                f"is {assertion.arm!r}, which is no arm of this study",
                nearest(assertion.arm, every),
            )
        if len(fitting) > 1:
            raise refusal(
                f"{field}.arm",
                f"is {assertion.arm!r}, an arm of {' and of '.join(fitting)}",
                "Say which with axis",
            )
        return fitting[0]

    def _check_axis(self, field: str, axis: str) -> None:
        if axis not in self.vary:
            raise refusal(
                field, f"names the axis {axis!r}, which does not vary", nearest(axis, [*self.vary])
            )

    def _check_arm(self, field: str, axis: str, arm: str) -> None:
        self._check_axis(field, axis)
        if arm not in self.vary[axis]:
            raise refusal(
                field,
                f"is {arm!r}, which is no arm of {axis}",
                nearest(arm, [*self.vary[axis]]),
            )


def settings(overrides: Overrides, job_names: list[str]) -> Iterator[tuple[str | None, str, Any]]:
    """(job, dotted path, value) of what an arm sets, in order; job None: every job."""
    for key, value in overrides.items():
        if key in job_names and isinstance(value, Mapping):
            for path, inner in value.items():
                yield key, str(path), inner
        else:
            yield None, key, value


def _check_path(field: str, path: str, job_names: list[str]) -> None:
    first = path.split(".")[0]
    if first in OWNED:
        raise refusal(
            field, "belongs to the whole study", "Set it in jobs; axes and seeds cannot vary it"
        )
    if first not in JobSpec.model_fields:
        known = [*JobSpec.model_fields, *job_names]
        raise refusal(field, f"{first!r} is no field of a job and no job", nearest(first, known))
