"""Do the models of a job read the same ids from the same text? If not, can its terms do without?

Compares by what ids mean (`models.tokenizer_fingerprint`), not by files. Models on a hub or in a
registry are not fetched by `check_tokenizers`: `crossings` compares them once they are folders.
"""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.data import Crossing
from orchestrator.errors import SpecError
from orchestrator.models.positions import positions_of
from orchestrator.models.tokenizer import (
    has_tokenizer,
    own_tokenizer,
    tokenizer_fingerprint,
    vocabulary_size,
)
from orchestrator.spec import JobSpec
from orchestrator.spec.models import ModelSpec


def check_tokenizers(job: JobSpec, earlier: Sequence[JobSpec], prefix: str) -> None:
    """Refuse a job on text without a tokenizer, or with a role of another that no term can cross.

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
        if field.split(".")[1] not in job.used_roles:
            continue  # what a role writes is text
        if tokenizer_fingerprint(folder) != expected:
            differs = (
                f"the tokenizer in {folder!r} ({vocabulary_size(folder)} ids) differs from "
                f"{first_field}'s in {first!r} ({vocabulary_size(first)} ids)"
            )
            _check_can_cross(job, field.split(".")[1], prefix + field, differs, prefix)


def crossings(job: JobSpec, tokenizer: str | None) -> dict[str, Crossing]:
    """The roles that are asked in tokens of their own.

    Args:
        job: its `registry` and `job` sources made folders. Roles on a hub are fetched.
        tokenizer: folder of the job's tokenizer; None: the data are no text.

    Raises:
        SpecError: a term cannot learn from such a role.
    """
    if tokenizer is None:
        return {}
    expected, found = tokenizer_fingerprint(tokenizer), dict[str, Crossing]()
    for name in job.used_roles:
        folder = own_tokenizer(job.roles[name], f"roles.{name}")
        if folder is None or tokenizer_fingerprint(folder) == expected:
            continue
        differs = f"the tokenizer in {folder!r} differs from the job's in {tokenizer!r}"
        _check_can_cross(job, name, f"roles.{name}", differs, "")
        found[name] = Crossing(folder, positions_of(job.roles[name]))
    return found


def _check_can_cross(job: JobSpec, role: str, field: str, differs: str, prefix: str) -> None:
    """Refuse a role with another tokenizer unless every term that asks it can do without ids."""
    asking = [term for term in job.objective.terms if role in term.served_roles]
    unable = [term.kind for term in asking if not term.crosses_tokenizers]
    if unable or job.data.task != "causal_lm":
        asked = f", and {unable[0]} compares ids" if unable else ""
        raise SpecError(
            field,
            differs + asked,
            "Use models that share one tokenizer: teacher and student must read the same ids; or "
            "learn from the role with `universal` terms only, which compare ranks",
        )
    if job.evaluation.against == role:
        raise SpecError(
            f"{prefix}evaluation.against",
            f"is {role!r}, and {differs}: agreement and KL compare ids",
            "Name a role that shares the student's tokenizer, or remove it",
        )
    for index, diagnostic in enumerate(job.evaluation.diagnostics):
        nobody = job.compared_with((role,)) is None  # for those that name no role
        if any(named == role or (named is None and nobody) for named in diagnostic.asked):
            raise SpecError(
                f"{prefix}evaluation.diagnostics.{index}",
                f"asks {role!r}, and {differs}: {diagnostic.kind} compares ids",
                "Name a role that shares the student's tokenizer, or remove it",
            )


def job_tokenizer(job: JobSpec, earlier: Sequence[JobSpec]) -> str | None:
    """The folder of a job's tokenizer, if it reads text and this is on this machine."""
    if not job.data.reads_text:
        return None
    return next(iter(local_tokenizers(job, earlier).values()), None)


def local_tokenizers(job: JobSpec, earlier: Sequence[JobSpec]) -> dict[str, str]:
    """Dotted field -> folder, for every model that names or brings a tokenizer on this machine.

    The student's comes first, then those that roles name, then those that they bring: the first is
    the job's (see `models.tokenizer.tokenizer_folder`).
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
    found = {**named, **brought}
    return dict(sorted(found.items(), key=lambda item: not item[0].startswith("student.")))


def _models(job: JobSpec) -> list[tuple[str, ModelSpec]]:
    names = dict.fromkeys((*job.used_roles, *job.data.writers))
    roles = [(f"roles.{name}", job.roles[name]) for name in names]
    own = [(f"student{below}", model) for below, model in job.student.member_models().items()]
    return [*own, *roles]


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
