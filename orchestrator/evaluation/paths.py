"""Dotted paths of the numbers in an evaluation or a summary. Plain values only."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from .measure import Evaluation


def paths_of(values: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all numbers in nested mappings."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from paths_of(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield prefix


def number_at(values: Any, path: str) -> float | None:
    """The finite number at a dotted path; None if there is none."""
    found = values
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if math.isfinite(found) else None


USUAL = frozenset(paths_of(Evaluation(0, *[0.0] * (len(fields(Evaluation)) - 1)).to_dict()))
"""Paths of what every evaluation may have."""
