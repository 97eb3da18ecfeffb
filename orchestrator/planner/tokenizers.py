"""Do the models of a job read the same ids from the same text?

Compares by what ids mean (`models.tokenizer_fingerprint`), not by files. Models on a hub or in a
registry are not fetched here: they are compared when they are loaded.
"""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import SpecError
from orchestrator.models.tokenizer import has_tokenizer, tokenizer_fingerprint, vocabulary_size
from orchestrator.spec import JobSpec
from orchestrator.spec.models import ModelSpec


def check_tokenizers(job: JobSpec, earlier: Sequence[JobSpec], prefix: str) -> None:
    """Refuse a job on text without a tokenizer, or whose models' tokenizers differ.

    Args:
        job: the job.
        earlier: the jobs before it in its file.
        prefix: what precedes a field of this job in messages.

    Raises:
        SpecError: names the model, both folders and the remedy.
    """
    if not job.data.reads_text:
        return
    found = local_tokenizers(job, earlier)
    for field, folder in found.items():
        if not has_tokenizer(folder):
            raise SpecError(
                prefix + field,
                f"{folder!r} holds no tokenizer",
                "Name a folder with a tokenizer.json, or a hub id",
            )
    if not found:
        if not _elsewhere(job, earlier):
            raise SpecError(
                f"{prefix}student.tokenizer",
                "is absent, and no model of the job brings one",
                "Name a folder or hub id that holds a tokenizer",
            )
        return
    (first_field, first), *others = found.items()
    expected = tokenizer_fingerprint(first)
    for field, folder in others:
        if tokenizer_fingerprint(folder) != expected:
            raise SpecError(
                prefix + field,
                f"the tokenizer in {folder!r} ({vocabulary_size(folder)} ids) differs from "
                f"{first_field}'s in {first!r} ({vocabulary_size(first)} ids)",
                "Use models that share one tokenizer: teacher and student must read the same ids",
            )


def job_tokenizer(job: JobSpec, earlier: Sequence[JobSpec]) -> str | None:
    """The folder of a job's tokenizer, if it reads text and this is on this machine."""
    if not job.data.reads_text:
        return None
    return next(iter(local_tokenizers(job, earlier).values()), None)


def local_tokenizers(job: JobSpec, earlier: Sequence[JobSpec]) -> dict[str, str]:
    """Dotted field -> folder, for every model that names or brings a tokenizer on this machine.

    Named ones come first, then brought ones; in each, the student's before the roles': the first
    is the job's (see `models.tokenizer.tokenizer_folder`).
    """
    named, brought = {}, {}
    for field, model in _models(job):
        if model.tokenizer is not None:
            if _is_local(model.tokenizer):
                named[f"{field}.tokenizer"] = model.tokenizer
            continue
        kind, value = model.source
        if kind == "path" and has_tokenizer(value):
            brought[f"{field}.path"] = value
        folder = _of_earlier(value, earlier) if kind == "job" else None
        if folder is not None:
            brought[f"{field}.job"] = folder
    return {**named, **brought}


def _models(job: JobSpec) -> list[tuple[str, ModelSpec]]:
    roles = [(f"roles.{name}", job.roles[name]) for name in job.used_roles]
    return [("student", job.student), *roles]


def _of_earlier(name: str, earlier: Sequence[JobSpec]) -> str | None:
    for index, job in enumerate(earlier):
        if job.name == name:
            return job_tokenizer(job, earlier[:index])
    return None


def _elsewhere(job: JobSpec, earlier: Sequence[JobSpec]) -> bool:
    """Whether some model's tokenizer is on a hub or in a registry."""
    for _, model in _models(job):
        kind, value = model.source
        if model.tokenizer is not None or kind in ("hub", "registry"):
            return True
        for index, other in enumerate(earlier):
            if kind == "job" and other.name == value and _elsewhere(other, earlier[:index]):
                return True
    return False


def _is_local(value: str) -> bool:
    return Path(value).exists() or value.startswith((".", "/", "~"))
