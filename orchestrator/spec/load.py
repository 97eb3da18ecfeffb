"""YAML file -> list of `JobSpec`, with `--set path=value` on top, and the resolved file back.

Every refusal is a `SpecError` that names the field's path, the value, the limit and the remedy.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.errors import SpecError

from .explain import explain
from .job import JobSpec


def load_jobs(
    path: str | Path, overrides: Sequence[str] = (), defaults: Mapping[str, str] | None = None
) -> list[JobSpec]:
    """Read a job file.

    Args:
        path: a YAML file holding one job (a mapping) or an ordered list of jobs under `jobs`.
        overrides: `a.b.c=value` strings; values are YAML. In a list, `NAME:a.b=value` or
            `0:a.b=value` picks one job; without a prefix the value goes to every job.
        defaults: dotted field -> value, for jobs in which neither file nor overrides give it.

    Raises:
        SpecError: the file or a field is wrong.
    """
    raw_jobs = _read(Path(path))
    for override in overrides:
        apply_override(raw_jobs, override)
    put_defaults(raw_jobs, defaults or {})
    return validate_jobs(raw_jobs)


def validate_jobs(raw_jobs: Sequence[dict[str, Any]]) -> list[JobSpec]:
    """Plain data, an entry a job, as one list.

    Raises:
        SpecError: a field is wrong, or a job names one that does not come before it.
    """
    jobs = [_validate(raw, _where(index, len(raw_jobs))) for index, raw in enumerate(raw_jobs)]
    _check_list(jobs)
    return jobs


def put_defaults(raw_jobs: Sequence[dict[str, Any]], defaults: Mapping[str, str]) -> None:
    """Set dotted fields where a job says nothing."""
    for field, value in defaults.items():
        for raw in raw_jobs:
            if not _has(raw, field.split(".")):
                put(raw, field.split("."), value, f"{field}={value}")


def resolved_yaml(jobs: Sequence[JobSpec]) -> str:
    """The jobs with every default written out; loads back to equal jobs.

    Left out is only what is absent and absent by default; a null that overrides a default stays.
    """
    dumped = [_written(job) for job in jobs]
    # ASCII only: PyYAML writes some line separators bare and reads them back as spaces.
    return yaml.safe_dump({"jobs": dumped}, sort_keys=False)


def _written(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {
            info.alias or name: _written(getattr(value, name))
            for name, info in type(value).model_fields.items()
            if not (getattr(value, name) is None and info.default is None)
        }
    if isinstance(value, Mapping):
        return {key: _written(each) for key, each in value.items()}
    return [_written(each) for each in value] if isinstance(value, list | tuple) else value


def read_yaml(path: Path) -> Any:
    """A file's one YAML document; parts that an anchor shares are set apart.

    Raises:
        SpecError: there is no such file, or it is not YAML.
    """
    if not path.is_file():
        raise SpecError(str(path), "there is no such file", "Give the path of a job file (YAML)")
    try:
        return unshared(yaml.safe_load(path.read_text(encoding="utf-8")))
    except UnicodeDecodeError as error:
        raise SpecError(str(path), f"is not UTF-8 text ({error})", "Save it as UTF-8") from error
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise SpecError(str(path), f"is not valid YAML ({detail})", "Mend that line") from error


def _read(path: Path) -> list[dict[str, Any]]:
    document = read_yaml(path)
    if isinstance(document, dict) and set(document) == {"jobs"}:
        document = document["jobs"]
    elif isinstance(document, dict):
        document = [document]
    if not isinstance(document, list) or not document:
        raise SpecError(str(path), "holds no job", "Write one job, or a list under `jobs:`")
    for index, raw in enumerate(document):
        if not isinstance(raw, dict):
            raise SpecError(f"{path}: jobs.{index}", f"is {raw!r}, not a mapping", "Write a job")
        if "search" in raw:
            raise SpecError(
                "search", "makes many jobs of this one", f"Run them by stillhouse search {path}"
            )
    return document


def unshared(node: Any) -> Any:
    """A copy in which no part appears twice: a YAML anchor's users are set apart by --set."""
    if isinstance(node, dict):
        return {key: unshared(value) for key, value in node.items()}
    return [unshared(value) for value in node] if isinstance(node, list) else node


def parse_override(override: str) -> tuple[str, Any]:
    """`a.b.c=value` as path and value.

    Raises:
        SpecError: it is not of that form.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise SpecError(f"--set {override}", "is not path=value", "Write --set a.b.c=value")
    try:
        return path, yaml.safe_load(text)
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise SpecError(f"--set {override}", f"value is not YAML ({detail})", "Quote it") from error


def apply_override(raw_jobs: list[dict[str, Any]], override: str) -> None:
    """Set a field of every job, or of the one that a prefix names; see `load_jobs`.

    Raises:
        SpecError: the override is malformed, or there is no such job.
    """
    path, value = parse_override(override)
    chosen, colon, rest = path.partition(":")
    targets = raw_jobs
    if colon:
        names = [str(raw.get("name")) for raw in raw_jobs]
        if chosen in names:
            targets = [raw_jobs[names.index(chosen)]]
        elif chosen.isdigit() and int(chosen) < len(raw_jobs):
            targets = [raw_jobs[int(chosen)]]
        else:
            raise SpecError(
                f"--set {override}", f"names job {chosen!r}", f"Jobs are: {', '.join(names)}"
            )
        path = rest
    for raw in targets:
        put(raw, path.split("."), unshared(value), f"--set {override}")


def _has(node: Any, parts: list[str]) -> bool:
    for part in parts:
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def put(node: Any, parts: Sequence[str], value: Any, where: str) -> None:
    """Set what a path names in plain data, making the mappings on the way.

    Args:
        node: mappings and lists; changed.
        parts: the path; a list's entries by index.
        value: put as it is.
        where: who wants it, for messages.

    Raises:
        SpecError: an index is none of its list's, or a plain value is in the way.
    """
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        key: Any = part
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise SpecError(
                    where,
                    f"{part!r} is no index of a list of {len(node)}",
                    f"Use 0 to {len(node) - 1}",
                )
            key = int(part)
        elif not isinstance(node, dict):
            raise SpecError(where, f"{part!r} is below a plain value", "Shorten it")
        if following is None:
            node[key] = value
        else:
            if isinstance(node, dict) and not isinstance(node.get(key), dict | list):
                node[key] = {}
            node = node[key]


def _where(index: int, count: int) -> str:
    return f"jobs.{index}." if count > 1 else ""


def _validate(raw: dict[str, Any], prefix: str) -> JobSpec:
    try:
        return JobSpec.model_validate(raw)
    except ValidationError as error:
        raise explain(error, JobSpec, raw, prefix) from error


def _check_list(jobs: Sequence[JobSpec]) -> None:
    seen: dict[str, JobSpec] = {}
    for index, job in enumerate(jobs):
        if job.name in seen:
            raise SpecError(f"jobs.{index}.name", f"{job.name!r} is used twice", "Rename one job")
        for field, model in job.models.items():
            if model.job is None:
                continue
            if model.job not in seen:
                raise _not_earlier(jobs, index, f"jobs.{index}.{field}.job", model.job, seen)
            parts = tuple(seen[model.job].student.members or ())
            if model.member is not None and model.member not in parts:
                raise SpecError(
                    f"jobs.{index}.{field}.member",
                    f"is {model.member!r}, which the student of job {model.job} does not have "
                    f"({', '.join(parts) or 'none: it is one model'})",
                    "Name one of its members" if parts else "Remove it",
                )
        seen[job.name] = job


def _not_earlier(
    jobs: Sequence[JobSpec], index: int, field: str, name: str, seen: Mapping[str, JobSpec]
) -> SpecError:
    """Why a job cannot take another's student: there is none, it comes later, or both wait."""
    needs = {job.name: [m.job for m in job.models.values() if m.job] for job in jobs}
    if name in needs and (way := _way(needs, name, jobs[index].name)):
        return SpecError(
            field,
            f"names {name!r}, and so each waits for the other's student, which is frozen only "
            f"once it is trained ({' -> '.join((jobs[index].name, *way))})",
            "Train them together, as student.members of one job whose terms name each other, or "
            "leave one of the edges out",
        )
    remedy = f"Earlier jobs: {', '.join(seen) or 'none'}"
    if name in needs:
        remedy = f"Put job {name} first. {remedy}"
    return SpecError(field, f"names {name!r}, which is not an earlier job of this file", remedy)


def _way(needs: Mapping[str, Sequence[str]], start: str, end: str) -> list[str]:
    """Jobs from `start` to `end`, each needing the next; empty if there is no such way."""
    ways, known = [[start]], {start}
    while ways:
        way = ways.pop()
        if way[-1] == end:
            return way
        following = [name for name in needs.get(way[-1], ()) if name not in known]
        known.update(following)
        ways += [[*way, name] for name in following]
    return []
