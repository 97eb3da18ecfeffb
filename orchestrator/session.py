"""What a list of jobs shares: the cluster, pools, worker groups, and the way of events to tracking.

A session is closed in reverse order of what it opened, each step with its own deadline.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import ray

from orchestrator.data import Crossing
from orchestrator.errors import Interrupted, SpecError
from orchestrator.evaluation.graph import Graph, graph_of
from orchestrator.evaluation.report import write_report
from orchestrator.events import CheckpointWritten, Evaluated, Event, Phase, StepDone, Warned
from orchestrator.generation import Shelf, Task, as_read, open_shelf, progress, task_of, written
from orchestrator.models.exported import Export, may_import
from orchestrator.models.tokenizer import tokenizer_folder
from orchestrator.planner.capacity import (
    Inventory,
    Node,
    check_roles_fit,
    no_more_than_served,
    plan,
)
from orchestrator.planner.tokenizers import crossings
from orchestrator.pool import Pool, PoolPlan, readings
from orchestrator.pool.cache import Cache
from orchestrator.pool.label import LabelJob, labelled
from orchestrator.pool.stock import (
    check_stock,
    known_fingerprints,
    note_sources,
    role_digest,
    saved_s,
)
from orchestrator.run_folder import RunFolder
from orchestrator.signals.cache.folder import DEFAULT_PATH
from orchestrator.spec import JobSpec
from orchestrator.spec.data import GeneratedSource, Source
from orchestrator.spec.diagnostics import GradientNormSpec, ObjectiveLossSpec
from orchestrator.spec.job import NoPool, StandingPool
from orchestrator.spec.models import ModelSpec, RoleSpec, StudentSpec
from orchestrator.students import Group, GroupPlan, StudentJob
from orchestrator.students.desk import Outcome
from orchestrator.students.records import PROJECTORS
from orchestrator.tracking.tracker import Status, Tracker

logger = logging.getLogger(__name__)

CACHE = Path.home() / ".cache" / "stillhouse"
ASIDE_S = 15.0
"""Longest that records of a job are sent for beside the next one, and at a session's end."""


class Session:
    """Ray joined or started; pools and groups made when a job first needs them.

    Args:
        jobs: the list.
        on_event: hears everything.
        pool: answers for all jobs, and is not the session's to end; None: it brings up its own.
        sends_aside: a job's end does not wait for the tracking store; the session's does, a little.
    """

    def __init__(
        self,
        jobs: Sequence[JobSpec],
        on_event: Callable[[Event], None],
        pool: Pool | None = None,
        sends_aside: bool = False,
    ) -> None:
        self._jobs, self._on_event, self._lent = jobs, on_event, pool
        self._sends_aside = sends_aside
        self._sending: list[threading.Thread] = []
        self.pools: dict[str, Pool] = {}
        self.caches: dict[str, Cache] = {}
        self._group: Group | None = None
        self._began = time.monotonic()
        self._started_ray = False
        self.asked_to_stop = False  # by Ctrl-C, whether or not the job heard of it in time
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> "Session":
        self._started_ray = join_ray(self._jobs[0].ray.address)
        if self._started_ray:
            self.seconds["ray"] = time.monotonic() - self._began
        found = inventory()
        try:
            for index, job in enumerate(self._jobs):
                plan(job, found, self._jobs[:index])
        except BaseException:
            self._leave_ray()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._group is not None:
                self._group.stop()
        finally:
            for pool in self.pools.values():
                pool.down()
            for cache in self.caches.values():
                cache.publish()
            self._leave_ray()
            for sending in self._sending:
                sending.join()

    def _leave_ray(self) -> None:
        if self._started_ray:
            ray.shutdown()

    def request_stop(self) -> None:
        """Ask the running job to stop at its next step, with a checkpoint; from any thread."""
        if self._group is not None:
            self._group.request_stop()

    # --- one job ---------------------------------------------------------------------------------

    def run_job(
        self,
        job: JobSpec,
        folder: RunFolder,
        exports: Mapping[str, Export],
        *,
        resume: bool,
        pause_at: int | None = None,
        jobs: Sequence[JobSpec] = (),
    ) -> dict[str, Any]:
        """Run one job to its end, or until `pause_at` steps are done; its summary.

        `jobs` are those of the list that it belongs to, for its report; none: it is alone.
        """
        began = time.monotonic()
        parent = job.tracking.parent
        tracker = Tracker(
            folder.local, folder.run_id, job.tracking, _local_storage(job), parent=parent
        )
        status: Status = "failed"
        try:
            tracker.params(job.model_dump(mode="json", by_alias=True, exclude_none=True))
            if job.tracking.uri is not None and not tracker.warn_if_silent():
                self._on_event(Warned(job.name, f"{tracker.target} does not answer; spooling"))
            student, pool = self._prepared(job, folder, exports, resume=resume)
            before = {} if pool is None else pool.status()
            ready_s = time.monotonic() - began
            student = replace(student, pause_at=pause_at)
            summary = self._watch(student, lambda event: _track(event, tracker))
            summary["seconds"] = {**self.seconds, "before_job": ready_s, **summary["seconds"]}
            summary["compared_role"] = student.spec.compared_with(student.crossings)
            used = summary.pop("used")
            summary["cost"] = {"student_device_s": used["student_s"]}
            if pool is not None:
                summary["cost"]["teacher_device_s"] = used["teacher_s"]
                _add_pool(summary, before, pool.status())
            if student.cache is not None:
                cache = self.caches[student.cache.path]
                spent = summary["cost"].get("teacher_device_s", 0.0)
                replayed = summary["pool"].get("replayed_steps", 0) > 0
                counts = {} if replayed else summary["cache"]  # else they miss what was lost
                saved = saved_s(cache, student.fingerprints, counts, spent)
                if saved is not None:
                    summary["cost"]["saved_by_cache_device_s"] = saved
                summary["cache"]["store"] = cache.stats()
            if summary["status"] == "paused":
                status = "finished"  # as far as it was to go; where it goes on it runs again
                return summary
            self._record(job, student, summary, tracker, folder, graph_of(jobs or [job]))
            status = "finished"
            return summary
        except (Interrupted, KeyboardInterrupt):
            status = "interrupted"
            raise
        finally:
            self._finish(tracker, status)

    def _finish(self, tracker: Tracker, status: Status) -> None:
        if not self._sends_aside:
            tracker.finish(status)
            return
        tracker.end(status)
        sending = threading.Thread(target=tracker.drain, args=(ASIDE_S,), daemon=True)
        sending.start()
        self._sending = [each for each in self._sending if each.is_alive()] + [sending]

    def evaluate_job(
        self, job: JobSpec, folder: RunFolder, exports: Mapping[str, Export]
    ) -> dict[str, Any]:
        """Measure a finished run's export; nothing is recorded.

        Raises:
            SpecError: a diagnostic looks at outputs of the student that the export has not.
        """
        for index, spec in enumerate(job.evaluation.diagnostics):
            if job.student.alone and isinstance(spec, GradientNormSpec | ObjectiveLossSpec):
                raise SpecError(
                    f"evaluation.diagnostics.{index}",
                    f"is {spec.kind}, which computes the objective of all outputs, and the export "
                    f"holds {job.student.alone} alone",
                    "Measure it in the run, as its summary has it",
                )
        student, _ = self._prepared(job, folder, exports, resume=False)
        own = {**exports, job.name: Export(f"{folder.uri}/export", job.student)}
        measured = student.spec.model_copy(update={"student": _exported(job, own)})
        return self._watch(replace(student, spec=measured, evaluate_only=True), lambda event: None)

    def _prepared(
        self, job: JobSpec, folder: RunFolder, exports: Mapping[str, Export], *, resume: bool
    ) -> tuple[StudentJob, Pool | None]:
        """What the workers need; pool and group are up when it returns."""
        resolved, tokenizer = _resolved(job, exports)
        resolved = self._with_texts(resolved, tokenizer)
        crossing = crossings(resolved, tokenizer)
        self._warn_of_measuring(resolved, crossing)
        cache = self._cache_for(resolved)
        if isinstance(resolved.pool, NoPool) and cache is not None:
            # before any worker starts
            check_stock(resolved, cache, tokenizer, str(CACHE / "data"), crossing)
        self._group = self._group_for(resolved)  # comes up by itself while the pool is waited for
        pool = self._pool_for(resolved)
        if cache is not None:
            self._warn_of(resolved, cache)
        student = StudentJob(
            resolved,
            folder.run_id,
            folder.uri,
            tokenizer,
            str(CACHE / "data"),
            None if pool is None else pool.handle(),
            None if cache is None else cache.handle,
            self._fingerprints(resolved, pool, cache),
            resume,
            crossing,
            projectors=_earlier_projectors(job, exports),
        )
        return student, pool

    def label_job(self, job: JobSpec, run_id: str, exports: Mapping[str, Export]) -> dict[str, Any]:
        """Put all that a job will ask into the cache; what was found and done, by role.

        Raises:
            SpecError: the job has no pool, or no cache, or asks nobody.
        """
        resolved, tokenizer = _resolved(job, exports)
        resolved = self._with_texts(resolved, tokenizer)
        cache, pool = self._cache_for(resolved), self._pool_for(resolved)
        if cache is None or pool is None:
            field = "cache.enabled" if cache is None else "pool"
            raise SpecError(
                field if job.used_roles else "objective.terms",
                "leaves nothing to label" if job.used_roles else "ask no role",
                "Labelling needs a role that is asked, a pool that answers, and a cache",
            )
        for complaint in cache.complaints():
            raise SpecError("cache.path", complaint, "Nothing would be kept; label when it is free")
        sources = {role: role_digest(resolved, role) for role in resolved.used_roles}
        fingerprints = self._fingerprints(resolved, pool, cache)
        told: dict[int, dict[str, Any]] = {}
        for event in labelled(
            LabelJob(
                resolved,
                run_id,
                tokenizer,
                str(CACHE / "data"),
                pool.handle(),
                cache.handle,
                fingerprints,
                crossings(resolved, tokenizer),
            )
        ):
            told[event.part] = {
                "role": event.role,
                "encoding": event.encoding,
                "samples": event.samples,
                "computed": event.done,
                "bytes": event.nbytes,
            }
            self._on_event(event)
        note_sources(cache, sources, fingerprints)
        return {"status": "done", "job": job.name, "labelled": list(told.values())}

    def write_texts(self, job: JobSpec) -> None:
        """Have roles write the texts that a job learns from, unless they are there."""
        self._with_texts(*_resolved(job, {}))

    def _with_texts(self, job: JobSpec, tokenizer: str | None) -> JobSpec:
        """The job with files in place of what roles write; writes what is not there yet."""
        if tokenizer is None or not job.data.writers:
            return job
        sources: list[Source] = []
        for index, source in enumerate(job.data.sources):
            if isinstance(source, GeneratedSource):
                task = task_of(job, source, tokenizer)
                field, root = f"data.sources.{index}", _texts_folder(job)
                shelf = open_shelf(task, field, root, partial(self._make_room, job, task))
                if not shelf.complete:
                    self._write(job, task, shelf)
                sources.append(as_read(source, shelf))
            else:
                sources.append(source)
        data = job.data.model_copy(update={"sources": sources})
        return job.model_copy(update={"data": data})

    def _write(self, job: JobSpec, task: Task, shelf: Shelf) -> None:
        check_roles_fit({task.role: task.spec}, inventory())
        self._make_room(job, task)
        began = time.monotonic()
        for told in written(task, shelf, job.pool.restarts):
            self._on_event(Phase(job.name, progress(task, told)))
        self.seconds["texts"] = time.monotonic() - began

    def _make_room(self, job: JobSpec, task: Task) -> None:
        """Free what earlier jobs hold: a role that writes takes what its replicas would.

        The job's own workers, if an earlier one has left them, stay where it takes no more than the
        pool that will be beside them. Others may hold more than the job leaves it.
        """
        for key in list(self.pools):
            self.pools.pop(key).down()
        if not no_more_than_served(task.spec, job):
            self._stop_group()
        else:
            self._stop_group_unless(_group_plan(job))

    def _watch(self, student: StudentJob, track: Callable[[Event], None]) -> dict[str, Any]:
        """Pass events on until the job ends. Ctrl-C asks the group to stop, then waits for it."""
        group = self._group
        assert group is not None  # made by _prepared
        stream = group.run(student)
        while True:
            try:
                for item in stream:
                    if isinstance(item, Outcome):
                        if item.error is not None:
                            raise item.error
                        return item.summary
                    track(item)
                    self._on_event(item)
            except KeyboardInterrupt:
                self.asked_to_stop = True
                self._on_event(Warned(student.spec.name, "stopping after this step"))
                group.request_stop()
                stream = group.watch()

    def _pool_for(self, job: JobSpec) -> Pool | None:
        if not job.used_roles:
            return None
        if isinstance(job.pool, NoPool):
            return None
        if isinstance(job.pool, StandingPool):
            return Pool.attach(job.pool.name)
        if self._lent is not None:
            return self._lent
        roles = {name: job.roles[name] for name in job.used_roles}
        wanted = PoolPlan(
            job.name,
            roles,
            restarts=job.pool.restarts,
            deterministic=job.deterministic,
            seed=job.seed,
            readings=readings(job),
        )
        key = json.dumps(
            [
                {name: role.served() for name, role in roles.items()},
                {name: reading.label for name, reading in wanted.readings.items()},
                [wanted.restarts, wanted.deterministic, wanted.seed],
            ],
            sort_keys=True,
        )
        if key not in self.pools:
            for other in list(self.pools):
                self.pools.pop(other).down()  # its replicas hold what the new ones need
            began = time.monotonic()
            self._on_event(Phase(job.name, f"loading {', '.join(roles)}"))
            self.pools[key] = Pool.up(wanted)
            self.seconds["pool"] = time.monotonic() - began
            self._on_event(Phase(job.name, "pool ready"))
        return self.pools[key]

    def _cache_for(self, job: JobSpec) -> Cache | None:
        if not job.cache.enabled or not job.used_roles:
            return None
        path = job.cache.path or str(DEFAULT_PATH)
        # For each job anew: owners that were idle have ended, and nodes may have come.
        self.caches[path] = Cache.open(path, job.cache.max_bytes)
        return self.caches[path]

    def _warn_of_measuring(self, job: JobSpec, crossing: Mapping[str, Crossing]) -> None:
        if job.compared_role is not None and job.compared_with(crossing) is None:
            self._on_event(
                Warned(
                    job.name,
                    f"{job.compared_role} has another tokenizer: agreement and KL are not measured",
                )
            )

    def _warn_of(self, job: JobSpec, cache: Cache) -> None:
        for complaint in cache.complaints():
            self._on_event(Warned(job.name, complaint))

    @staticmethod
    def _fingerprints(job: JobSpec, pool: Pool | None, cache: Cache | None) -> dict[str, str]:
        if pool is not None:
            roles = pool.status()["roles"]
            return {name: roles[name]["fingerprint"] for name in job.used_roles}
        return {} if cache is None else known_fingerprints(job, cache)

    def _group_for(self, job: JobSpec) -> Group:
        wanted = _group_plan(job)
        self._stop_group_unless(wanted)
        if self._group is not None:
            return self._group
        self._on_event(Phase(job.name, "starting workers"))
        return Group(wanted)

    def _stop_group_unless(self, wanted: GroupPlan) -> None:
        if self._group is not None and self._group.plan != wanted:
            self._stop_group()

    def _stop_group(self) -> None:
        if self._group is not None:
            self._group.stop()
            self._group = None

    def _record(
        self,
        job: JobSpec,
        student: StudentJob,
        summary: dict[str, Any],
        tracker: Tracker,
        folder: RunFolder,
        graph: Graph,
    ) -> None:
        tracker.lineage(
            {
                "roles": student.fingerprints,
                "encodings": {
                    name: job.roles[name].encoding.model_dump(mode="json")
                    for name in job.objective.served_roles
                },
                "data": summary["data_version"],
                "student": summary["weights_sha256"],
                "export": summary["export"],
            }
        )
        summary_file = folder.local / "summary.json"
        summary_file.write_text(json.dumps(summary, indent=1))
        report = write_report(folder.local, summary, graph=graph)
        for file in (summary_file, report):
            tracker.artifact(file)
        if folder.uri != str(folder.local):
            fs, root = fsspec.core.url_to_fs(folder.uri)
            for file in (summary_file, report):
                fs.put_file(str(file), f"{root}/{file.name}")
        if job.tracking.register_as is not None:
            export = folder.local / "export"
            if folder.uri != str(folder.local):
                fs, root = fsspec.core.url_to_fs(folder.uri)
                fs.get(f"{root}/export/", str(export), recursive=True)
            tracker.register_student(export, job.tracking.register_as)


def join_ray(address: str | None) -> bool:
    """Join a cluster, or start one on this machine; whether this call did, and so must leave it."""
    if ray.is_initialized():
        return False
    # Workers need the user's own modules (import paths) and must not look for them elsewhere.
    paths = os.pathsep.join(dict.fromkeys([os.getcwd(), *filter(os.path.isdir, sys.path)]))
    polite = signal.getsignal(signal.SIGTERM)
    ray.init(
        address=address,
        namespace="stillhouse",
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    if polite is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, polite)  # Ray's own ends the process without a checkpoint
    return True


def _add_pool(summary: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> None:
    """How the pool was meanwhile, whoever else asked it."""
    summary["pool"]["replicas"] = sum(len(role["replicas"]) for role in after["roles"].values())
    summary["pool"]["restarts"] = after["restarts"] - before["restarts"]


def _track(event: Event, tracker: Tracker) -> None:
    match event:
        case StepDone(step=step, metrics=metrics) | Evaluated(step=step, metrics=metrics):
            tracker.metrics(step, metrics)
        case CheckpointWritten(path=path):
            tracker.tags({"checkpoint": path})
        case _:
            pass


def inventory() -> Inventory:
    """The living nodes of the cluster that was joined."""
    return Inventory(
        tuple(
            Node(node["NodeManagerAddress"], dict(node["Resources"]))
            for node in ray.nodes()
            if node["Alive"]
        )
    )


def _group_plan(job: JobSpec) -> GroupPlan:
    return GroupPlan.of(job, str(CACHE / "groups"))


def _texts_folder(job: JobSpec) -> Path:
    """Where texts that roles write are kept: where every node that trains can read them.

    Raises:
        SpecError: several nodes, and no folder that they share.
    """
    if len(inventory().nodes) == 1:
        return CACHE / "generated"
    if "://" in job.storage:
        raise SpecError(
            "storage",
            f"is {job.storage}, no folder, and a source is generated on a cluster of several "
            "nodes, all of which read it",
            "Name a folder that all nodes share",
        )
    return Path(job.storage) / "generated"


def _local_storage(job: JobSpec) -> str:
    return str(CACHE / "runs") if "://" in job.storage else job.storage


def _resolved(job: JobSpec, exports: Mapping[str, Export]) -> tuple[JobSpec, str | None]:
    """The job with `job` and `registry` sources made folders, and its tokenizer's folder."""

    def folder(kind: str, value: str, member: str | None) -> str:
        if kind == "job":
            return _local_copy(exports[value].of(member))
        from orchestrator.tracking.address import address_of
        from orchestrator.tracking.registry import resolve_registry_uri

        address = address_of(job.tracking.uri, _local_storage(job))
        return str(resolve_registry_uri(value, address, CACHE / "registry"))

    def placed(model: Any, field: str) -> Any:
        kind, value = model.source
        if kind not in ("job", "registry"):
            return model
        found = folder(kind, value, model.member)
        update = {kind: None, "member": None, "path": found}
        if kind == "job" and may_import(found, value, exports, field, model.member):
            update["allow_remote_code"] = True
        return model.model_copy(update=update)

    student = job.student.with_models(lambda model: placed(model, "student.job"))
    roles: dict[str, RoleSpec] = {
        name: placed(role, f"roles.{name}.job") for name, role in job.roles.items()
    }
    asked = dict.fromkeys((*job.used_roles, *job.data.writers))
    named = [("student", student.model_of(None))]
    named += [(f"roles.{name}", roles[name]) for name in asked]
    tokenizer = tokenizer_folder(named)[0] if job.data.reads_text else None
    return job.model_copy(update={"student": student, "roles": roles}), tokenizer


def _exported(job: JobSpec, exports: Mapping[str, Export]) -> StudentSpec:
    """A finished job's student as it lies in its run folder; each member of one with several."""

    def of(member: str | None, model: ModelSpec) -> dict[str, Any]:
        path = _local_copy(exports[job.name].of(member))
        code = may_import(path, job.name, exports, "student", member) or model.allow_remote_code
        return {"path": path, "task": model.task, "allow_remote_code": code}

    student = job.student
    if student.members is None:
        outputs = [] if student.alone else student.outputs
        return StudentSpec.model_validate({**of(None, student), "outputs": outputs})
    members = {name: of(name, model) for name, model in student.members.items()}
    return StudentSpec.model_validate(
        {"task": student.task, "members": members, "export": student.export}
    )


def _earlier_projectors(job: JobSpec, exports: Mapping[str, Export]) -> str | None:
    """Where the projectors of the stage before are, if it had some."""
    kind, value = job.student.source
    return f"{exports[value].uri.rpartition('/')[0]}/{PROJECTORS}" if kind == "job" else None


def _local_copy(uri: str) -> str:
    """A folder on this node with what lies at a URI."""
    if "://" not in uri:
        if not Path(uri).is_dir():
            raise SpecError(uri, "is not there", "Run the job that exports it first")
        return uri
    fs, root = fsspec.core.url_to_fs(uri)
    target = CACHE / "exports" / root.strip("/").replace("/", "-")
    if not target.exists():
        # Beside it first: a copy that is cut off, or made twice at once, is never taken for whole.
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            fs.get(f"{root}/", f"{name}/copy", recursive=True)
            try:
                Path(name, "copy").rename(target)
            except OSError:
                if not target.exists():
                    raise
    return str(target)
