"""A study's picture: one chart a metric, a line an arm of the compared axis, bars of one error.

Promises: the same bytes for the same numbers. Matplotlib is imported when the first is drawn.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from orchestrator.evaluation.charts import COLOURS, GRID, saved, styled

from .numbers import Mean, Row, Setting
from .spec import MetricSpec, StudySpec
from .text import heading, setting_text

PANELS_A_ROW = 3
MOST_PANELS = 12


def draw(
    study: StudySpec, metric: MetricSpec, rows: Sequence[Row], form: Literal["svg", "png"] = "svg"
) -> bytes | None:
    """One metric over the arms of an axis; None if nothing of it was measured.

    The compared axis gives the lines, the first other axis the places along x; each setting of
    further axes has a panel of its own, up to a limit.
    """
    rows = [row for row in rows if metric.label in row.means]
    if not rows:
        return None
    lines = study.compare.axis if study.compare is not None else None
    across = next((axis for axis in study.vary if axis != lines), lines)
    lines = None if across == lines else lines
    apart = [axis for axis in study.vary if axis not in (lines, across)]
    panels = list(dict.fromkeys(_only(row.setting, apart) for row in rows))[:MOST_PANELS]
    with styled() as Figure:
        high = math.ceil(len(panels) / PANELS_A_ROW)
        wide = min(PANELS_A_ROW, len(panels))
        size = (max(5.6, 3.4 * wide), 2.9 * high + 0.2)
        figure = Figure(figsize=size, dpi=110, layout="constrained")
        grid = figure.subplots(high, wide, squeeze=False, sharey=True)
        for index, axes in enumerate(grid.flat):
            if index >= len(panels):
                axes.set_visible(False)
                continue
            here = [row for row in rows if _only(row.setting, apart) == panels[index]]
            _panel(axes, study, metric, here, across, lines)
            axes.set_title(setting_text(panels[index]) or study.name, loc="left", fontsize=10)
        grid[0][0].set_ylabel(heading(metric))
        return saved(figure, form)


def _only(setting: Setting, axes: Sequence[str]) -> Setting:
    return tuple(pair for pair in setting if pair[0] in axes)


def _panel(
    axes: Any,
    study: StudySpec,
    metric: MetricSpec,
    rows: Sequence[Row],
    across: str | None,
    lines: str | None,
) -> None:
    names = list(study.vary[across]) if across is not None else [""]
    numeric = across is not None and len(names) > 1 and all(map(_is_number, names))
    arms = list(study.vary[lines]) if lines is not None else [None]
    scale = 100.0 if metric.percent else 1.0
    for index, arm in enumerate(arms):
        places: list[float] = []
        means: list[Mean] = []
        for row in rows:
            here = dict(row.setting)
            if lines is None or here[lines] == arm:
                name = here[across] if across is not None else ""
                places.append(float(name) if numeric else names.index(name))
                means.append(row.means[metric.label])
        axes.errorbar(
            places,
            [mean.mean * scale for mean in means],
            yerr=[(mean.error or 0.0) * scale for mean in means],
            color=COLOURS[index % len(COLOURS)],
            marker="o",
            markersize=4,
            linewidth=1.8 if lines is not None or numeric else 0,
            elinewidth=1.4,
            capsize=3,
            label=arm,
        )
    if not numeric:
        axes.set_xticks(range(len(names)), names)
    axes.set_xlabel(across or "")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.margins(x=0.08)
    if lines is not None:
        axes.legend(frameon=False, fontsize=8)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
