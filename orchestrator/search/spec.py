"""The `search:` part of a job file: what varies, what is sought, what may be spent. Pydantic only.

Promises: everything that can be said of this part alone is checked here; what needs the job beside
it is checked by `plan`.
"""

import itertools
import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from orchestrator.spec.refuse import refusal
from strategies.specs import Spec

Pair = tuple[FiniteFloat, FiniteFloat]
Stepped = tuple[FiniteFloat, FiniteFloat, PositiveFloat]


def _check_rises(low: float, high: float) -> None:
    if low >= high:
        raise ValueError(
            f"is [{low:g}, {high:g}], whose first is not below its second; exchange them"
        )


class Uniform(Spec):
    """Any number between two, each as likely."""

    uniform: Pair
    """[low, high]"""

    @field_validator("uniform")
    @classmethod
    def _rises(cls, given: Pair) -> Pair:
        _check_rises(*given)
        return given


class LogUniform(Spec):
    """Any number between two, each order of magnitude as likely."""

    loguniform: Pair
    """[low, high], both above 0."""

    @field_validator("loguniform")
    @classmethod
    def _rises(cls, given: Pair) -> Pair:
        _check_rises(*given)
        if given[0] <= 0:
            raise ValueError(
                f"begins at {given[0]:g}, which has no logarithm; begin above 0, or use uniform"
            )
        return given


class Quantised(Spec):
    """low, low + step, ... up to high."""

    quniform: Stepped
    """[low, high, step]"""

    @field_validator("quniform")
    @classmethod
    def _has_whole_steps(cls, given: Stepped) -> Stepped:
        low, high, step = given
        _check_rises(low, high)
        steps = (high - low) / step
        if abs(steps - round(steps)) > 1e-6:
            raise ValueError(
                f"goes from {low:g} to {high:g} in steps of {step:g}, which do not end there; end "
                f"at {low + math.floor(steps) * step:g}, or change the step"
            )
        return given


class Whole(Spec):
    """Any whole number from low to high, both included."""

    integer: tuple[int, int]
    """[low, high]"""

    @field_validator("integer")
    @classmethod
    def _rises(cls, given: tuple[int, int]) -> tuple[int, int]:
        _check_rises(*given)
        return given


def _with_distributions(value: Any) -> Any:
    """A plain value with the distributions in it as models."""
    kind = kind_of(value)
    if isinstance(value, dict) and kind is not None:
        try:
            return KINDS[kind].model_validate(value)
        except ValidationError as error:
            raise _inner(error) from None
    if isinstance(value, dict):
        return {key: _below(str(key), each) for key, each in value.items()}
    if isinstance(value, list):
        return [_below(str(index), each) for index, each in enumerate(value)]
    return value


def _below(key: str, value: Any) -> Any:
    try:
        return _with_distributions(value)
    except PydanticCustomError as error:
        context = error.context or {}
        field = f"{key}.{context['field']}"
        raise refusal(field, context["problem"], context["remedy"]) from None


def _inner(error: ValidationError) -> PydanticCustomError:
    """The first error of a distribution inside a value, as one of the value."""
    detail = error.errors()[0]
    keys = ".".join(map(str, detail["loc"]))
    message = detail["msg"].removeprefix("Value error, ")
    problem, semicolon, remedy = message.rpartition("; ")
    if semicolon:
        return refusal(keys, problem, remedy[:1].upper() + remedy[1:])
    return refusal(keys, f"is {detail['input']!r}: {message.lower()}", "Change the value")


class Choice(Spec):
    """One of several values. A value may hold distributions, which are drawn where it is chosen."""

    choice: Annotated[
        list[Annotated[Any, AfterValidator(_with_distributions)]], Field(min_length=1)
    ]
    """The values: numbers, texts, or whole mappings, such as schedules of different kinds."""


class Grid(Spec):
    """Each of several values in turn, combined with those of every other grid."""

    grid: Annotated[list[Any], Field(min_length=1)]
    """The values, plain."""


KINDS: dict[str, type[Spec]] = {
    "uniform": Uniform,
    "loguniform": LogUniform,
    "quniform": Quantised,
    "integer": Whole,
    "choice": Choice,
    "grid": Grid,
}


def kind_of(value: Any) -> str | None:
    """The kind of distribution that a plain value or a model is; None: it is none."""
    if isinstance(value, Spec):
        return next((kind for kind, model in KINDS.items() if type(value) is model), None)
    if isinstance(value, dict) and len(value) == 1:
        (key,) = value
        return key if key in KINDS else None
    return None


Distribution = Annotated[
    Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("loguniform")]
    | Annotated[Quantised, Tag("quniform")]
    | Annotated[Whole, Tag("integer")]
    | Annotated[Choice, Tag("choice")]
    | Annotated[Grid, Tag("grid")],
    Discriminator(
        kind_of,
        custom_error_type="distribution",
        custom_error_message=(
            "no distribution; write a mapping with one key of uniform, loguniform, quniform, "
            "integer, choice, grid"
        ),
    ),
]


class GoalSpec(Spec):
    """One number of a trial that should be small, or large."""

    metric: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[\w/ -]+)*$")]
    """Dotted path in the evaluation, such as student.loss; after `summary.`, in the summary."""
    mode: Literal["min", "max"]
    """Which way is better."""


class BudgetSpec(Spec):
    """What may be spent. No trial begins once one limit is reached; those that run are finished."""

    trials: PositiveInt | None = None
    """Trials in all; absent: those of `fixed` and, with grids alone, each combination once."""
    tokens: PositiveInt | None = None
    """Tokens trained on, over all trials."""
    device_s: PositiveFloat | None = None
    """Device-seconds of students and of the pool."""
    hours: PositiveFloat | None = None
    """Since the search was first begun, without the time between an end and a resume."""


class RandomSearcher(Spec):
    """Draws that know nothing of each other; grids are gone through in order."""

    kind: Literal["random"] = "random"


class GridSearcher(Spec):
    """Every combination of grids and choices, each once."""

    kind: Literal["grid"]


class TpeSearcher(Spec):
    """Optuna's tree-structured Parzen estimator; also for several goals."""

    kind: Literal["tpe"]
    startup_trials: PositiveInt = 10
    """Random draws before the first that learns."""


class CmaEsSearcher(Spec):
    """Optuna's covariance matrix adaptation, of one goal; choices are drawn at random."""

    kind: Literal["cmaes"]
    startup_trials: PositiveInt = 1
    """Random draws before the first that learns."""


SearcherSpec = Annotated[
    RandomSearcher | GridSearcher | TpeSearcher | CmaEsSearcher, Field(discriminator="kind")
]


class NoScheduler(Spec):
    """Every trial goes to its end."""

    kind: Literal["none"] = "none"


class AshaScheduler(Spec):
    """Asynchronous successive halving: at each rung the best go on. arXiv:1810.05934."""

    kind: Literal["asha"]
    grace_steps: PositiveInt
    """Optimiser steps that every trial gets: the first rung."""
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """One in so many goes on at each rung, and rungs are so many times apart."""
    brackets: PositiveInt = 1
    """Ladders of rungs, each beginning one rung later; trials are spread over them."""


class MedianScheduler(Spec):
    """Stops a trial whose best is worse than the median of the others' means up to that step."""

    kind: Literal["median"]
    grace_steps: PositiveInt
    """Optimiser steps that every trial gets."""
    min_trials: PositiveInt = 3
    """Other trials that must have come as far."""


class HyperBandScheduler(Spec):
    """Brackets of trials, halved at rungs, from many short trials to few whole ones.

    JMLR 18 (2018), Li et al.
    """

    kind: Literal["hyperband"]
    grace_steps: PositiveInt
    """Fewest optimiser steps that a trial gets."""
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """One in so many goes on at each rung."""


class _Population(Spec):
    every_steps: PositiveInt
    """Optimiser steps between two exchanges; a multiple of evaluation.every_steps."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the population that is replaced at each exchange, one trial at least."""


class PbtScheduler(_Population):
    """Population-based training: the worst go on from the best, with numbers moved.

    arXiv:1711.09846. All trials begin alike but for the numbers of `space`.
    """

    kind: Literal["pbt"]
    resample: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of moved numbers that are drawn anew instead."""
    factors: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.8, 1.2]
    """What others are multiplied by, one of them."""


class Pb2Scheduler(_Population):
    """The same, with numbers chosen by a Gaussian process from what all have gained.

    arXiv:2002.02518.
    """

    kind: Literal["pb2"]


SchedulerSpec = Annotated[
    NoScheduler
    | AshaScheduler
    | MedianScheduler
    | HyperBandScheduler
    | PbtScheduler
    | Pb2Scheduler,
    Field(discriminator="kind"),
]


def _kind_alone(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class SearchSpec(Spec):
    """Many trials of the job beside it, over one pool and one cache."""

    space: dict[str, Distribution] = {}
    """Dotted path of a field of the job -> how its values are drawn."""
    fixed: list[Annotated[dict[str, Any], Field(min_length=1)]] = []
    """Trials that come first: dotted paths -> values, each on the job as it is written."""
    metric: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[\w/ -]+)*$")] = "student.loss"
    """What is sought: a dotted path in the evaluation; after `summary.`, in the summary."""
    mode: Literal["min", "max"] = "min"
    """Which way is better."""
    tradeoffs: list[GoalSpec] = []
    """Further goals, none of which outweighs another: the Pareto front is told."""
    budget: BudgetSpec = BudgetSpec()
    """What may be spent."""
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    """Each trial is run once with each, and judged by the mean; absent: the job's own seed."""
    searcher: Annotated[SearcherSpec, BeforeValidator(_kind_alone)] = RandomSearcher()
    """Who chooses what is tried."""
    scheduler: Annotated[SchedulerSpec, BeforeValidator(_kind_alone)] = NoScheduler()
    """Who stops trials early."""
    concurrency: PositiveInt | None = None
    """Trials side by side; absent: as many as the cluster holds beside the pool."""
    retries: NonNegativeInt = 1
    """Times a run that fails is tried again, from its checkpoint where there is one."""
    seed: NonNegativeInt = 0
    """Of the draws."""

    @property
    def goals(self) -> list[GoalSpec]:
        """All goals, the first one first."""
        return [GoalSpec(metric=self.metric, mode=self.mode), *self.tradeoffs]

    @model_validator(mode="after")
    def _paths_are_apart(self) -> "SearchSpec":
        for one, other in itertools.permutations(self.space, 2):
            if other.startswith(f"{one}."):
                raise refusal(
                    f"space.{other}", f"lies inside {one}, which varies too", "Remove one"
                )
        return self

    @model_validator(mode="after")
    def _something_is_tried(self) -> "SearchSpec":
        if not self.space and not self.fixed:
            raise refusal("space", "is empty, and fixed too", "Say what varies")
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> "SearchSpec":
        if self.seeds is not None and len(set(self.seeds)) != len(self.seeds):
            raise refusal("seeds", f"are {self.seeds}, with a repeat", "Write each seed once")
        return self

    @model_validator(mode="after")
    def _goals_differ(self) -> "SearchSpec":
        named = [goal.metric for goal in self.goals]
        for index, metric in enumerate(named[1:]):
            if metric in named[: index + 1]:
                raise refusal(f"tradeoffs.{index}.metric", f"{metric} is given twice", "Remove one")
        return self

    @model_validator(mode="after")
    def _stopping_has_one_measure(self) -> "SearchSpec":
        if self.scheduler.kind == "none":
            return self
        if self.tradeoffs:
            raise refusal(
                "scheduler",
                f"is {self.scheduler.kind}, which compares trials by one goal, and there are "
                f"{len(self.goals)}",
                "Remove it, or tradeoffs",
            )
        if self.seeds is not None and len(self.seeds) > 1:
            raise refusal(
                "scheduler",
                f"is {self.scheduler.kind}, which stops runs midway, and a trial is the mean of "
                f"{len(self.seeds)} seeds",
                "Remove it, or give one seed",
            )
        if self.metric.startswith("summary."):
            raise refusal(
                "scheduler",
                f"is {self.scheduler.kind}, and {self.metric} is known at a run's end only",
                "Remove it, or seek a metric of the evaluation",
            )
        return self

    @model_validator(mode="after")
    def _searcher_can_do_it(self) -> "SearchSpec":
        if self.searcher.kind == "cmaes" and self.tradeoffs:
            raise refusal(
                "searcher", f"is cmaes, for one goal, and there are {len(self.goals)}", "Use tpe"
            )
        if self.searcher.kind in ("tpe", "cmaes"):
            for path, found in self.space.items():
                if isinstance(found, Grid):
                    raise refusal(
                        f"space.{path}",
                        f"is a grid, and searcher {self.searcher.kind} chooses for itself",
                        "Write choice, or use searcher random or grid",
                    )
        return self


STEP = "step"
"""Optimiser steps done, in what Ray Tune hears of a trial."""


def goal_name(index: int) -> str:
    """What a goal is called there."""
    return f"goal_{index}"
