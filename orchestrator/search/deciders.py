"""The scheduler in rounds that a search has, if it has one. Pure."""

from .changing import first_numbers
from .hyperband import HyperBand, brackets
from .plan import Search, some_job
from .population import Population
from .rounds import Decider
from .spec import HyperBandScheduler, Pb2Scheduler, PbtScheduler


def decider_of(search: Search) -> Decider | None:
    """What decides between legs, for a search that was checked; None: trials go in one."""
    spec, scheduler = search.spec, search.spec.scheduler
    if not isinstance(scheduler, HyperBandScheduler | PbtScheduler | Pb2Scheduler):
        return None
    steps, every = _lengths(search)
    if isinstance(scheduler, HyperBandScheduler):
        ladder = brackets(steps, scheduler.grace_steps, scheduler.reduction, every)
        return HyperBand(tuple(ladder), steps, spec.mode)
    first = first_numbers(spec.space)
    return Population(scheduler, spec.space, first, steps, spec.mode, spec.seed)


def _lengths(search: Search) -> tuple[int, int]:
    """Steps of a run, and between two measurements; both are those of every trial."""
    job = some_job(search)
    assert job.training.steps is not None and job.evaluation.every_steps is not None
    return job.training.steps, job.evaluation.every_steps
