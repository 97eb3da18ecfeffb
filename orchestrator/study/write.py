"""The files a study ends with: tables, a page, all numbers, a plot a metric."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.series.folder import publish

from .findings import Checked
from .numbers import Results
from .plot import draw
from .spec import StudySpec
from .table import as_markdown, as_page, as_plain, grids


def write_tables(
    folder: Path,
    study: StudySpec,
    results: Results,
    checks: Sequence[Checked],
    failed: Mapping[str, str],
) -> list[Path]:
    """Write them, each replacing an older one as one act; their paths."""
    drawn = {metric.label: draw(study, metric, results.rows) for metric in study.metrics}
    plots = {label: picture for label, picture in drawn.items() if picture is not None}
    found = grids(study, results, checks, failed)
    plain = as_plain(study, results, checks, failed)
    files = {
        "table.md": as_markdown(study, found).encode(),
        "table.html": as_page(study, found, plots).encode(),
        "table.json": json.dumps(plain, indent=1).encode(),
        **{f"plot-{_slug(label)}.svg": picture for label, picture in plots.items()},
    }
    return [publish(folder / name, content) for name, content in files.items()]


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-")
