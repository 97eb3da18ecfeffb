"""Study file (YAML) -> `StudySpec`, with `--set path=value` on top.

Every refusal is a `SpecError` in the words of the file. Loads neither torch nor ray.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.errors import SpecError
from orchestrator.spec.explain import explain
from orchestrator.spec.load import apply_override, parse_override, put, put_defaults, read_yaml

from .spec import StudySpec

_OWN_FIELDS = tuple(name for name in StudySpec.model_fields if name != "jobs")


def load_study(
    path: str | Path, overrides: Sequence[str] = (), defaults: Mapping[str, str] | None = None
) -> StudySpec:
    """Read a study file.

    Args:
        path: a YAML file.
        overrides: `a.b.c=value` strings. A path that begins with a field of the study sets it; any
            other goes to its jobs, as for a job file. What an arm sets comes after.
        defaults: dotted field of a job -> value, for jobs in which nothing gives it.

    Raises:
        SpecError: the file or a field is wrong.
    """
    raw = read_yaml(Path(path))
    if not isinstance(raw, dict):
        raise SpecError(str(path), "holds no study", "Write name, jobs, vary, seeds and metrics")
    for override in overrides:
        _apply(raw, override)
    for job in (raw_jobs := _raw_jobs(raw)):
        if not isinstance(job, dict):
            raise SpecError("jobs", f"holds {job!r}, not a mapping", "Write a job")
    put_defaults(raw_jobs, defaults or {})
    return study_of(raw)


def study_of(raw: Any) -> StudySpec:
    """Plain data as a study.

    Raises:
        SpecError: a field is wrong.
    """
    if isinstance(raw, dict) and isinstance(raw.get("jobs"), dict):
        raw = {**raw, "jobs": [raw["jobs"]]}
    try:
        return StudySpec.model_validate(raw)
    except ValidationError as error:
        raise explain(error, StudySpec, raw, "") from error


def study_yaml(study: StudySpec) -> str:
    """The study with every default of its own written out; loads back to an equal one."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)


def _raw_jobs(raw: dict[str, Any]) -> list[Any]:
    jobs = raw.get("jobs")
    return jobs if isinstance(jobs, list) else [] if jobs is None else [jobs]


def _apply(raw: dict[str, Any], override: str) -> None:
    path, value = parse_override(override)
    if path.split(".")[0] in _OWN_FIELDS:
        put(raw, path.split("."), value, f"--set {override}")
    else:
        apply_override(_raw_jobs(raw), override)
