"""A run's report: one HTML file that needs nothing else, rebuilt from the run folder alone.

Everything that came from a job, a model or a data set is escaped. No scripts, no links to the
outside, no external pictures or fonts.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from .charts import charts, draw
from .comparison import Row, as_html
from .diagnostics.report import as_html_tables, last_found
from .graph import Graph
from .graph import draw as draw_graph
from .history import History, read_history
from .page import page, pairs, picture, section, table

REPORT = "report.html"

_EVALUATION = (
    ("held_out/student_loss", "student loss", ".4f"),
    ("held_out/student_perplexity", "student perplexity", ".2f"),
    ("held_out/student_accuracy", "student accuracy", ".1%"),
    ("held_out/calibration_error", "calibration error", ".4f"),
    ("held_out/teacher_loss", "teacher loss", ".4f"),
    ("held_out/teacher_perplexity", "teacher perplexity", ".2f"),
    ("held_out/top1_agreement", "agreement", ".1%"),
    ("held_out/kl", "KL", ".4f"),
)
_COUNTS = (
    ("asked", "requests asked"),
    ("delivered", "delivered"),
    ("consumed", "consumed"),
    ("redispatched", "sent again elsewhere"),
    ("restarts", "restarts of replicas"),
    ("replayed_steps", "steps done again after a restart"),
    ("failed", "given up"),
    ("refused", "refused by a full replica"),
    ("late_dropped", "late answers dropped"),
    ("bytes", "bytes received"),
)
_COSTS = (
    ("student_device_s", "student"),
    ("teacher_device_s", "teacher"),
    ("saved_by_cache_device_s", "saved by the cache"),
)
_LONGEST_TABLE = 12
_ENDS = {"done": "finished", "failed": "failed", "interrupted": "interrupted"}
"""A summary's words for how a job ended, as a history has them."""
_STATUS_WORDS = {
    "finished": ("finished", "good"),
    "running": ("running", "calm"),
    "interrupted": ("interrupted", "calm"),
    "failed": ("failed", "bad"),
}


def write_report(
    run_folder: str | Path,
    summary: Mapping[str, Any] | None = None,
    comparison: Sequence[Row] = (),
    graph: Graph | None = None,
) -> Path:
    """Write `report.html` into the run folder, replacing an older one as one act.

    Args:
        run_folder: folder of a run, with its spool.
        summary: what the history cannot know or knows late: `status`, `pool` (final counts),
            `cost` (device-seconds), `generated` (text), and further plain facts, shown as they are.
        comparison: rows of the closing table, when the run belongs to a list of jobs.
        graph: of the list of jobs that the run belongs to; drawn where it tells something.

    Raises:
        FileNotFoundError: the run has no spool.
    """
    path = Path(run_folder) / REPORT
    summary = summary or {}
    history = read_history(run_folder)
    if history.status == "running" and summary.get("status") in _ENDS:
        history = replace(history, status=_ENDS[summary["status"]])  # told before it is recorded
    html = render(history, summary, comparison, graph)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(html, encoding="utf-8")
    os.replace(draft, path)
    return path


def render(
    history: History,
    summary: Mapping[str, Any],
    comparison: Sequence[Row] = (),
    graph: Graph | None = None,
) -> str:
    """The page."""
    sections = [
        _header(history),
        _figures(history),
        section("Comparison", as_html(comparison) if comparison else ""),
        section("Who learns from whom", _graph(history, graph)),
        section("Held-out measurements", _evaluations(history) + _members(history)),
        section("Diagnostics", as_html_tables(last_found(history))),
        section("Over the steps", _pictures(history)),
        section("Generated", _generated(history, summary)),
        '<div class="pair">',
        section("Every sample counts once", _counts(history, summary)),
        section("Cost", _cost(history, summary)),
        "</div>",
        section("Lineage", pairs(sorted(history.lineage.items()))),
        section("Further facts", pairs(_plain_facts(summary))),
        section("Job", _job(history)),
        _footer(history),
    ]
    title = history.name or history.run_id or "run"
    return page(f"{title} - Stillhouse report", sections)


def _header(history: History) -> str:
    word, tone = _STATUS_WORDS.get(history.status, (history.status, "calm"))
    facts = [history.experiment, f"run {history.run_id}", _when(history.began_ms)]
    took = (history.ended_ms - history.began_ms) / 1000
    facts.append(f"{_duration(took)} from first to last record")
    if history.starts > 1:
        facts.append(f"started {history.starts} times")
    line = " &middot; ".join(escape(fact) for fact in facts if fact)
    return (
        f'<header><h1>{escape(history.name)} <span class="pill {tone}">{escape(word)}</span></h1>'
        f"<p>{line}</p></header>"
    )


def _figures(history: History) -> str:
    """The few numbers one looks for first."""
    tiles = []
    for metric, label, form in (_EVALUATION[0], _EVALUATION[1], _EVALUATION[6], _EVALUATION[7]):
        points = list(history.metrics.get(metric, ()))
        if points:
            before = f"from {format(points[0].value, form)}" if len(points) > 1 else ""
            tiles.append((label, format(points[-1].value, form), before))
    speed = history.metrics.get("throughput/tokens_per_s", ())
    if speed:
        mean = sum(point.value for point in speed) / len(speed)
        tiles.append(("tokens per second", f"{mean:,.0f}", "mean over steps"))
    waits = history.metrics.get("student/wait_share", ())
    if waits:
        mean = sum(point.value for point in waits) / len(waits)
        tiles.append(("student waited", f"{mean:.1%}", "mean over steps"))
    cells = "".join(
        f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b>'
        f"<small>{escape(note)}</small></div>"
        for label, value, note in tiles
    )
    return f'<div class="tiles">{cells}</div>' if tiles else ""


def _evaluations(history: History) -> str:
    steps = sorted(
        {
            point.step
            for name, points in history.metrics.items()
            if name.startswith("held_out/")
            for point in points
        }
    )
    if not steps:
        return ""
    note = ""
    if len(steps) > _LONGEST_TABLE:
        stride = (len(steps) - 1) / (_LONGEST_TABLE - 1)
        shown = sorted({steps[round(index * stride)] for index in range(_LONGEST_TABLE)})
        note = f"<p>{len(shown)} of {len(steps)} measurements; the charts show all.</p>"
    else:
        shown = steps
    known = [column for column in _EVALUATION if column[0] in history.metrics]
    rows = []
    for step in shown:
        moment = f"step {step}"
        if step == 0:
            moment = "before"
        elif step == steps[-1] and history.status == "finished":
            moment = f"after ({step})"
        values = ((history.at(metric, step), form) for metric, _, form in known)
        rows.append(
            [moment, *("-" if value is None else format(value, form) for value, form in values)]
        )
    return table(["", *(label for _, label, _ in known)], rows) + note


def _members(history: History) -> str:
    """The last numbers of each member of a student with several."""
    found: dict[str, dict[str, float]] = {}
    for name in history.metrics:
        _, _, rest = name.partition("held_out/")
        member, slash, metric = rest.partition("/")
        value = history.last(name)
        if slash and value is not None:
            found.setdefault(member, {})[f"held_out/{metric}"] = value
    if not found:
        return ""
    known = [column for column in _EVALUATION if any(column[0] in one for one in found.values())]
    rows = [
        [member, *(format(one[key], form) if key in one else "-" for key, _, form in known)]
        for member, one in found.items()
    ]
    return "<h3>Members</h3>" + table(["", *(label for _, label, _ in known)], rows)


def _graph(history: History, graph: Graph | None) -> str:
    if graph is None or not graph.tells_something:
        return ""
    here = next((name for name in graph.jobs if name == history.name), None)
    drawn = picture("Who learns from whom", draw_graph(graph, here))
    listed = table(["stage", "from", "to", "what", "weight"], graph.rows())
    return f"{drawn}<details><summary>Every edge</summary>{listed}</details>"


def _pictures(history: History) -> str:
    figures = [picture(chart.title, draw(history, chart)) for chart in charts(history)]
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _generated(history: History, summary: Mapping[str, Any]) -> str:
    texts = {name: text for name, text in history.texts.items() if name != "job.yaml"}
    late = summary.get("generated")
    if late and late not in texts.values():
        texts["student"] = str(late)
    return "".join(
        f"<h3>{escape(name.removesuffix('.txt'))}</h3><pre>{escape(text)}</pre>"
        for name, text in texts.items()
    )


def _counts(history: History, summary: Mapping[str, Any]) -> str:
    found = _numbers(history, summary.get("pool"), "pool/", _COUNTS)
    if not found:
        return ""
    rows = [(label, f"{found[key]:,.0f}") for key, label in _COUNTS if key in found]
    verdict = ""
    if all(key in found for key in ("asked", "delivered", "consumed")):
        holds = found["asked"] == found["delivered"] == found["consumed"]
        word = "asked = delivered = consumed" if holds else "asked, delivered, consumed differ"
        verdict = f'<p><span class="pill {"good" if holds else "bad"}">{word}</span></p>'
    return verdict + pairs(rows)


def _cost(history: History, summary: Mapping[str, Any]) -> str:
    found = _numbers(history, summary.get("cost"), "cost/", _COSTS)
    rows = [(label, f"{found[key]:,.1f} device-s") for key, label in _COSTS if key in found]
    spent = [found[key] for key in ("student_device_s", "teacher_device_s") if key in found]
    if len(spent) == 2:
        rows.append(("student and teacher", f"{sum(spent):,.1f} device-s"))
    return pairs(rows)


def _numbers(
    history: History, given: Any, prefix: str, wanted: Iterable[tuple[str, str]]
) -> dict[str, float]:
    """Final numbers: the summary's where it has them, else the last ones recorded."""
    given = given if isinstance(given, Mapping) else {}
    found = {}
    for key, _ in wanted:
        value = given.get(key, history.last(prefix + key))
        if isinstance(value, int | float):
            found[key] = float(value)
    return found


def _plain_facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    taken = {"status", "run_id", "pool", "cost", "generated", "evaluation"}
    return [
        (key.replace("_", " "), f"{value:,.4g}" if isinstance(value, float) else str(value))
        for key, value in summary.items()
        if key not in taken and isinstance(value, str | int | float)
    ]


def _job(history: History) -> str:
    text = history.texts.get("job.yaml")
    if text is None:
        return ""
    return (
        "<details><summary>The job as it ran, every default written out</summary>"
        f"<pre>{escape(text)}</pre></details>"
    )


def _footer(history: History) -> str:
    damaged = f" {history.damaged} damaged lines were left out." if history.damaged else ""
    return f"<footer>Written by Stillhouse from the run's own records.{damaged}</footer>"


def _when(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
