"""Trials as tables and plain numbers. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .board import best_of, front_of, goal_values
from .journal import Leg, State
from .lineage import lineage
from .plan import Search
from .space import Value
from .spec import GoalSpec


def as_plain(
    search: Search, states: Sequence[State], importance: Mapping[str, float]
) -> dict[str, Any]:
    """All numbers, unrounded."""
    goals = search.spec.goals
    best = best_of(states, goals)
    several = len(goals) > 1
    return {
        "search": search.name,
        "goals": [goal.model_dump() for goal in goals],
        "trials": [_plain(state, goals) for state in states],
        "best": None if best is None else best.number,
        "importance": dict(importance),
        **({} if best is None or not best.legs else {"lineage": _lineage(states, best)}),
        **({"front": [state.number for state in front_of(states, goals)]} if several else {}),
    }


def _plain(state: State, goals: Sequence[GoalSpec]) -> dict[str, Any]:
    values = goal_values(state, goals) if state.status == "done" else [None] * len(goals)
    return {
        "trial": state.number,
        "status": state.status,
        "values": dict(state.values) or dict(state.settings),
        "settings": dict(state.settings),
        "goals": {goal.metric: value for goal, value in zip(goals, values, strict=True)},
        "results": [list(each) for each in state.results],
        "runs": [state.runs[place] for place in sorted(state.runs)],
        **({"legs": [_leg(leg) for leg in state.legs]} if state.legs else {}),
        "computed": computed_by(state),
        "used": asdict(state.used),
        "error": state.error,
    }


def _leg(leg: Leg) -> dict[str, Any]:
    return {
        "begin": leg.begin,
        "until": leg.until,
        "numbers": dict(leg.numbers),
        "parent": leg.parent,
        "run": leg.run_id,
    }


def _lineage(states: Sequence[State], best: State) -> list[dict[str, Any]]:
    """Whose legs led to the best trial's student: where each one's checkpoints lie, and numbers."""
    by_number = {state.number: state for state in states}
    steps = lineage(by_number.__getitem__, best.number)
    return [{"trial": step.trial, **_leg(step.leg)} for step in steps]


def computed_by(state: State) -> int:
    """Answers that the pool computed for a trial's runs; all others were known."""
    return state.used.computed


def as_markdown(search: Search, states: Sequence[State]) -> str:
    """Trials as a table, the best first, then those that were stopped and failed."""
    spec = search.spec
    head, *rows = cells(search, states)
    lines = [f"# {search.name}", "", f"{spec.mode} {spec.metric}; {len(states)} trials", ""]
    lines += [_line(head), _line(["--:", ":--", *["--:"] * (len(head) - 2)])]
    lines += [_line(row) for row in rows]
    if len(spec.goals) > 1 and (front := front_of(states, spec.goals)):
        numbers = ", ".join(str(state.number) for state in front)
        lines += ["", f"Pareto front, trials that no other beats: {numbers}"]
    failed = [state for state in states if state.status == "failed"]
    if failed:
        lines += ["", *(f"- trial {state.number} failed: {state.error}" for state in failed)]
    return "\n".join(lines) + "\n"


def cells(search: Search, states: Sequence[State]) -> list[list[str]]:
    """Headings, then a row a trial, the best first."""
    goals = search.spec.goals
    named = list(dict.fromkeys(name for state in states for name in shown_values(state)))
    head = ["trial", "status", *named, *(goal.metric for goal in goals), "steps", "computed"]
    return [head, *(_row(state, named, goals) for state in in_order(states, goals))]


def in_order(states: Sequence[State], goals: Sequence[GoalSpec]) -> list[State]:
    """Best first; what is not done comes after, in order of its number."""
    sign = 1.0 if goals[0].mode == "min" else -1.0

    def rank(state: State) -> tuple[bool, float, int]:
        value = goal_values(state, goals)[0] if state.status == "done" else None
        return value is None, 0.0 if value is None else sign * value, state.number

    return sorted(states, key=rank)


def shown_values(state: State) -> dict[str, str]:
    """What is tried in a trial, as people read it; a fixed one shows what it sets.

    Of a member of a population, the numbers of its present leg.
    """
    numbers = state.legs[-1].numbers if state.legs else {}
    found = numbers or state.values or state.settings
    return {name: text_of(value) for name, value in found.items()}


def text_of(value: Value | Any) -> str:
    """A number to four digits, a text as it is."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _row(state: State, named: Sequence[str], goals: Sequence[GoalSpec]) -> list[str]:
    shown = shown_values(state)
    values = goal_values(state, goals) if state.status == "done" else [None] * len(goals)
    steps = max(
        (int(each.get("steps", 0)) for each in state.summaries.values()), default=state.step
    )
    return [
        str(state.number),
        state.status,
        *(shown.get(name, "") for name in named),
        *("" if value is None else f"{value:.5g}" for value in values),
        str(steps),
        str(computed_by(state)),
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
