"""A study -> its cells and the jobs they need, each made once, in a good order. Pure.

Promises: jobs that differ in nothing but their name are one job; a job comes after those whose
students it takes; names are valid for jobs, readable, unique, and the same for the same study. A
role that nobody asks is left out, so that a job does not depend on a teacher it never hears.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec import JobSpec
from orchestrator.spec.load import put, unshared, validate_jobs

from .spec import OWNED, StudySpec, Where, settings

LONGEST_NAME = 63
Arms = Mapping[str, str]
"""Axis -> arm, in the order of the file."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm of each axis, and a seed."""

    arms: Arms
    seed: int
    jobs: Mapping[str, str]  # name in the file -> key of the job

    @property
    def label(self) -> str:
        """For messages."""
        return ", ".join(
            [*(f"{axis} {arm}" for axis, arm in self.arms.items()), f"seed {self.seed}"]
        )


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One job, for all cells that need it."""

    key: str  # says what the job is, whatever it is called
    name: str  # of the job in this study
    template: str  # its name in the file
    spec: JobSpec  # named so, and so are the earlier jobs it refers to
    needs: tuple[str, ...]  # keys of the jobs whose students it takes
    pool: str  # equal for jobs that the same replicas can serve; "": asks nobody


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """What a study does."""

    cells: tuple[Cell, ...]
    jobs: tuple[PlannedJob, ...]  # in a good order

    def job(self, key: str) -> PlannedJob:
        """The job of a key."""
        return next(job for job in self.jobs if job.key == key)

    def chain(self, key: str) -> list[PlannedJob]:
        """A job after all it needs, in order: a list that could run by itself."""
        wanted = {key}
        for job in reversed(self.jobs):
            if job.key in wanted:
                wanted.update(job.needs)
        return [job for job in self.jobs if job.key in wanted]


@dataclass(frozen=True, slots=True)
class _Draft:
    """A job of one cell, under its name in the file."""

    spec: JobSpec
    template: str
    key: str
    needs: Mapping[str, str]  # name in the file -> key


def plan_study(study: StudySpec) -> StudyPlan:
    """Plan a study.

    Raises:
        SpecError: a cell's jobs are not valid, or no cell is left; says which.
    """
    drafts: dict[str, _Draft] = {}
    cells = []
    for arms, seed in _points(study):
        made = _drafts(study, arms, seed)
        cells.append(Cell(arms, seed, {draft.template: draft.key for draft in made}))
        for draft in made:
            drafts.setdefault(draft.key, draft)
    if not cells:
        raise SpecError("skip", "leaves no cell", "Keep at least one with only and skip")
    names = _names(study, cells)
    jobs = [_planned(draft, names) for draft in drafts.values()]
    return StudyPlan(tuple(cells), tuple(_ordered(jobs)))


def _points(study: StudySpec) -> Iterator[tuple[Arms, int]]:
    """Arms and seeds of every cell, seeds moving fastest."""
    for chosen in itertools.product(*study.vary.values()):
        arms = dict(zip(study.vary, chosen, strict=True))
        wanted = study.only is None or any(_fits(arms, where) for where in study.only)
        if wanted and not any(_fits(arms, where) for where in study.skip):
            for seed in study.seeds:
                yield arms, seed


def _fits(arms: Arms, where: Where) -> bool:
    return all(arms[axis] in wanted for axis, wanted in where.items())


# --- one cell ------------------------------------------------------------------------------------


def _drafts(study: StudySpec, arms: Arms, seed: int) -> list[_Draft]:
    raw_jobs = _raw_jobs(study, arms, seed)
    place = Cell(arms, seed, {}).label
    try:
        specs = validate_jobs(raw_jobs)
    except SpecError as error:
        raise SpecError(
            error.field, f"{error.problem} (in the cell {place})", error.remedy
        ) from None
    keys: dict[str, str] = {}
    made = []
    for spec in map(_without_idle_roles, specs):
        needs = {name: keys[name] for name in _referred(spec)}
        keys[spec.name] = _key(spec, needs)
        made.append(_Draft(spec, spec.name, keys[spec.name], needs))
    _check_one_place(specs)
    return made


def _raw_jobs(study: StudySpec, arms: Arms, seed: int) -> list[dict[str, Any]]:
    """The jobs of the file as a cell has them: arms in the order of the axes, then the seed."""
    raw_jobs = [unshared(job) for job in study.jobs]
    by_name = {str(raw["name"]): raw for raw in raw_jobs}

    def set_to(job: str | None, path: str, value: Any, where: str) -> None:
        for raw in raw_jobs if job is None else [by_name[job]]:
            put(raw, path.split("."), unshared(value), where)

    for axis, arm in arms.items():
        for job, path, value in settings(study.vary[axis][arm], [*by_name]):
            set_to(job, path, value, f"vary.{axis}.{arm}")
    for job, paths in study.seeded_by_job().items():
        for path in paths:
            set_to(job, path, seed, "seeded")
    return raw_jobs


def _without_idle_roles(spec: JobSpec) -> JobSpec:
    wanted = (*spec.used_roles, *spec.data.writers)
    used = {name: role for name, role in spec.roles.items() if name in wanted}
    return spec if len(used) == len(spec.roles) else spec.model_copy(update={"roles": used})


def _models(spec: JobSpec) -> list[Any]:
    return list(spec.models.values())


def _referred(spec: JobSpec) -> list[str]:
    """Earlier jobs whose students a job takes."""
    return list(dict.fromkeys(model.job for model in _models(spec) if model.job is not None))


def _key(spec: JobSpec, needs: Mapping[str, str]) -> str:
    """A digest of all that decides what a job does, and of nothing else."""
    facts = _renamed(spec, "", needs).model_dump(mode="json", by_alias=True)
    for name in OWNED:
        facts.pop(name)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _renamed(spec: JobSpec, name: str, sources: Mapping[str, str]) -> JobSpec:
    """The job called `name`, with the jobs it refers to called otherwise."""

    def model(found: Any) -> Any:
        return found if found.job is None else found.model_copy(update={"job": sources[found.job]})

    roles = {role: model(found) for role, found in spec.roles.items()}
    student = spec.student.with_models(model)
    return spec.model_copy(update={"name": name, "student": student, "roles": roles})


def _check_one_place(specs: Sequence[JobSpec]) -> None:
    for spec in specs[1:]:
        for name in OWNED[1:]:
            if getattr(spec, name) != getattr(specs[0], name):
                raise SpecError(
                    f"{spec.name}.{name}",
                    f"differs from that of {specs[0].name}",
                    "Give all jobs of a study the same",
                )


# --- names ---------------------------------------------------------------------------------------


def _names(study: StudySpec, cells: Sequence[Cell]) -> dict[str, str]:
    """A name for each key: study, job, the arms that make a difference to it, seed."""
    telling = {str(job["name"]): _telling(str(job["name"]), cells) for job in study.jobs}
    if len(study.seeds) == 1:  # others may be added, and change no name
        telling = {template: axes | {""} for template, axes in telling.items()}
    names: dict[str, str] = {}
    taken: set[str] = set()
    for cell in cells:
        for template, key in cell.jobs.items():
            if key in names:
                continue
            axes = telling[template]
            parts = [template, *(cell.arms[axis] for axis in cell.arms if axis in axes)]
            name = _name(
                study.name, [*parts, *([f"s{cell.seed}"] if "" in axes else [])], key, taken
            )
            names[key] = name
            taken.add(name)
    return names


def _telling(template: str, cells: Sequence[Cell]) -> set[str]:
    """Axes that a job depends on; "" for the seed."""

    def places(without: str) -> dict[Any, set[str]]:
        found: dict[Any, set[str]] = {}
        for cell in cells:
            arms = tuple((axis, arm) for axis, arm in cell.arms.items() if axis != without)
            place = (arms, None if without == "" else cell.seed)
            found.setdefault(place, set()).add(cell.jobs[template])
        return found

    axes = ["", *cells[0].arms]
    return {axis for axis in axes if any(len(keys) > 1 for keys in places(axis).values())}


def _name(study: str, parts: Sequence[str], key: str, taken: set[str]) -> str:
    plain = "-".join([study, *(_slug(part) for part in parts)])
    if len(plain) <= LONGEST_NAME and plain not in taken:
        return plain
    return f"{plain[: LONGEST_NAME - 9].rstrip('-')}-{key[:8]}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def _planned(draft: _Draft, names: Mapping[str, str]) -> PlannedJob:
    sources = {template: names[key] for template, key in draft.needs.items()}
    spec = _renamed(draft.spec, names[draft.key], sources)
    needs = tuple(dict.fromkeys(draft.needs.values()))
    return PlannedJob(draft.key, spec.name, draft.template, spec, needs, _pool_label(spec))


def _pool_label(spec: JobSpec) -> str:
    roles = {name: spec.roles[name].served() for name in spec.used_roles}
    facts = [roles, spec.seed, spec.deterministic, spec.pool.model_dump(mode="json")]
    return json.dumps(facts, sort_keys=True) if roles else ""


# --- order ---------------------------------------------------------------------------------------


def _ordered(jobs: Sequence[PlannedJob]) -> list[PlannedJob]:
    """Each job, then at once those that waited for it alone; jobs of one pool side by side."""
    ordered: list[PlannedJob] = []
    placed: set[str] = set()

    def place(ready: Sequence[PlannedJob]) -> None:
        pools = list(dict.fromkeys(job.pool for job in ready))
        for job in sorted(ready, key=lambda job: pools.index(job.pool)):
            ordered.append(job)
            placed.add(job.key)
            waited = [each for each in jobs if job.key in each.needs]
            place([each for each in waited if placed.issuperset(each.needs)])

    place([job for job in jobs if not job.needs])
    return ordered
