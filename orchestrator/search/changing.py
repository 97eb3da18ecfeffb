"""What a student's training can have changed under way, and what a population may vary. Pure.

That is what acts on the student's side at each step: the objective's numbers, and the peak of the
learning rate. All else (sizes, data, what roles are asked) is settled before the first step.
"""

from collections.abc import Callable, Mapping

from pydantic import ValidationError

from orchestrator.errors import SpecError
from orchestrator.spec import JobSpec
from orchestrator.spec.explain import nearest

from .journal import State
from .population import span
from .space import Settings, Space
from .spec import Choice, Distribution, Grid, LogUniform, Pb2Scheduler, SearchSpec, Uniform

RATE = "training.optimizer.lr"


def changeable(job: JobSpec) -> list[str]:
    """Dotted paths of the fields of a job that may be schedules."""
    objective = job.objective
    if objective.recipe is None:
        numbers = {
            f"objective.terms.{index}.{name}"
            for index, term in enumerate(objective.terms)
            if term.kind != "measure"
            for name in term.numbers()
        }
        return [RATE, *sorted(numbers)]
    recipe = objective.recipe
    named = (name for name in type(recipe).model_fields if _may_be_a_schedule(recipe, name))
    return [RATE, *(f"objective.recipe.{name}" for name in named)]


def _may_be_a_schedule(recipe: object, name: str) -> bool:
    value = getattr(recipe, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    raw = {**recipe.model_dump(mode="json"), name: {"kind": "constant", "value": value}}  # type: ignore[attr-defined]
    try:
        type(recipe).model_validate(raw)  # type: ignore[attr-defined]
    except ValidationError:
        return False
    return True


def check_population(
    spec: SearchSpec, job: JobSpec, trials: int | None, make: Callable[[Settings], JobSpec]
) -> None:
    """Refuse a population that cannot be trained as it is written.

    Args:
        spec: of the search; its scheduler keeps a population.
        job: of one trial.
        trials: members; None: without end.
        make: a trial's job from its settings.

    Raises:
        SpecError: names what is wrong, the value, the limit and the remedy.
    """
    kind = spec.scheduler.kind
    known = changeable(job)
    if not spec.space:
        raise SpecError("search.space", f"is empty, and {kind} has nothing to change", "Fill it")
    for path, distribution in spec.space.items():
        field, said = f"search.space.{path}", distribution.model_dump(mode="json")
        if path not in known:
            raise SpecError(
                field,
                f"is {said}, and {path} cannot change while a student trains, which "
                f"search.scheduler {kind} has it do",
                f"Use another scheduler, or vary what can change. {nearest(path, known)}",
            )
        _check_numbers(field, said, distribution, isinstance(spec.scheduler, Pb2Scheduler))
    for index, settings in enumerate(spec.fixed):
        _check_member(f"search.fixed.{index}", settings, spec.space, kind)
    if spec.searcher.kind != "random":
        raise SpecError(
            "search.searcher",
            f"is {spec.searcher.kind}, and {kind} finds numbers itself, from random ones on",
            "Remove it",
        )
    if trials is not None and trials < 2:
        raise SpecError(
            "search.budget.trials",
            f"is {trials}, and who is worst in a population goes on from who is best",
            "Set it to 2 or more",
        )
    _check_rounds(spec, job)
    _check_the_way(spec, job, make)


def _check_numbers(field: str, said: object, distribution: Distribution, ranges: bool) -> None:
    if isinstance(distribution, Choice | Grid):
        options = distribution.choice if isinstance(distribution, Choice) else distribution.grid
        if any(isinstance(each, bool) or not isinstance(each, int | float) for each in options):
            raise SpecError(
                field,
                f"is {said}, and numbers are what changes from step to step",
                "Write numbers alone; what changed is a schedule in the end",
            )
    if ranges and not isinstance(distribution, Uniform | LogUniform):
        raise SpecError(
            field,
            f"is {said}, and pb2 looks for numbers in whole ranges",
            "Write uniform or loguniform, or use scheduler pbt",
        )


def _check_member(field: str, settings: Settings, space: Space, kind: str) -> None:
    for path in [*settings, *space]:
        if path not in space or path not in settings:
            raise SpecError(
                f"{field}.{path}",
                "is set, and does not vary" if path in settings else "is missing",
                f"With scheduler {kind}, set each field of search.space and no other",
            )
        value, (low, high) = settings[path], span(space[path])
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            raise SpecError(
                f"{field}.{path}",
                f"is {value!r}, and search.space.{path} goes from {low:g} to {high:g}",
                "Write a number inside",
            )


def _check_rounds(spec: SearchSpec, job: JobSpec) -> None:
    every, steps = job.evaluation.every_steps, job.training.steps
    wanted: int = spec.scheduler.every_steps  # type: ignore[union-attr]
    assert every is not None and steps is not None  # as every scheduler wants them
    if wanted % every or wanted >= steps:
        raise SpecError(
            "search.scheduler.every_steps",
            f"is {wanted}, and trials are measured every {every} of their {steps} steps "
            "(evaluation.every_steps, training.steps)",
            f"Choose a multiple of {every} below {steps}",
        )


def _check_the_way(spec: SearchSpec, job: JobSpec, make: Callable[[Settings], JobSpec]) -> None:
    """A trial may come by every number, so the job must be valid on the way through all."""
    ends = {path: span(distribution) for path, distribution in spec.space.items()}
    whole = make({path: _line(low, high) for path, (low, high) in ends.items()})
    for path, (low, _) in ends.items():
        if make({path: _line(low, low)}).objective.names != whole.objective.names:
            raise SpecError(
                f"search.space.{path}",
                f"begins at {low:g}, where the recipe leaves a term out",
                "Begin above it: terms cannot come and go while a student trains",
            )
    assert whole.objective.names == job.objective.names or job.objective.recipe is not None


def _line(low: float, high: float) -> dict[str, object]:
    return {"kind": "piecewise", "points": [[0, low], [1, high]]}


def first_numbers(space: Space) -> Callable[[State], Mapping[str, float]]:
    """What tells the numbers that a trial begins with."""

    def first(state: State) -> dict[str, float]:
        return {path: float(state.settings[path]) for path in space}

    return first
