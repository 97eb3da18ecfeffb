"""YAML file -> list of `JobSpec`, with `--set path=value` on top, and the resolved file back.

Every refusal is a `SpecError` that names the field's path, the value, the limit and the remedy.
"""

import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.errors import SpecError

from .job import JobSpec


def load_jobs(path: str | Path, overrides: Sequence[str] = ()) -> list[JobSpec]:
    """Read a job file.

    Args:
        path: a YAML file holding one job (a mapping) or an ordered list of jobs under `jobs`.
        overrides: `a.b.c=value` strings; values are YAML. In a list, `NAME:a.b=value` or
            `0:a.b=value` picks one job; without a prefix the value goes to every job.

    Raises:
        SpecError: the file or a field is wrong.
    """
    raw_jobs = _read(Path(path))
    for override in overrides:
        _apply(raw_jobs, override)
    jobs = [_validate(raw, _where(index, len(raw_jobs))) for index, raw in enumerate(raw_jobs)]
    _check_list(jobs)
    return jobs


def resolved_yaml(jobs: Sequence[JobSpec]) -> str:
    """The jobs with every default written out; loads back to equal jobs."""
    dumped = [job.model_dump(mode="json", by_alias=True, exclude_none=True) for job in jobs]
    return yaml.safe_dump({"jobs": dumped}, sort_keys=False, allow_unicode=True)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise SpecError(str(path), "there is no such file", "Give the path of a job file (YAML)")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise SpecError(str(path), f"is not UTF-8 text ({error})", "Save it as UTF-8") from error
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise SpecError(str(path), f"is not valid YAML ({detail})", "Mend the line named") from error
    if isinstance(document, dict) and set(document) == {"jobs"}:
        document = document["jobs"]
    elif isinstance(document, dict):
        document = [document]
    if not isinstance(document, list) or not document:
        raise SpecError(str(path), "holds no job", "Write one job, or a list under `jobs:`")
    for index, raw in enumerate(document):
        if not isinstance(raw, dict):
            raise SpecError(f"{path}: jobs.{index}", f"is {raw!r}, not a mapping", "Write a job")
    return document


def _apply(raw_jobs: list[dict[str, Any]], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise SpecError(f"--set {override}", "is not path=value", "Write --set a.b.c=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {override}", f"value is not YAML ({error})", "Quote it") from error
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
        _put(raw, path.split("."), value, override)


def _put(node: Any, parts: list[str], value: Any, override: str) -> None:
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        key: Any = part
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise SpecError(
                    f"--set {override}",
                    f"{part!r} is no index of a list of {len(node)}",
                    f"Use 0 to {len(node) - 1}",
                )
            key = int(part)
        elif not isinstance(node, dict):
            raise SpecError(f"--set {override}", f"{part!r} is below a plain value", "Shorten it")
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
        first = error.errors()[0]
        raise _explain(first, prefix, len(error.errors())) from error


def _explain(detail: Any, prefix: str, count: int) -> SpecError:
    location = [part for part in detail["loc"] if not _is_union_tag(part, detail["loc"])]
    field = prefix + ".".join(str(part) for part in location) or "job"
    more = f" ({count - 1} more after this one)" if count > 1 else ""
    if detail["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(sorted(known))}"
        return SpecError(field, "is not a known key", hint + more)
    if detail["type"] == "missing":
        return SpecError(field, "is missing", "Add it" + more)
    value = detail.get("input")
    shown = f", got {value!r}" if isinstance(value, str | int | float | bool | type(None)) else ""
    message = detail["msg"].removeprefix("Value error, ")
    problem, semicolon, remedy = message.rpartition("; ")
    if not semicolon:
        problem, remedy = message[:1].lower() + message[1:] + shown, "Change the value"
    return SpecError(field, problem, remedy[:1].upper() + remedy[1:] + more)


def _walk(model: Any, part: Any) -> list[Any]:
    """Models that `part` leads to from `model`, through unions, lists and mappings."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return []
    for name, info in model.model_fields.items():
        if part in (name, info.alias):
            return _unwrap(info.annotation)
    return []


def _unwrap(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _unwrap(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType, list, tuple, dict):
        return [leaf for arg in typing.get_args(annotation) for leaf in _unwrap(arg)]
    return [annotation]


def _known_keys(location: Sequence[Any]) -> list[str]:
    models: list[Any] = [JobSpec]
    for part in location:
        following = [leaf for model in models for leaf in _walk(model, part)]
        models = following or models  # a list index or a mapping key stays where it is
    keys = [
        info.alias or name
        for model in models
        if isinstance(model, type) and issubclass(model, BaseModel)
        for name, info in model.model_fields.items()
    ]
    return list(dict.fromkeys(keys))


_TAGS = {
    "constant", "linear", "cosine", "step", "piecewise", "float", "int",
    "cross_entropy", "forward_kl", "reverse_kl", "jensen_shannon",
    "hidden", "topk", "ephemeral", "standing", "jsonl", "parquet", "csv", "dataset", "completion",
}  # fmt: skip


def _is_union_tag(part: Any, location: Sequence[Any]) -> bool:
    """Pydantic puts the tag of a discriminated union into the path; a user's file has no such key."""
    if not isinstance(part, str):
        return False
    if part in _TAGS or "[" in part:
        return True
    index = list(location).index(part)
    before = location[index - 1] if index else None
    return part in ("text", "messages", "import") and (isinstance(before, int) or before == "format")


def _check_list(jobs: Sequence[JobSpec]) -> None:
    seen: dict[str, JobSpec] = {}
    for index, job in enumerate(jobs):
        if job.name in seen:
            raise SpecError(f"jobs.{index}.name", f"{job.name!r} is used twice", "Rename one job")
        named = {"student": job.student, **{f"roles.{k}": v for k, v in job.roles.items()}}
        for field, model in named.items():
            if model.job is not None and model.job not in seen:
                raise SpecError(
                    f"jobs.{index}.{field}.job",
                    f"names {model.job!r}, which is not an earlier job of this file",
                    f"Earlier jobs: {', '.join(seen) or 'none'}",
                )
        seen[job.name] = job
