"""A search's page: its trials, and pictures of them.

Promises: the same bytes for the same trials; the page needs nothing else. Matplotlib is imported
when the first picture is drawn.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from orchestrator.evaluation.charts import COLOURS, GRID, SOFT, saved, styled
from orchestrator.evaluation.page import page, pairs, picture, section, table

from .board import best_of, front_of, goal_values
from .journal import State
from .plan import Search
from .space import labels_of
from .spec import Choice, Grid, LogUniform
from .table import cells

WIDE, HIGH = 5.6, 2.9


def as_page(search: Search, states: Sequence[State], importance: Mapping[str, float]) -> str:
    """An HTML file that needs nothing else."""
    best = best_of(states, search.spec.goals)
    spec = search.spec
    facts = [
        ("sought", ", ".join(f"{goal.mode} {goal.metric}" for goal in spec.goals)),
        ("searcher", spec.searcher.kind),
        ("scheduler", spec.scheduler.kind),
        ("best", "none" if best is None else f"trial {best.number}"),
    ]
    drawn = {
        "History": history(search, states),
        "Parallel coordinates": parallel(search, states),
        "Importance": bars(importance),
        "Pareto front": front(search, states),
    }
    figures = "".join(picture(title, svg) for title, svg in drawn.items() if svg is not None)
    head, *rows = cells(search, states)
    return page(
        f"{search.name} - Stillhouse search",
        [
            f"<header><h1>{escape(search.name)}</h1></header>",
            section("Pictures", f'<div class="charts">{figures}</div>' if figures else ""),
            section("Trials", table(head, rows)),
            section("Search", pairs(facts)),
            "<footer>Written by Stillhouse from the search's own records.</footer>",
        ],
    )


def _measured(search: Search, states: Sequence[State]) -> list[tuple[State, list[float]]]:
    """Trials that went to their end, with all their goals."""
    found = []
    for state in states:
        values = goal_values(state, search.spec.goals) if state.status == "done" else [None]
        known = [value for value in values if value is not None]
        if len(known) == len(search.spec.goals):
            found.append((state, known))
    return found


def history(search: Search, states: Sequence[State]) -> bytes | None:
    """The first goal by number of the trial, and the best so far; None if nothing is measured."""
    measured = _measured(search, states)
    if not measured:
        return None
    better = min if search.spec.mode == "min" else max
    numbers = [state.number for state, _ in measured]
    values = [found[0] for _, found in measured]
    so_far = [better(values[: index + 1]) for index in range(len(values))]
    with styled() as Figure:
        figure = Figure(figsize=(WIDE, HIGH), dpi=110, layout="constrained")
        axes = figure.subplots()
        axes.plot(numbers, values, "o", markersize=4, color=COLOURS[0])
        axes.step(numbers, so_far, where="post", color=COLOURS[1], linewidth=1.6)
        _dress(axes, "History", "trial", search.spec.metric)
        return saved(figure, "svg")


def parallel(search: Search, states: Sequence[State]) -> bytes | None:
    """A line a trial over all fields that every trial has; the better, the darker.

    None for a population, whose numbers change from leg to leg.
    """
    measured = [each for each in _measured(search, states) if each[0].values]
    if any(leg.numbers for state, _ in measured for leg in state.legs):
        return None
    names = [path for path in search.spec.space if all(path in s.values for s, _ in measured)]
    if len(measured) < 2 or not names:
        return None
    sign = 1.0 if search.spec.mode == "min" else -1.0
    ranked = sorted(measured, key=lambda each: -sign * each[1][0])
    places = range(len(names) + 1)
    with styled() as Figure:
        figure = Figure(figsize=(max(WIDE, 1.5 * len(places)), HIGH), dpi=110, layout="constrained")
        axes = figure.subplots()
        losses = [found[0] for _, found in measured]
        for index, (state, found) in enumerate(ranked):
            heights = [_height(search, name, state.values[name]) for name in names]
            heights.append(_share(found[0], min(losses), max(losses)))
            strength = (index + 1) / len(ranked)
            axes.plot(places, heights, color=COLOURS[0], alpha=0.15 + 0.8 * strength**2)
        _dress(axes, "Parallel coordinates", "", "share of the range")
        axes.set_xticks(places, [*map(_end_of, names), search.spec.metric])
        return saved(figure, "svg")


def _height(search: Search, name: str, value: Any) -> float:
    """Where a value lies in its range, 0 to 1."""
    distribution = search.spec.space[name]
    if isinstance(distribution, Choice | Grid):
        options = distribution.choice if isinstance(distribution, Choice) else distribution.grid
        return _share(labels_of(options).index(value), 0, len(options) - 1)
    (given,) = distribution.model_dump().values()
    low, high = given[:2]
    if isinstance(distribution, LogUniform):
        return _share(math.log(value), math.log(low), math.log(high))
    return _share(value, low, high)


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def bars(importance: Mapping[str, float]) -> bytes | None:
    """The share of the variance that each field explains."""
    if not importance:
        return None
    named = list(importance.items())[::-1]
    with styled() as Figure:
        figure = Figure(
            figsize=(WIDE, max(1.4, 0.4 * len(named) + 0.8)), dpi=110, layout="constrained"
        )
        axes = figure.subplots()
        axes.barh([_end_of(name) for name, _ in named], [share for _, share in named])
        _dress(axes, "Importance", "share of the variance (fANOVA)", "")
        return saved(figure, "svg")


def front(search: Search, states: Sequence[State]) -> bytes | None:
    """The first two goals of every trial, and the Pareto front; None for one goal."""
    measured = _measured(search, states)
    if len(search.spec.goals) < 2 or not measured:
        return None
    best = {state.number for state in front_of(states, search.spec.goals)}
    with styled() as Figure:
        figure = Figure(figsize=(WIDE, HIGH), dpi=110, layout="constrained")
        axes = figure.subplots()
        for state, values in measured:
            on_it = state.number in best
            colour = COLOURS[1] if on_it else SOFT
            axes.plot(values[1], values[0], "o", markersize=6 if on_it else 4, color=colour)
        one, other = search.spec.goals[:2]
        _dress(axes, "Pareto front", other.metric, one.metric)
        return saved(figure, "svg")


def _dress(axes: Any, title: str, across: str, up: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def _end_of(name: str) -> str:
    return ".".join(name.split(".")[-2:])
