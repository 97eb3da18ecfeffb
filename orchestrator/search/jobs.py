"""The jobs that a trial runs: its settings, what its legs have made of them, and where they begin.

Promises: the job of a trial's end, run from its beginning, does what the trial's lineage did.
"""

from collections.abc import Callable

from orchestrator.series.folder import Folder
from orchestrator.spec import JobSpec
from orchestrator.spec.job import StartSpec
from orchestrator.spec.paths import absolute_paths

from .crew import TrialJobs
from .journal import State
from .lineage import lineage, schedules
from .plan import Search, trial_job
from .space import Settings
from .table import shown_values

StateOf = Callable[[int], State]


def settings_now(state_of: StateOf, number: int) -> Settings:
    """A trial's settings, with schedules for what has changed from leg to leg."""
    return {**state_of(number).settings, **schedules(lineage(state_of, number))}


def whole_job(search: Search, state_of: StateOf, number: int) -> JobSpec:
    """The job of a trial from its beginning, under the search's name."""
    job = trial_job(search, settings_now(state_of, number), search.name)
    seeds = search.spec.seeds or []
    return job.model_copy(update={"seed": seeds[0]}) if len(seeds) == 1 else job


def trial_jobs(search: Search, state_of: StateOf, number: int, folder: Folder) -> TrialJobs:
    """What a trial runs next: runs inside the search's folder, in tracking below its own."""
    from orchestrator.tracking import address_of

    state = state_of(number)
    job = absolute_paths(trial_job(search, settings_now(state_of, number), search.name))
    seeds = search.spec.seeds or [job.seed]
    leg = f"-{len(state.legs) - 1}" if state.legs and state.legs[-1].parent is not None else ""
    tags = {f"search.{name}": text for name, text in shown_values(state).items()}
    tracking = job.tracking.model_copy(
        update={
            "uri": job.tracking.uri or address_of(None, folder.storage).uri,
            "parent": folder.run_id,
            "register_as": None,
            "tags": {
                **job.tracking.tags,
                "search": search.name,
                "search.trial": str(number),
                **({"search.leg": leg[1:]} if leg else {}),
                **tags,
            },
        }
    )
    training = _begun(job, state_of, number, folder.runs).training

    def seeded(seed: int) -> JobSpec:
        ending = f"-s{seed}" if len(seeds) > 1 else leg
        name = f"{search.name}-t{number}{ending}"
        return job.model_copy(
            update={
                "name": name,
                "seed": seed,
                "storage": folder.runs,
                "tracking": tracking,
                "training": training,
            }
        )

    return TrialJobs(number, tuple(seeded(seed) for seed in seeds), pause_of(state, job))


def _begun(job: JobSpec, state_of: StateOf, number: int, runs: str) -> JobSpec:
    """The job from where its leg begins, if that is another run's checkpoint."""
    legs = state_of(number).legs
    if not legs or legs[-1].parent is None:
        return job
    before = state_of(legs[-1].parent).legs[len(legs) - 2]
    start = StartSpec(run=f"{runs}/{before.run_id}", step=legs[-1].begin)
    return job.model_copy(update={"training": job.training.model_copy(update={"start": start})})


def pause_of(state: State, job: JobSpec) -> int | None:
    """Steps at which a trial's leg ends; None where that is the job's end."""
    until = state.legs[-1].until if state.legs else None
    return None if until == job.training.steps else until
