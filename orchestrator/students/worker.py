"""What runs in each worker of the group: take a job, train it, report, take the next."""

import os
from typing import Any

import ray

from orchestrator.errors import (
    BudgetExhausted,
    CheckpointError,
    CountsDiffer,
    Interrupted,
    NonFiniteLoss,
    SpecError,
    StillhouseError,
)

from .desk import Outcome
from .records import StudentJob

SYMMETRIC = (SpecError, CheckpointError, CountsDiffer, NonFiniteLoss, Interrupted)
"""Errors every rank reaches alike: they end the job and not the group."""


def work(config: dict[str, Any]) -> None:
    """Ray Train's function: jobs from the desk until it closes."""
    from ray import train

    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    # DeepSpeed reads these when it joins the process group that Ray Train has made.
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())
    desk: Any = ray.get_actor(config["desk"], namespace=config["namespace"])
    from .report import Reporter
    from .train import train_student

    index: int = ray.get(desk.first_open.remote())
    while (job := _take(desk, index)) is not None:
        reporter = Reporter(desk, index, job.spec.name, rank)
        try:
            outcome = Outcome(train_student(job, rank, world, reporter))
        except SYMMETRIC as error:
            outcome = Outcome({}, error)
        except StillhouseError as error:
            # This rank alone failed, for good (its client's budgets are spent). The job is over;
            # the other ranks wait for this one in a collective, so the group must start again.
            ray.get(desk.finish.remote(index, Outcome({}, error)))
            raise
        except Exception as error:
            # Ray Train starts the group again from the last checkpoint, but not for ever.
            cause = f"rank {rank}: {type(error).__name__}: {error}"
            if ray.get(desk.crashed.remote(index, cause)):
                exhausted = BudgetExhausted(f"the same error twice at the same step, {cause}")
                ray.get(desk.finish.remote(index, Outcome({}, exhausted)))
            raise
        reporter.flush()
        if rank == 0:
            ray.get(desk.finish.remote(index, outcome))
        index += 1


def _take(desk: Any, index: int) -> StudentJob | None:
    job: Any = ray.get(desk.job.remote(index))
    return job
