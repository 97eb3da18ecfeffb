"""Run a search: trials side by side over one pool and one cache, chosen and stopped by Ray Tune.

Promises: a search that was killed goes on with the trials that are over, and those that ran from
their checkpoints; a trial that fails is tried again and then reported, and the search goes on.
Everything wrong with the file is found before anything starts. Heavy imports wait until then.
"""

import importlib.util
import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from orchestrator.errors import Interrupted, SpecError, StillhouseError
from orchestrator.events import Event, Phase, Warned
from orchestrator.series import folder as folders
from orchestrator.series.folder import Folder, local_storage
from orchestrator.series.rest import send_rest
from orchestrator.spec import JobSpec
from orchestrator.spec.job import EphemeralPool, TrackingSpec
from orchestrator.spec.models import RoleSpec
from orchestrator.spec.paths import absolute_paths

from .board import Board, best_of, front_of, goal_values, used_up
from .deciders import decider_of
from .drive import drive
from .importance import importance
from .jobs import trial_jobs
from .journal import State, open_journal, states_of
from .load import load_search, search_yaml
from .plan import Search, check_search, key_of, settings_of, trial_job, trials_of
from .progress import OnEvent, SearchProgress, TrialLine
from .space import Settings
from .table import computed_by, shown_values
from .write import best_job, write_results

if TYPE_CHECKING:
    from orchestrator.planner.capacity import Inventory
    from orchestrator.pool import Pool
    from orchestrator.tracking import Tracker

REMOTE = Path.home() / ".cache/stillhouse/runs"
"""Folder of what a search with a remote storage keeps on this machine."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """How a search ended."""

    folder: Path
    trials: tuple[State, ...]
    best: State | None  # None: no trial went to its end
    failed: Mapping[int, str]  # number of a trial -> why it has no result


def run_search(
    search: Search,
    *,
    parallel: int | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    on_event: OnEvent = lambda event: None,
) -> SearchResult:
    """Run a search to its end.

    Args:
        search: what to run.
        parallel: trials side by side; None: `search.concurrency`, else as many as fit.
        resume: go on with one that was begun.
        accept_changes: also if the file was another then; trials that are the same are kept.
        on_event: hears what jobs tell, and how far the search is. Called from several threads, by
            one at a time.

    Raises:
        SpecError: the search cannot run as written; nothing was started.
        Interrupted: stopped on request; what ran has a checkpoint.
        StillhouseError: another process runs this search, or no trial can run.
    """
    jobs = [absolute_paths(job) for job in check_search(search)]
    _check_installed(search)
    _preflight(jobs)
    first = jobs[0]
    folder = folders.open_folder(
        "search",
        search.name,
        search_yaml(search),
        lambda record: search_yaml(load_search(record)),
        first.storage,
        local_storage(first.storage, str(REMOTE)),
        resume=resume,
        accept_changes=accept_changes,
    )
    with open_journal(folder.journal) as journal:
        kept, skipped = _kept(search, states_of(journal.entries))
        if skipped:
            on_event(Warned("search", _not_kept(skipped)))
        board = Board(journal, kept)
        tracker = _tracker(search, first, folder)
        status = "failed"
        try:
            interrupted = _work(search, jobs, folder, board, skipped, parallel, on_event, tracker)
            result = _conclude(search, folder, board, tracker, None if interrupted else first)
            status = "interrupted" if interrupted else "finished"
        finally:
            if tracker.finish(status).complete:
                send_rest(folder, (each.run_id for each in journal.entries), first.tracking.uri)
    if interrupted:
        over = sum(state.over for state in result.trials)
        raise Interrupted(
            f"{over} trials of search {search.name!r} are over; go on with --resume {search.name}"
        )
    return result


def _check_installed(search: Search) -> None:
    if search.spec.searcher.kind == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise SpecError(
            "search.searcher",
            "is cmaes, and the package cmaes is not installed",
            "Install stillhouse[cmaes], or use tpe",
        )


def _preflight(jobs: Sequence[JobSpec]) -> None:
    """What files and models can refute, once for each that differs in them."""
    from orchestrator.planner.checks import preflight

    seen: set[str] = set()
    for job in jobs:
        facts = job.model_dump(mode="json", by_alias=True)
        imports = [term.get("target") for term in facts["objective"]["terms"]]
        mark = json.dumps([facts["student"], facts["roles"], facts["data"], imports])
        if mark not in seen:
            seen.add(mark)
            preflight([job])


def _kept(search: Search, states: Mapping[int, State]) -> tuple[list[int], list[int]]:
    """Numbers of known trials whose job the file would make today, and of the others.

    Trials that go on from each other are kept together, or not at all.
    """
    kept, skipped = [], []
    for number, state in sorted(states.items()):
        (kept if _same(search, state) else skipped).append(number)
    decider = decider_of(search)
    if decider is not None:
        forked = any(leg.parent is not None for state in states.values() for leg in state.legs)
        if (skipped and forked) or not decider.fits([states[number] for number in kept]):
            return [], sorted(states)
    return kept, skipped


def _not_kept(skipped: Sequence[int]) -> str:
    numbers = ", ".join(map(str, skipped))
    return (
        f"trials {numbers} are not kept, since the search no longer makes them as they were (the "
        "file has changed, or a default with a new version): others are run in their place"
    )


def _same(search: Search, state: State) -> bool:
    try:
        settings = settings_of(search, state.values) if state.values else state.settings
        if not state.values and state.settings not in search.spec.fixed:
            return False
        return key_of(_job(search, settings)) == state.key
    except (ValueError, SpecError):
        return False


def _job(search: Search, settings: Settings) -> JobSpec:
    return absolute_paths(trial_job(search, settings, search.name))


# --- the work ------------------------------------------------------------------------------------


def _work(
    search: Search,
    jobs: Sequence[JobSpec],
    folder: Folder,
    board: Board,
    skipped: Sequence[int],
    parallel: int | None,
    on_event: OnEvent,
    tracker: "Tracker",
) -> bool:
    """Run trials until none is left; whether it was interrupted."""
    if _nothing_left(search, board):
        return False
    import ray

    from orchestrator.session import inventory, join_ray

    started = join_ray(jobs[0].ray.address)
    try:
        lanes = lanes_for(jobs, inventory(), parallel or search.spec.concurrency)
        total = trials_of(search.spec)
        seed = (search.spec.seeds or [jobs[0].seed])[0]
        with _texts_and_pool(jobs, seed, on_event) as pool:
            from orchestrator.series.sessions import sessions

            telling = Telling(search, board, on_event, tracker)
            return drive(
                search,
                board,
                skipped,
                lambda number: trial_jobs(search, board.state, number, folder),
                sessions(pool),
                min(lanes, total or lanes),
                telling,
                jobs[0].training.steps,
                str(folder.path / "tune"),
            )
    finally:
        if started:
            ray.shutdown()


def _nothing_left(search: Search, board: Board) -> bool:
    total, states = trials_of(search.spec), board.states
    over = sum(state.over for state in states)
    begun = over == len(states)
    spent = used_up(search.spec.budget, board.spent()) is not None
    return begun and bool(states) and (spent or (total is not None and over >= total))


def lanes_for(jobs: Sequence[JobSpec], inventory: "Inventory", parallel: int | None) -> int:
    """How many trials run side by side, beside the pool that serves them all.

    Args:
        jobs: of the fixed trials and at the corners of the space.
        inventory: of the cluster.
        parallel: what is asked for; None: as many as fit, at least one.

    Raises:
        SpecError: a job does not fit, or so many do not.
    """
    from orchestrator.planner.capacity import beside_a_pool

    pool, worker = beside_a_pool(jobs[0], _pooled(jobs), inventory)
    fitting = [
        int((inventory.total(name) - pool.get(name, 0.0)) / amount + 1e-9)
        for name, amount in worker.items()
    ]
    most = max(1, min(fitting, default=1))
    if parallel is not None and parallel > most:
        takes = ", ".join(f"{name} {amount:g}" for name, amount in worker.items())
        raise SpecError(
            "search.concurrency",
            f"is {parallel}, and the cluster holds {most} trials beside the pool (one takes "
            f"{takes})",
            f"Give {most} or less, lower training.resources, or add nodes",
        )
    return parallel or most


def _pooled(jobs: Sequence[JobSpec]) -> dict[str, RoleSpec]:
    """The roles that a pool of the search's own serves: all that some trial may ask."""
    if not isinstance(jobs[0].pool, EphemeralPool):
        return {}
    return {name: job.roles[name] for job in jobs for name in job.used_roles}


@contextmanager
def _texts_and_pool(
    jobs: Sequence[JobSpec], seed: int, on_event: OnEvent
) -> Iterator["Pool | None"]:
    """One pool for all trials, which ends with the block; None where jobs find one, or ask none.

    A role with fresh weights gets those of `seed`, as it does in a run of the best job.
    """
    from orchestrator.pool import Pool, PoolPlan, readings
    from orchestrator.session import Session

    first = jobs[0]
    if first.data.writers:
        with Session([first], on_event) as session:
            session.write_texts(first)
    roles = _pooled(jobs)
    if not roles or not isinstance(first.pool, EphemeralPool):
        yield None
        return
    on_event(Phase(first.name, f"loading {', '.join(roles)}"))
    pool = Pool.up(
        PoolPlan(
            first.name,
            roles,
            restarts=first.pool.restarts,
            deterministic=first.deterministic,
            seed=seed,
            readings={name: each for job in jobs for name, each in readings(job).items()},
        )
    )
    try:
        yield pool
    finally:
        pool.down()


# --- what is told --------------------------------------------------------------------------------


class Telling:
    """What a search tells: to whoever watches, and to tracking."""

    def __init__(
        self,
        search: Search,
        board: Board,
        on_event: OnEvent,
        tracker: "Tracker | None",
    ) -> None:
        self._search, self._board, self._on_event = search, board, on_event
        self._tracker = tracker
        self._recorded = 0
        self._one_at_a_time = threading.RLock()
        self.steps: Mapping[int, int] = {}

    def event(self, event: Event) -> None:
        """Of a job."""
        with self._one_at_a_time:
            self._on_event(event)

    def used_up(self) -> bool:
        """Whether a limit of the budget is reached."""
        return used_up(self._search.spec.budget, self._board.spent()) is not None

    def changed(self) -> None:
        """Something has happened to a trial."""
        with self._one_at_a_time:
            self._on_event(progress_of(self._search, self._board, self.steps))
            self._record()

    def _record(self) -> None:
        """The best so far, by how often a trial has ended."""
        ends = self._board.ends
        best = best_of(self._board.states, self._search.spec.goals)
        if self._tracker is None or best is None or ends <= self._recorded:
            return
        self._recorded = ends
        values = goal_values(best, self._search.spec.goals)
        named = zip(self._search.spec.goals, values, strict=True)
        self._tracker.metrics(
            ends, {f"best/{goal.metric}": value for goal, value in named if value is not None}
        )


def progress_of(search: Search, board: Board, steps: Mapping[int, int]) -> SearchProgress:
    """Where a search stands."""
    states, goals, budget = board.states, search.spec.goals, search.spec.budget
    best = best_of(states, goals)
    spent = board.spent()
    limits = (
        ("tokens", spent.tokens, budget.tokens),
        ("device_s", spent.device_s, budget.device_s),
        ("hours", spent.hours, budget.hours),
    )
    return SearchProgress(
        search.spec.metric,
        trials_of(search.spec),
        tuple(_line_of(search, state, steps.get(state.number)) for state in states),
        None if best is None else best.number,
        tuple((name, used, float(limit)) for name, used, limit in limits if limit is not None),
        board.life_s,
    )


def _line_of(search: Search, state: State, steps: int | None) -> TrialLine:
    final = goal_values(state, search.spec.goals)[0]  # over the seeds that are done, of several
    latest = state.results[-1][1] if state.results else None
    done = max((int(each.get("steps", 0)) for each in state.summaries.values()), default=0)
    return TrialLine(
        state.number,
        state.status,
        tuple(shown_values(state).items()),
        max(done, state.step),
        steps,
        latest if final is None else final,
        computed_by(state),
        state.error,
    )


def _tracker(search: Search, job: JobSpec, folder: Folder) -> "Tracker":
    """The search's own run, which its trials' runs lie below."""
    from orchestrator.tracking import Tracker, address_of

    spec = search.spec
    tags = {
        **job.tracking.tags,
        "search": search.name,
        "search.metric": f"{spec.mode} {spec.metric}",
        "search.searcher": spec.searcher.kind,
        "search.scheduler": spec.scheduler.kind,
        **{f"search.space.{path}": _said(each) for path, each in spec.space.items()},
    }
    tracking = TrackingSpec(
        uri=job.tracking.uri or address_of(None, folder.storage).uri,
        experiment=job.tracking.experiment,
        tags=tags,
    )
    tracker = Tracker(folder.path, folder.run_id, tracking, folder.storage, name=search.name)
    tracker.text("search.yaml", search_yaml(search))
    return tracker


def _said(distribution: Any) -> str:
    return json.dumps(distribution.model_dump(mode="json"))


def _conclude(
    search: Search, folder: Folder, board: Board, tracker: "Tracker", over: JobSpec | None
) -> SearchResult:
    """The files, and what tracking is told of the end.

    Args:
        search: that has run.
        folder: of the search.
        board: what is known.
        tracker: of the search's run.
        over: a trial's job, whose best student is registered; None: the search is to go on.
    """
    states, goals = board.states, search.spec.goals
    best = best_of(states, goals)
    # What a member of a population began with says little of what it came to.
    changed = any(leg.numbers for state in states for leg in state.legs)
    matters = {} if changed else importance(search, states)
    for file in write_results(folder.path, search, board, matters):
        tracker.artifact(file)
    tracker.tags({f"search.importance.{name}": f"{share:.3f}" for name, share in matters.items()})
    if best is not None:
        tracker.tags({"search.best": str(best.number), "search.best.run": best.runs[0]})
        if len(goals) > 1:
            front = [str(state.number) for state in front_of(states, goals)]
            tracker.tags({"search.front": ", ".join(front)})
        if over is not None:
            _register(search, folder, board, tracker, best, over.tracking.register_as)
    failed = {state.number: state.error or "" for state in states if state.status == "failed"}
    if best is None and failed and len(failed) == len(states):
        raise StillhouseError(
            f"every trial of search {search.name!r} failed, the first: {failed[min(failed)]}"
        )
    return SearchResult(folder.path, tuple(states), best, failed)


def _register(
    search: Search,
    folder: Folder,
    board: Board,
    tracker: "Tracker",
    best: State,
    name: str | None,
) -> None:
    """The best trial's student in the registry, with its job; once for each run that is best."""
    if name is None or best.registered == best.runs[0]:
        return
    facts = {
        "search": search.name,
        "search.trial": str(best.number),
        "search.run": best.runs[0],
        "search.job": best_job(search, board.state, best.number),
    }
    tracker.register_student(_local_export(folder, best), name, facts)
    board.note("registered", best.number, run_id=best.runs[0])


def _local_export(folder: Folder, best: State) -> Path:
    """The best trial's student, inside the search's folder."""
    export = str(best.summaries[0]["export"])
    if Path(export).is_dir():
        return Path(export)
    fs, root = fsspec.core.url_to_fs(export)
    target = folder.path / "best"
    shutil.rmtree(target, ignore_errors=True)
    fs.get(f"{root}/", str(target), recursive=True)
    return target
