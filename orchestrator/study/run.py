"""Run a study: its jobs through the ordinary runner, side by side, in one Ray session.

Promises: a study that was killed goes on with what is done; a job that fails is tried once more and
then reported, and the others go on; the table says what is missing. Everything wrong with the file
is found before anything starts. Heavy imports wait until then.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import Interrupted, SpecError
from orchestrator.evaluation.paths import USUAL, paths_of
from orchestrator.events import Event, JobEnded, Warned
from orchestrator.series.drivers import Drivers
from orchestrator.series.folder import Folder, local_storage
from orchestrator.series.journal import Journal
from orchestrator.series.rest import send_rest
from orchestrator.spec import JobSpec
from orchestrator.spec.explain import nearest
from orchestrator.spec.job import TrackingSpec
from orchestrator.spec.paths import absolute_paths

from .crew import Crew, still_there
from .findings import Checked, check_assertions
from .folder import open_folder
from .journal import Entry, Told, open_journal
from .load import study_yaml
from .numbers import Results, gather, value_of
from .plan import PlannedJob, StudyPlan, plan_study
from .progress import OnEvent, StudyProgress
from .spec import StudySpec
from .write import write_tables

if TYPE_CHECKING:
    from orchestrator.planner.capacity import Inventory
    from orchestrator.tracking import Tracker

REMOTE = Path.home() / ".cache/stillhouse/runs"
"""Folder of what a study with a remote storage keeps on this machine."""


@dataclass(frozen=True, slots=True)
class StudyResult:
    """How a study ended."""

    folder: Path
    results: Results
    checks: tuple[Checked, ...]
    failed: Mapping[str, str]  # name of a job -> why it has no result

    @property
    def holds(self) -> bool:
        """Whether every job is done and every assertion holds, but those known to be refuted."""
        return not self.failed and all(check.as_known for check in self.checks)


def run_study(
    study: StudySpec,
    *,
    parallel: int | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    on_event: OnEvent = lambda event: None,
    drivers: Drivers | None = None,
) -> StudyResult:
    """Run a study to its table.

    Args:
        study: what to run.
        parallel: jobs side by side; None: as many as the cluster holds.
        resume: go on with one that was begun.
        accept_changes: also if the study was another then; jobs that are the same are kept.
        on_event: hears what jobs tell, and how far the study is. Called from several threads, by
            one at a time.
        drivers: what runs its jobs, in a Ray session that is open; None: sessions of its own.

    Raises:
        SpecError: the study cannot run as written; nothing was started.
        Interrupted: stopped on request; what ran has a checkpoint.
        StillhouseError: another process runs this study.
    """
    from orchestrator.planner.checks import preflight

    plan = _absolute(plan_study(study))
    first = plan.jobs[0].spec
    preflight([job.spec for job in plan.jobs])
    folder = open_folder(
        study,
        first.storage,
        local_storage(first.storage, str(REMOTE)),
        resume=resume,
        accept_changes=accept_changes,
    )
    plan = _placed(plan, folder)
    with open_journal(folder.journal) as journal:
        tracker = _tracker(study, plan, folder)
        status = "failed"
        try:
            hear = _warning_of_absent_metrics(study, plan, on_event)
            causes, interrupted = _work(plan, journal, parallel, hear, drivers)
            result = _conclude(study, plan, folder, journal, causes, tracker)
            status = "interrupted" if interrupted else "finished" if result.holds else "failed"
        finally:
            if tracker.finish(status).complete:
                send_rest(folder, (each.run_id for each in journal.entries), first.tracking.uri)
    if interrupted:
        done = len(plan.jobs) - len(result.failed)
        raise Interrupted(
            f"{done} of {len(plan.jobs)} jobs of study {study.name!r} are done; go on with --resume"
        )
    return result


def _work(
    plan: StudyPlan,
    journal: Journal[Entry],
    parallel: int | None,
    on_event: OnEvent,
    drivers: Drivers | None,
) -> tuple[Mapping[str, str], bool]:
    """Do the jobs; causes of failures by key, and whether it was interrupted."""
    done = still_there(plan, Told.by(journal.entries))
    if len(done) == len(plan.jobs):
        return {}, False
    import ray

    from orchestrator.series.sessions import sessions
    from orchestrator.session import inventory, join_ray

    started = join_ray(plan.jobs[0].spec.ray.address)
    try:
        lanes = lanes_for(plan, inventory(), parallel)
        crew = Crew(plan, drivers or sessions(), journal, done, lanes, on_event)
        interrupted = crew.work()
        return crew.causes, interrupted
    finally:
        if started:
            ray.shutdown()


def lanes_for(plan: StudyPlan, inventory: "Inventory", parallel: int | None) -> int:
    """How many jobs run side by side.

    Args:
        plan: of the study.
        inventory: of the cluster.
        parallel: what is asked for; None: as many of the largest job as fit, at least one.

    Raises:
        SpecError: a job does not fit, or so many do not.
    """
    from orchestrator.planner.capacity import held_at_once
    from orchestrator.planner.capacity import plan as plan_job

    wanted = max(len(plan.jobs), parallel or 1)
    held: list[tuple[int, Mapping[str, float]]] = []
    for job in plan.jobs:
        chain = [each.spec for each in plan.chain(job.key)]
        takes = plan_job(job.spec, inventory, chain[:-1]).resources
        held.append((held_at_once(job.spec, inventory, wanted), takes))
    least, takes = min(held, key=lambda one: one[0])
    most = max(1, least)
    if parallel is not None and parallel > most:
        largest = ", ".join(f"{name} {amount:g}" for name, amount in takes.items())
        raise SpecError(
            "--parallel",
            f"is {parallel}, and the cluster holds {most} of the study's jobs (the largest takes "
            f"{largest})",
            f"Give {most} or less, lower resources of jobs, or add nodes",
        )
    return min(parallel or most, len(plan.jobs))


def _warning_of_absent_metrics(study: StudySpec, plan: StudyPlan, on_event: OnEvent) -> OnEvent:
    """What also says, once, which metric a measured job does not have: long before the table."""
    templates = {job.name: job.template for job in plan.jobs}
    said: set[str] = set()

    def hear(event: Event | StudyProgress) -> None:
        on_event(event)
        if not isinstance(event, JobEnded) or event.status != "done":
            return
        for metric in study.metrics:
            measured = study.job_named(metric.job) == templates[event.job]
            if metric.path in USUAL and metric.source == "evaluation":
                continue  # a job that is compared with no role has none of the role's
            if measured and metric.label not in said and value_of(event.summary, metric) is None:
                said.add(metric.label)
                whole = metric.source == "summary"
                known = list(paths_of(event.summary if whole else event.summary["evaluation"]))
                remedy = nearest(metric.path, known)
                on_event(Warned(event.job, f"has no {metric.path} to measure. {remedy}"))

    return hear


def _absolute(plan: StudyPlan) -> StudyPlan:
    return _with_specs(plan, absolute_paths)


def _placed(plan: StudyPlan, folder: Folder) -> StudyPlan:
    """Its jobs, with runs inside the study's folder and below the study's own run in tracking."""
    from orchestrator.tracking import address_of

    def placed(spec: JobSpec) -> JobSpec:
        uri = spec.tracking.uri or address_of(None, folder.storage).uri
        tracking = spec.tracking.model_copy(update={"uri": uri, "parent": folder.run_id})
        return spec.model_copy(update={"storage": folder.runs, "tracking": tracking})

    return _with_specs(plan, placed)


def _with_specs(plan: StudyPlan, change: Callable[[JobSpec], JobSpec]) -> StudyPlan:
    def changed(job: PlannedJob) -> PlannedJob:
        return replace(job, spec=change(job.spec))

    return StudyPlan(plan.cells, tuple(map(changed, plan.jobs)))


def _tracker(study: StudySpec, plan: StudyPlan, folder: Folder) -> "Tracker":
    """The study's own run, which its jobs' runs lie below."""
    from orchestrator.tracking import Tracker

    jobs = plan.jobs[0].spec.tracking
    spec = TrackingSpec(
        uri=jobs.uri,
        experiment=jobs.experiment,
        tags={
            **jobs.tags,
            "study": study.name,
            "study.cells": str(len(plan.cells)),
            "study.jobs": str(len(plan.jobs)),
            "study.seeds": " ".join(map(str, study.seeds)),
            **{f"study.axis.{axis}": ", ".join(arms) for axis, arms in study.vary.items()},
        },
    )
    tracker = Tracker(folder.path, folder.run_id, spec, folder.storage, name=study.name)
    tracker.text("study.yaml", study_yaml(study))
    return tracker


def _conclude(
    study: StudySpec,
    plan: StudyPlan,
    folder: Folder,
    journal: Journal[Entry],
    causes: Mapping[str, str],
    tracker: "Tracker",
) -> StudyResult:
    """Numbers of what is done, the tables, and what tracking is told of them."""
    told = Told.by(journal.entries)
    summaries = {key: entry.summary for key, entry in told.done.items()}
    results = gather(study, plan, summaries)
    checks = check_assertions(study, results)
    failed = {
        job.name: causes.get(job.key, "not run") for job in plan.jobs if job.key not in summaries
    }
    for file in write_tables(folder.path, study, results, checks, failed):
        tracker.artifact(file)
    tracker.metrics(len(summaries), results.metrics())
    return StudyResult(folder.path, results, checks, failed)
