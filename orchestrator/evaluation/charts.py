"""The pictures of a report: one small chart a question, drawn from a history.

Promises: no global matplotlib state, no display, the same bytes for the same history. Matplotlib
is imported when the first chart is drawn.
"""

import io
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from .history import History, Point

COLOURS = ("#2f5d8a", "#c8702a", "#4c8c5e", "#8a5a9e", "#a8483f", "#6b7280", "#b59a2d", "#3f8f94")
INK, SOFT, GRID = "#30343b", "#6b7280", "#e6e8eb"
SMOOTHED_FROM = 60
MOST_POINTS = 600


@dataclass(frozen=True, slots=True)
class Line:
    """One metric in a chart."""

    metric: str
    label: str
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture. `lines` may be empty: then there is nothing to draw."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    share: bool = False  # axis from 0 to 1
    smooth: bool = True
    dots: bool = False  # mark every point: few of them


def charts(history: History) -> list[Chart]:
    """The charts a report shows, without those that have no data."""
    all_charts = [
        Chart("Loss terms", "nats per token", _loss_lines(history)),
        Chart("Measured, not trained on", "mean over positions", _watched_lines(history)),
        Chart(
            "Held-out loss",
            "nats per token",
            (
                Line("held_out/student_loss", "student"),
                Line("held_out/teacher_loss", "teacher", dashed=True),
            ),
            smooth=False,
            dots=True,
        ),
        Chart(
            "Agreement with the teacher",
            "share of positions",
            (Line("held_out/top1_agreement", "same likeliest token"),),
            smooth=False,
            dots=True,
        ),
        Chart(
            "Divergence from the teacher",
            "nats per token",
            (Line("held_out/kl", "KL(teacher || student)"),),
            smooth=False,
            dots=True,
        ),
        *_schedule_charts(history),
        Chart("Learning rate", "", (Line("train/learning_rate", "learning rate"),), smooth=False),
        Chart("Gradient norm", "", (Line("train/gradient_norm", "gradient norm"),)),
        Chart("Throughput", "tokens per second", (Line("throughput/tokens_per_s", "student"),)),
        Chart(
            "Who waits for whom",
            "share of time",
            (Line("student/wait_share", "student waits"), Line("pool/busy_share", "pool is busy")),
            share=True,
        ),
    ]
    kept = []
    for chart in all_charts:
        lines = tuple(line for line in chart.lines if _finite(history.metrics.get(line.metric, ())))
        if lines:
            kept.append(
                Chart(chart.title, chart.unit, lines, chart.share, chart.smooth, chart.dots)
            )
    return kept


def draw(history: History, chart: Chart, form: Literal["svg", "png"] = "svg") -> bytes:
    """One chart as a file's bytes."""
    from matplotlib.ticker import MaxNLocator

    with styled() as Figure:
        # Margins are fixed, since finding them costs as much as drawing.
        legend_rows = math.ceil(len(chart.lines) / 3) if len(chart.lines) > 1 else 0
        figure = Figure(figsize=(5.6, 2.9 + 0.2 * legend_rows), dpi=110)
        height = figure.get_figheight()
        top = 1 - (0.36 + 0.2 * legend_rows) / height
        figure.subplots_adjust(left=0.13, right=0.98, bottom=0.52 / height, top=top)
        axes = figure.subplots()
        _lines(axes, history, chart)
        axes.set_title(
            chart.title, loc="left", fontsize=11, fontweight="bold", pad=10 + 14 * legend_rows
        )
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(chart.unit)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.margins(x=0.02)
        if chart.share:
            axes.set_ylim(-0.02, 1.02)
        if len(chart.lines) > 1:
            axes.legend(
                loc="lower left",
                bbox_to_anchor=(-0.02, 1.0),
                ncols=3,
                frameon=False,
                fontsize=8,
                borderaxespad=0.2,
            )
        return saved(figure, form)


_STYLING = threading.Lock()
"""Matplotlib's settings are the process's: one picture at a time."""


@contextmanager
def styled() -> Iterator[Any]:
    """Matplotlib's Figure class, with our settings for as long as the block lasts."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "svg.hashsalt": "stillhouse",
        "svg.fonttype": "none",  # text as text: to find, a third of the bytes, half of the time
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GRID,
        "axes.labelcolor": SOFT,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "text.color": INK,
    }
    with _STYLING, matplotlib.rc_context(settings):
        yield Figure


def saved(figure: Any, form: Literal["svg", "png"]) -> bytes:
    """A figure as a file's bytes; the same bytes for the same picture."""
    out = io.BytesIO()
    figure.savefig(out, format=form, metadata={"Date": None} if form == "svg" else None)
    return out.getvalue()


def _lines(axes: Any, history: History, chart: Chart) -> None:
    for index, line in enumerate(chart.lines):
        points = _thinned(_finite(history.metrics[line.metric]))
        steps = [point.step for point in points]
        values = [point.value for point in points]
        colour = COLOURS[index % len(COLOURS)]
        style: dict[str, Any] = {"color": colour, "linestyle": "--" if line.dashed else "-"}
        if chart.dots:
            style |= {"marker": "o", "markersize": 4 if len(points) < 40 else 0}
        if chart.smooth and len(points) >= SMOOTHED_FROM:
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.25)
            values = _smoothed(values)
        axes.plot(steps, values, linewidth=1.8, label=line.label, **style)


def _schedule_charts(history: History) -> list[Chart]:
    """A chart for each kind of number that moves: weights, temperatures, shares, ..."""
    by_field: dict[str, list[Line]] = {}
    for name in sorted(history.metrics):
        if name.startswith("schedule/") and len(_levels(history, name)) > 1:
            term, *path = name.removeprefix("schedule/").split(".")
            field = next((part for part in reversed(path) if not part.isdigit()), "")
            label = " ".join([term, *(part for part in path if part != field)])
            by_field.setdefault(field, []).append(Line(name, label.replace("_", " ")))
    return [
        Chart(f"Schedules: {field.replace('_', ' ')}", "value", tuple(lines), smooth=False)
        for field, lines in sorted(by_field.items())
    ]


def _levels(history: History, metric: str) -> set[float]:
    return {point.value for point in history.metrics.get(metric, ())}


def _watched(history: History, line: Line) -> bool:
    """Whether a term never had a weight: it is a measure."""
    term = line.metric.removeprefix("loss/")
    return _levels(history, f"schedule/{term}.weight") == {0.0}


def _watched_lines(history: History) -> tuple[Line, ...]:
    return tuple(line for line in _prefixed(history, "loss/") if _watched(history, line))


def _loss_lines(history: History) -> tuple[Line, ...]:
    names = [line for line in _prefixed(history, "loss/") if not _watched(history, line)]
    return tuple(sorted(names, key=lambda line: (line.label != "total", line.label)))


def _prefixed(history: History, prefix: str) -> tuple[Line, ...]:
    names = sorted(name for name in history.metrics if name.startswith(prefix))
    return tuple(Line(name, name.removeprefix(prefix).replace("_", " ")) for name in names)


def _finite(points: Sequence[Point]) -> list[Point]:
    return sorted(
        (point for point in points if math.isfinite(point.value)), key=lambda point: point.step
    )


def _thinned(points: list[Point]) -> list[Point]:
    """At most `MOST_POINTS`: means of neighbours, so that no spike passes for the whole."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        Point(group[-1].step, group[-1].time_ms, sum(point.value for point in group) / len(group))
        for group in groups
    ]


def _smoothed(values: list[float]) -> list[float]:
    """A centred mean over about a twentieth of the line, so that nothing lags."""
    reach = max(1, len(values) // 40)
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
