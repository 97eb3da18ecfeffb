"""A job and what varies of it -> the jobs of trials. Pure: no file, no machine.

Promises: a search that is accepted has a valid job at every corner of its space, and no trial
begins with a job that is not valid. What all trials share (pool, place, what is measured) cannot
vary.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.evaluation.paths import USUAL
from orchestrator.spec import JobSpec
from orchestrator.spec.explain import nearest
from orchestrator.spec.load import put, unshared, validate_jobs

from .changing import check_population
from .space import Recorded, Settings, Values, combinations, corners, drawn, values_of
from .spec import Grid, HyperBandScheduler, Pb2Scheduler, PbtScheduler, SearchSpec

LONGEST_NAME = 48
"""Of a search's job: its trials' names are longer."""
MOST_CORNERS = 512

SHARED = {
    "name": "names the search",
    "storage": "is where the whole search lies",
    "tracking": "is where the whole search is recorded",
    "ray": "is where the whole search runs",
    "pool": "serves all trials",
    "cache": "is that of all trials",
    "evaluation": "is what trials are compared by",
    "roles": "are served by one pool for all trials",
    "training.workers": "is the size of the worker groups that are lent to trials",
    "training.resources": "is what the worker groups that are lent to trials take",
}
"""What cannot vary, and why."""

SUMMARY = "summary."
OF_A_ROLE = ("teacher.", "top1_agreement", "kl")
COSTS = ("parameters", "tokens", "tokens_per_s", "wall_s", "cost.student_device_s")
"""Numbers of a summary that every trial has."""


@dataclass(frozen=True, slots=True)
class Search:
    """A job, plain, and what is searched."""

    job: dict[str, Any]
    spec: SearchSpec

    @property
    def name(self) -> str:
        """The job's."""
        return str(self.job.get("name", ""))


def trial_job(
    search: Search, settings: Settings, name: str, where: str = "search.space"
) -> JobSpec:
    """The job of a trial.

    Args:
        search: whose job it is.
        settings: dotted paths -> plain values, put on the job as it is written.
        name: of the job.
        where: field of the file that the settings come from.

    Raises:
        SpecError: it is not valid; says for which settings.
    """
    raw = unshared(search.job)
    try:
        for path, value in settings.items():
            put(raw, path.split("."), unshared(value), f"{where}.{path}")
        return validate_jobs([{**raw, "name": name}])[0]
    except SpecError as error:
        field = f"{where}.{error.field}" if _varies(error.field, settings) else error.field
        raise SpecError(field, _at(error, settings), error.remedy) from None


def _varies(field: str, settings: Settings) -> bool:
    """Whether a field is set, lies in one that is, or holds one."""
    return any(f"{field}.".startswith(f"{path}.") or path.startswith(field) for path in settings)


def _at(error: SpecError, settings: Settings) -> str:
    shown = ", ".join(f"{path} {_short(value)}" for path, value in settings.items())
    return f"{error.problem} (in the trial {shown})"


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def settings_of(search: Search, values: Values) -> Settings:
    """What values come to.

    Raises:
        ValueError: they are not of this space.
    """
    return drawn(search.spec.space, Recorded(values))


def fixed_values(search: Search, settings: Settings) -> Values | None:
    """The values that a fixed trial has of what varies, its own or the job's; None: none of these
    can be drawn."""
    job = trial_job(search, settings, search.name).model_dump(mode="json", by_alias=True)
    raw = unshared(search.job)
    for path, value in settings.items():
        put(raw, path.split("."), unshared(value), path)
    try:
        return values_of(search.spec.space, lambda path: _written(raw, job, path.split(".")))
    except (ValueError, LookupError, TypeError):
        return None


def _written(raw: Any, job: Any, keys: list[str]) -> Any:
    """A field as it is written, or else its default."""
    try:
        return _found(raw, keys)
    except (LookupError, TypeError):
        return _found(job, keys)


def _found(value: Any, keys: list[str]) -> Any:
    for key in keys:
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def some_job(search: Search) -> JobSpec:
    """The job of one trial that the search may have."""
    if search.spec.fixed:
        return trial_job(search, search.spec.fixed[0], search.name, "search.fixed.0")
    return trial_job(search, settings_of(search, corners(search.spec.space, 1)[0]), search.name)


def key_of(job: JobSpec) -> str:
    """A digest of all that decides what a trial's job does, and of nothing else."""
    facts = job.model_dump(mode="json", by_alias=True)
    for name in ("name", "storage", "tracking", "ray", "pool"):
        facts.pop(name)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


# --- is it possible ------------------------------------------------------------------------------


def check_search(search: Search) -> list[JobSpec]:
    """Refuse a search that cannot be done as it is written.

    Returns:
        The jobs of the fixed trials, then those at the corners of the space.

    Raises:
        SpecError: names what is wrong, the value, the limit and the remedy.
    """
    spec = search.spec
    if len(search.name) > LONGEST_NAME:
        raise SpecError(
            "name",
            f"has {len(search.name)} letters, and that of a search {LONGEST_NAME} at most",
            "Shorten it",
        )
    named = {"space": spec.space, **{f"fixed.{i}": each for i, each in enumerate(spec.fixed)}}
    for field, paths in named.items():
        for path in paths:
            _check_may_vary(f"search.{field}.{path}", path, spec)
    fixed = [
        trial_job(search, settings, search.name, f"search.fixed.{index}")
        for index, settings in enumerate(spec.fixed)
    ]
    found = corners(spec.space, MOST_CORNERS) if spec.space else []
    varied = [trial_job(search, settings_of(search, each), search.name) for each in found]
    _check_combinations(spec, found)
    jobs = [*fixed, *varied]
    _check_goals(spec, jobs[0])
    _check_scheduler(search, jobs)
    _check_budget(search, jobs)
    if isinstance(spec.scheduler, PbtScheduler | Pb2Scheduler):
        check_population(
            spec, jobs[0], trials_of(spec), lambda each: trial_job(search, each, search.name)
        )
    return jobs


def _check_may_vary(field: str, path: str, spec: SearchSpec) -> None:
    first, _, rest = path.partition(".")
    if first not in JobSpec.model_fields:
        known = [name for name in JobSpec.model_fields if name not in SHARED]
        raise SpecError(field, f"{first!r} is no field of a job", nearest(first, known))
    if first == "roles" and rest.split(".")[1:2] == ["encoding"]:
        return
    for shared, why in SHARED.items():
        if path == shared or path.startswith(f"{shared}."):
            remedy = "Set it in the job"
            if shared == "roles":
                remedy = "Vary roles.NAME.encoding alone, or run a study"
            raise SpecError(field, f"cannot vary: {shared} {why}", remedy)
    if spec.seeds is not None and path == "seed":
        raise SpecError(field, "is given by search.seeds too", "Remove one of the two")


def _check_combinations(spec: SearchSpec, found: list[Values]) -> None:
    if spec.searcher.kind != "grid":
        return
    for values in found:
        for name, value in values.items():
            if not isinstance(value, str):
                raise SpecError(
                    f"search.space.{name}",
                    "is a range, and searcher grid goes through what is listed",
                    "Write grid or choice with the values, or use another searcher",
                )


def _check_goals(spec: SearchSpec, job: JobSpec) -> None:
    fields = ["search.metric", *(f"search.tradeoffs.{i}.metric" for i in range(len(spec.goals)))]
    known = [*_measured(job), *(SUMMARY + cost for cost in COSTS)]
    for field, goal in zip(fields, spec.goals, strict=False):
        first, _, rest = goal.metric.partition(".")
        diagnosed = first == "diagnostics" and rest.split(".")[0] in _diagnostics(job)
        if goal.metric not in known and not diagnosed:
            raise SpecError(
                field,
                f"is {goal.metric!r}, which the job's evaluation does not produce",
                nearest(goal.metric, known),
            )


def _measured(job: JobSpec) -> list[str]:
    compared = job.compared_role is not None
    usual = [path for path in sorted(USUAL) if compared or not path.startswith(OF_A_ROLE)]
    return [*usual, *(f"diagnostics.{name}" for name in _diagnostics(job))]


def _diagnostics(job: JobSpec) -> list[str]:
    return [diagnostic.title for diagnostic in job.evaluation.diagnostics]


def _check_scheduler(search: Search, jobs: list[JobSpec]) -> None:
    scheduler, first = search.spec.scheduler, jobs[0]
    if scheduler.kind == "none":
        return
    every = first.evaluation.every_steps
    if every is None:
        raise SpecError(
            "evaluation.every_steps",
            f"is absent, and search.scheduler {scheduler.kind} compares trials while they train",
            "Set it to the steps between two measurements",
        )
    if {job.training.steps for job in jobs} != {first.training.steps} or not first.training.steps:
        raise SpecError(
            "training.steps",
            f"is absent or varies, and search.scheduler {scheduler.kind} compares trials of one "
            "length",
            "Give every trial as many steps",
        )
    if isinstance(scheduler, HyperBandScheduler | PbtScheduler | Pb2Scheduler):
        _check_keeps_the_last(scheduler.kind, jobs)
    if isinstance(scheduler, PbtScheduler | Pb2Scheduler):
        return
    if not every <= scheduler.grace_steps < first.training.steps:
        raise SpecError(
            "search.scheduler.grace_steps",
            f"is {scheduler.grace_steps}, outside [{every}, {first.training.steps}) "
            "(evaluation.every_steps and training.steps)",
            "Choose a number inside",
        )


def _check_keeps_the_last(scheduler: str, jobs: list[JobSpec]) -> None:
    """Legs end where trials are compared by what they are then, and what goes on is that state."""
    for job in jobs:
        best = job.training.checkpoint.best
        if best is not None:
            raise SpecError(
                "training.checkpoint.best",
                f"keeps the best state by {best.metric}, and search.scheduler {scheduler} pauses "
                "trials and goes on from the last: a best of an earlier leg would be lost",
                "Remove it, and run best.yaml with it; or use scheduler none, asha or median",
            )


def _check_budget(search: Search, jobs: list[JobSpec]) -> None:
    spec = search.spec
    budget = spec.budget
    if trials_of(spec) is None:
        raise SpecError(
            "search.budget.trials",
            "is absent, and draws have no end",
            "Give it, or use grids alone",
        )
    if isinstance(spec.scheduler, PbtScheduler | Pb2Scheduler):
        _check_bounds_a_population(spec)
    tokens = [tokens_of(job) for job in jobs]
    known = [each for each in tokens if each is not None]
    if budget.tokens is not None and known and budget.tokens < min(known):
        raise SpecError(
            "search.budget.tokens",
            f"is {budget.tokens}, below one trial, which takes up to {min(known)} (training.steps "
            "* training.global_batch * data.context)",
            f"Set it to {min(known)} or more",
        )


def _check_bounds_a_population(spec: SearchSpec) -> None:
    for name in ("tokens", "device_s", "hours"):
        limit = getattr(spec.budget, name)
        if limit is not None:
            raise SpecError(
                f"search.budget.{name}",
                f"is {limit:g}, and stops new trials only, while all members of a population "
                f"(search.scheduler {spec.scheduler.kind}) begin before any has used something",
                "Remove it: search.budget.trials times training.steps is what a population takes",
            )


def tokens_of(job: JobSpec) -> int | None:
    """Tokens (samples of a classifier) of one run at most; None where epochs end it."""
    if job.training.steps is None:
        return None
    row = 1 if job.data.task == "classifier" else job.data.context
    return job.training.steps * job.training.global_batch * row


def trials_of(spec: SearchSpec) -> int | None:
    """Trials in all; None if nothing limits them."""
    most = spec.budget.trials
    if spec.space and not goes_through(spec):
        return most
    found = len(spec.fixed) + (len(grid_points(spec)) if spec.space else 0)
    return found if most is None else min(found, most)


def goes_through(spec: SearchSpec) -> bool:
    """Whether combinations say all of a trial, so that none needs to come twice."""
    grids = all(isinstance(each, Grid) for each in spec.space.values())
    return spec.searcher.kind == "grid" or grids


def grid_points(spec: SearchSpec) -> list[Values]:
    """The combinations that a random or grid searcher goes through, in order."""
    return combinations(spec.space, choices=spec.searcher.kind == "grid")
