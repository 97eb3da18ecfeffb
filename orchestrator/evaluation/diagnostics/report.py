"""What diagnostics have found, as metrics and as part of a report. Standard library only."""

from collections.abc import Mapping
from html import escape
from typing import Any

from ..history import History
from ..page import pairs

PREFIX = "diagnostics/"
OMEGA_EDGES = tuple(step / 4 for step in range(-4, 4))
"""Where the bins of an omega histogram meet: the first is below them all, the last goes to 1."""
BARS = " ▁▂▃▄▅▆▇█"


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


def last_found(history: History) -> dict[str, dict[str, float]]:
    """By diagnostic, the latest value of each of its numbers; names below it joined by `/`."""
    found: dict[str, dict[str, float]] = {}
    for metric, points in history.metrics.items():
        if metric.startswith(PREFIX) and points:
            title, _, number = metric.removeprefix(PREFIX).partition("/")
            found.setdefault(title, {})[number] = points[-1].value
    return found


def as_html_tables(found: Mapping[str, Mapping[str, float]]) -> str:
    """A heading and a list of numbers for each diagnostic; shares stand in one row."""
    return "".join(f"<h3>{escape(title)}</h3>{pairs(_rows(found[title]))}" for title in found)


def _rows(values: Mapping[str, float]) -> list[tuple[str, str]]:
    rows: dict[str, str] = {}
    lists: dict[str, list[float]] = {}
    for name, value in values.items():
        base, _, place = name.rpartition("/")
        if base and place.isdigit():
            lists.setdefault(base, []).append(value)
            rows[base] = _shares(lists[base])
        else:
            rows[name] = f"{value:,.4g}"
    return [(name.replace("_", " ").replace("/", ", "), text) for name, text in rows.items()]


def _shares(values: list[float]) -> str:
    tallest = max(values) or 1.0
    bars = "".join(BARS[round(value / tallest * (len(BARS) - 1))] for value in values)
    return f"{bars}  {', '.join(f'{value:.1%}' for value in values)}"
