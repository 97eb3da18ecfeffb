"""What diagnostics have found, as metrics and as part of a report. Standard library only."""

from collections.abc import Mapping
from typing import Any

PREFIX = "diagnostics/"
OMEGA_EDGES = tuple(step / 4 for step in range(-4, 4))
"""Where the bins of an omega histogram meet: the first is below them all, the last goes to 1."""


def metrics(found: Mapping[str, Any], prefix: str = PREFIX) -> dict[str, float]:
    """Nested numbers by metric name; those of a list are numbered from 00."""
    flat: dict[str, float] = {}
    for name, value in found.items():
        if isinstance(value, Mapping):
            flat |= metrics(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            flat |= {f"{prefix}{name}/{i:02d}": float(x) for i, x in enumerate(value)}
        else:
            flat[f"{prefix}{name}"] = float(value)
    return flat
