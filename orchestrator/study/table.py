"""A study's numbers as tables: for a terminal, as Markdown and as a page. Pure but for the page.

Promises: what is missing is shown as missing; text from the file is escaped in Markdown and HTML.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from orchestrator.evaluation.page import page, pairs, picture, section, table

from .findings import Checked
from .numbers import Results, Row
from .spec import MetricSpec, StudySpec
from .text import NOTHING, heading, mean_text, p_text, setting_text


@dataclass(frozen=True, slots=True)
class Grid:
    """One table: headings, and rows of as many cells."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def grids(
    study: StudySpec, results: Results, checks: Sequence[Checked], failed: Mapping[str, str]
) -> list[Grid]:
    """The tables of a study, without those that would be empty."""
    found = [
        _means(study, results),
        _differences(study, results),
        _variances(study, results),
        _checks(study, checks),
        Grid("Missing", ("job", "why"), tuple((name, why) for name, why in failed.items())),
    ]
    return [grid for grid in found if grid.rows]


def _means(study: StudySpec, results: Results) -> Grid:
    best = {metric.label: _best(study, metric, results.rows) for metric in study.metrics}
    rows = []
    for row in results.rows:
        cells = []
        for metric in study.metrics:
            text = mean_text(row.means.get(metric.label), metric)
            cells.append(f"{text} *" if row in best[metric.label] else text)
        seeds = str(row.seeds) if row.done == row.seeds else f"{row.done} of {row.seeds}"
        rows.append((*(arm for _, arm in row.setting), seeds, *cells))
    headings = (*study.vary, "seeds", *map(heading, study.metrics))
    return Grid("Mean ± standard error over seeds", headings, tuple(rows))


def _best(study: StudySpec, metric: MetricSpec, rows: Sequence[Row]) -> list[Row]:
    """The best arm of the compared axis for each setting of the others, where several have one."""
    if study.compare is None:
        return []
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        if metric.label in row.means:
            others = tuple(pair for pair in row.setting if pair[0] != study.compare.axis)
            groups.setdefault(others, []).append(row)
    sign = 1 if metric.better == "higher" else -1
    best = []
    for group in groups.values():
        first, *others = sorted(group, key=lambda row: -sign * row.means[metric.label].mean)
        if others and others[0].means[metric.label].mean != first.means[metric.label].mean:
            best.append(first)
    return best


def _differences(study: StudySpec, results: Results) -> Grid:
    compare = study.compare
    baseline = "" if compare is None else f"{compare.axis} {compare.baseline}"
    several = any(difference.at for difference in results.differences)
    rows = []
    for found in results.differences:
        metric = study.metric(found.metric)
        place = () if not several else (setting_text(found.at) if found.at is not None else "all",)
        change = mean_text(found.difference, metric, signed=True)
        numbers = (str(found.difference.n), change, p_text(found.p))
        rows.append((found.arm, *place, heading(metric), *numbers))
    headings = ("arm", *(("at",) if several else ()), "metric", "pairs", "difference", "p")
    return Grid(f"Against {baseline}, paired t-test", headings, tuple(rows))


def _variances(study: StudySpec, results: Results) -> Grid:
    axis = "" if study.compare is None else study.compare.axis
    rows = tuple(
        (
            heading(study.metric(found.metric)),
            setting_text(found.at) or "all",
            str(found.groups),
            str(found.n),
            f"{found.f:.3g}",
            p_text(found.p),
        )
        for found in results.variances
    )
    headings = ("metric", "at", "arms", "n", "F", "p")
    return Grid(f"Variance between arms of {axis}, one-way", headings, rows)


def _checks(study: StudySpec, checks: Sequence[Checked]) -> Grid:
    rows = []
    for check, assertion in zip(checks, study.assertions, strict=True):
        metric = study.metric(assertion.metric).model_copy(update={"percent": False})
        signed = assertion.minus is not None or assertion.minus_metric is not None
        number = mean_text(check.found, metric, signed=signed)
        n = NOTHING if check.found is None else str(check.found.n)
        rows.append((check.what, check.bound, number, n, _verdict(check)))
    return Grid("Assertions", ("what", "bound", "found", "n", ""), tuple(rows))


def _verdict(check: Checked) -> str:
    if check.as_known:
        return "holds" if check.refuted is None else f"refuted: {check.refuted}"
    return "HOLDS, though refuted before" if check.holds else "FAILS"


# --- forms ---------------------------------------------------------------------------------------


def as_text(found: Sequence[Grid]) -> str:
    """For a terminal or a log."""
    return "\n\n".join(_text(grid) for grid in found)


def _text(grid: Grid) -> str:
    lines = [grid.headings, *grid.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(grid.headings))]
    aligned = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    aligned.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([grid.title, "", *aligned])


def as_markdown(study: StudySpec, found: Sequence[Grid]) -> str:
    """A chapter: the study's name, what it is about, its tables."""
    parts = [f"## {study.name}", study.about.strip(), *(_markdown(grid) for grid in found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(grid: Grid) -> str:
    lines = [grid.headings, [":--"] * len(grid.headings), *(map(_plain, row) for row in grid.rows)]
    return "\n".join(
        [f"**{_plain(grid.title)}**", "", *("| " + " | ".join(line) + " |" for line in lines)]
    )


def _plain(cell: str) -> str:
    for character in "\\`*_[]<>|":
        cell = cell.replace(character, "\\" + character)
    return cell


def as_page(study: StudySpec, found: Sequence[Grid], plots: Mapping[str, bytes]) -> str:
    """An HTML file that needs nothing else; `plots` are drawings (SVG) by title."""
    facts = [("seeds", ", ".join(map(str, study.seeds)))]
    facts += [(axis, ", ".join(arms)) for axis, arms in study.vary.items()]
    figures = "".join(picture(title, drawn) for title, drawn in plots.items())
    return page(
        f"{study.name} - Stillhouse study",
        [
            f"<header><h1>{escape(study.name)}</h1><p>{escape(study.about)}</p></header>",
            section("Pictures", f'<div class="charts">{figures}</div>' if figures else ""),
            *(section(grid.title, table(grid.headings, grid.rows)) for grid in found),
            section("What varies", pairs(facts)),
            "<footer>Written by Stillhouse from the study's own records.</footer>",
        ],
    )


def as_plain(
    study: StudySpec, results: Results, checks: Sequence[Checked], failed: Mapping[str, str]
) -> dict[str, Any]:
    """All numbers, unrounded, for JSON."""

    def plain(record: Any) -> dict[str, Any]:
        return dataclasses.asdict(record)

    def placed(record: Any, *fields: str) -> dict[str, Any]:
        facts = plain(record)
        for field in fields:
            facts[field] = None if facts[field] is None else dict(facts[field])
        return facts

    return {
        "study": study.name,
        "cells": [placed(point, "setting") for point in results.points],
        "means": [placed(row, "setting") for row in results.rows],
        "differences": [placed(each, "at") for each in results.differences],
        "variances": [placed(each, "at") for each in results.variances],
        "assertions": [plain(check) for check in checks],
        "missing": dict(failed),
    }
