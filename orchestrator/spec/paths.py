"""Paths of a job made absolute, because workers do not run where the user stands."""

from pathlib import Path
from typing import Any

from .job import JobSpec


def absolute_paths(job: JobSpec) -> JobSpec:
    """The same job with every local path absolute; hub ids, names and URIs stay as they are.

    Of an imported model's arguments, `path` is one where it names a file.
    """

    def model(raw: dict[str, Any]) -> None:
        if raw.get("path"):
            raw["path"] = _absolute(raw["path"])
        file = raw["arguments"].get("path")
        if isinstance(file, str) and Path(file).expanduser().is_file():
            raw["arguments"]["path"] = _absolute(file)
        if raw.get("tokenizer") and Path(raw["tokenizer"]).expanduser().exists():
            raw["tokenizer"] = _absolute(raw["tokenizer"])

    raw = job.model_dump(mode="json", by_alias=True)
    members = raw["student"]["members"] or {}
    for part in (raw["student"], *members.values(), *raw["roles"].values()):
        model(part)
    sources = raw["data"]["sources"]
    for source in [*sources, *_nested(sources)]:
        if "path" in source:
            source["path"] = _absolute(source["path"])
        if source["kind"] == "dataset" and Path(source["name"]).expanduser().exists():
            source["name"] = _absolute(source["name"])
    start = raw["training"]["start"]
    if start is not None:
        start["run"] = _absolute(start["run"])
    if raw["cache"]["path"] is not None:
        raw["cache"]["path"] = _absolute(raw["cache"]["path"])
    if "://" not in raw["storage"]:
        raw["storage"] = _absolute(raw["storage"])
    return JobSpec.model_validate(raw)


def _nested(sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sources of the prompts of others."""
    prompts = (source.get("prompts") or {} for source in sources)
    return [given["source"] for given in prompts if given.get("source") is not None]


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())
