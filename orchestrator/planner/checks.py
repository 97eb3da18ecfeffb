"""Everything about a list of jobs that the file system can refute before anything starts.

Promises: bounded work, no weights read, nothing of a model's files run, nothing written.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlparse

from orchestrator.errors import SpecError
from orchestrator.models.folder import check_folder
from orchestrator.signals.cache.folder import DEFAULT_PATH, refuse_unusable
from orchestrator.spec import JobSpec, load_jobs
from orchestrator.spec.models import ModelSpec
from strategies.specs import HookSpec, ImportedFeaturesSpec, ImportedTerm, ObjectiveSpec

from .capacity import checkpoint_bytes, job_model_size
from .documents import check_sources
from .generated import check_lengths
from .imports import check_import
from .stages import check_head
from .tokenizers import check_tokenizers

JOB_FILE = "job.yaml"
"""A run folder's copy of the resolved jobs: it says to whom the folder belongs."""


def preflight(jobs: Sequence[JobSpec], free_bytes: Callable[[Path], int] | None = None) -> None:
    """Refuse jobs whose files, models, tokenizers or disk cannot do.

    Args:
        jobs: the jobs of one file, in order.
        free_bytes: free bytes of the disk that holds a folder; default: what the system says.

    Raises:
        SpecError: names the first field that is wrong, the value and the remedy.
    """
    for index, job in enumerate(jobs):
        prefix = f"jobs.{index}." if len(jobs) > 1 else ""
        check_sources(job.data, f"{prefix}data")
        check_lengths(job, jobs[:index], prefix)
        check_head(jobs, index, prefix)
        for name, model in job.models.items():
            _check_model(model, prefix + name)
        for name, target in _imports(job.objective):
            check_import(target, prefix + name)
        check_tokenizers(job, jobs[:index], prefix)
        if job.cache.enabled:
            refuse_unusable(Path(job.cache.path or DEFAULT_PATH).expanduser())
    _check_disk(jobs, free_bytes or _free_bytes)


def check_run_folder(path: str | Path, jobs: Sequence[JobSpec]) -> None:
    """Refuse a run folder that belongs to other jobs. An absent or empty folder is free.

    Raises:
        SpecError: the folder holds another run, or something that is no run.
    """
    folder = Path(path)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SpecError(str(folder), "is a file where a run folder should be", "Move it away")
    if not any(folder.iterdir()):
        return
    record = folder / JOB_FILE
    if not record.is_file():
        raise SpecError(
            str(folder),
            f"is not empty and has no {JOB_FILE}: it is no run folder",
            "Choose another storage, or move what is there away",
        )
    owners = load_jobs(record)
    if owners != list(jobs):
        names = ", ".join(job.name for job in owners)
        raise SpecError(
            str(folder),
            f"belongs to another job ({names}{_difference(owners, jobs)})",
            "Choose another name or storage, or go on with that run: stillhouse resume",
        )


def _imports(objective: ObjectiveSpec) -> Iterator[tuple[str, str]]:
    """Field and import path of everything of one's own in an objective."""
    for index, term in enumerate(objective.terms):
        if isinstance(term, ImportedTerm | ImportedFeaturesSpec):
            yield f"objective.terms.{index}.target", term.target
    if isinstance(objective.between_epochs, HookSpec):
        yield "objective.between_epochs.target", objective.between_epochs.target


def _check_model(model: ModelSpec, field: str) -> None:
    kind, value = model.source
    if kind == "path":
        check_folder(value, model, f"{field}.path")
    elif kind == "import":
        check_import(value, f"{field}.import")


def _check_disk(jobs: Sequence[JobSpec], free_bytes: Callable[[Path], int]) -> None:
    """Run folders of one file stay side by side, so what their jobs keep adds up."""
    wanted: dict[Path, int] = {}
    for index, job in enumerate(jobs):
        folder = local_folder(job.storage)
        each = checkpoint_bytes(job, job_model_size(job, job.student, jobs[:index]))
        if folder is None or each is None:
            continue
        copies = max(2, job.training.checkpoint.keep + 1)  # a new one is whole before an old goes
        place = _existing_parent(folder)
        wanted[place] = wanted.get(place, 0) + copies * each
        free = free_bytes(place)
        if wanted[place] > free:
            raise SpecError(
                f"jobs.{index}.storage" if len(jobs) > 1 else "storage",
                f"{job.storage!r} has {_gib(free)} free, and {copies} checkpoints of {_gib(each)} "
                f"must fit (training.checkpoint.keep is {job.training.checkpoint.keep}; the jobs "
                f"up to here take {_gib(wanted[place])})",
                "Free some space, keep fewer, or name another storage",
            )


def local_folder(storage: str) -> Path | None:
    """The folder that a storage names on this machine; None if it is elsewhere."""
    parsed = urlparse(storage)
    if parsed.scheme in ("", "file", "local"):
        return Path(parsed.path if parsed.scheme else storage)
    return None


def _existing_parent(folder: Path) -> Path:
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _difference(owners: Sequence[JobSpec], jobs: Sequence[JobSpec]) -> str:
    """The first field in which two lists of jobs of equal names differ."""
    if [job.name for job in owners] != [job.name for job in jobs]:
        return ""
    for owner, job in zip(owners, jobs, strict=True):
        for name in type(job).model_fields:
            if getattr(owner, name) != getattr(job, name):
                return f", with another {name}"
    return ""
