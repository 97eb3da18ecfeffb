"""Search file (YAML) -> `Search`, with `--set path=value` on top.

A search file is a job file of one job with the key `search`. Every refusal is a `SpecError` in the
words of the file. Loads neither torch nor ray.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.errors import SpecError
from orchestrator.spec.explain import explain
from orchestrator.spec.load import parse_override, put, put_defaults, read_yaml, unshared

from .plan import Search
from .spec import SearchSpec

KEY = "search"


def load_search(
    path: str | Path, overrides: Sequence[str] = (), defaults: Mapping[str, str] | None = None
) -> Search:
    """Read a search file.

    Args:
        path: a YAML file.
        overrides: `a.b.c=value` strings; `search.budget.trials=4` sets the search, others the job.
        defaults: dotted field of the job -> value, where nothing gives it.

    Raises:
        SpecError: the file or a field of `search` is wrong. The job is validated with its trials.
    """
    raw = read_yaml(Path(path))
    if not isinstance(raw, dict) or KEY not in raw:
        several = isinstance(raw, dict) and "jobs" in raw
        raise SpecError(
            str(path),
            "holds a list of jobs, and a search is of one" if several else "holds no search",
            "Write one job with the key search; see the guide's page on search",
        )
    for override in overrides:
        field, value = parse_override(override)
        put(raw, field.split("."), unshared(value), f"--set {override}")
    job = {key: value for key, value in raw.items() if key != KEY}
    put_defaults([job], defaults or {})
    return search_of(job, raw[KEY])


def search_of(job: dict[str, Any], raw: Any) -> Search:
    """Plain data as a search.

    Raises:
        SpecError: a field of the search is wrong.
    """
    try:
        return Search(job, SearchSpec.model_validate(raw))
    except ValidationError as error:
        raise explain(error, SearchSpec, raw, f"{KEY}.") from error


def search_yaml(search: Search) -> str:
    """The file again, with every default of the search written out; loads back to an equal one."""
    spec = search.spec.model_dump(mode="json")
    return yaml.safe_dump({**search.job, KEY: spec}, sort_keys=False)
