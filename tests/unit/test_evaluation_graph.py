"""The graph of a list of jobs: nodes, edges, and its picture in a report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graph_files import CE, KL, ROLE, SMALL, after, members, raw

from orchestrator.evaluation.graph import Graph, draw, graph_of
from orchestrator.evaluation.history import History, Point
from orchestrator.evaluation.report import render
from orchestrator.spec import load_jobs
from orchestrator.spec.load import validate_jobs

EXAMPLE = Path(__file__).parents[2] / "docs/examples/graph.yaml"


def of(*jobs: dict[str, Any]) -> Graph:
    return graph_of(validate_jobs(list(jobs)))


def kinds(graph: Graph) -> dict[str, str]:
    return {node.name: node.kind for node in graph.nodes}


def test_the_example_has_each_edge_with_kind_weight_and_stage() -> None:
    graph = graph_of(load_jobs(EXAMPLE))
    teacher, assistant = "graph-teacher", "graph-assistant"
    small, smaller = "graph-students.small", "graph-students.smaller"
    assert kinds(graph) == {
        "data": "data",
        teacher: "both",
        assistant: "both",
        small: "trained",
        smaller: "trained",
    }
    stages = [f"{index} {name}" for index, name in enumerate(graph.jobs, 1)]
    assert graph.rows() == [
        (stages[0], "data", teacher, "cross_entropy", "1"),
        (stages[1], "data", assistant, "cross_entropy", "0.5"),
        (stages[1], teacher, assistant, "forward_kl", "0.5"),
        (stages[2], "data", small, "cross_entropy", "0.5"),
        (stages[2], assistant, small, "forward_kl", "0.5"),
        (stages[2], smaller, small, "forward_kl", "0.2"),
        (stages[2], "data", smaller, "cross_entropy", "0.5"),
        (stages[2], assistant, smaller, "forward_kl", "0.5"),
        (stages[2], small, smaller, "forward_kl", "0.2"),
    ]


def test_a_stage_goes_on_and_what_asks_nothing_of_labels_still_reads_data() -> None:
    ramp = {"kind": "linear", "start": 0.0, "end": 0.5}
    on = {**KL, "weight": ramp, "target": [{"kind": "mix", "roles": ["b"], "weights": [1.0, 1.0]}]}
    roles = {"teacher": after("first", member="b"), "b": {**ROLE}}
    pair = raw("first", [{**CE, "member": "a"}, {**CE, "member": "b"}], members(a=SMALL, b=ROLE))
    measure = {"kind": "measure", "measure": "gap"}
    graph = of(pair, raw("second", [on, measure], after("first"), roles))
    assert graph.rows()[2:] == [
        ("2 second", "first.a", "second", "goes on", "-"),
        ("2 second", "first.b", "second", "forward_kl", "0 to 0.5"),
        ("2 second", "b", "second", "forward_kl", "0 to 0.5"),
        ("2 second", "data", "second", "inputs", "-"),
    ]
    assert kinds(graph)["b"] == "frozen" and kinds(graph)["first.b"] == "both"


def test_roles_of_one_name_and_other_weights_are_two_and_so_are_other_data() -> None:
    other = {**ROLE, "arguments": {**ROLE["arguments"], "width": 40}}
    data = raw("x")["data"]
    again = {**data, "held_out": 0.5}
    graph = of(
        raw("x", [CE, KL], roles={"teacher": ROLE}),
        raw("y", [CE, KL], roles={"teacher": ROLE}),
        raw("z", [CE, KL], roles={"teacher": other}, data=again),
    )
    assert set(kinds(graph)) == {"data of x", "data of z", "teacher", "z:teacher", "x", "y", "z"}


@pytest.mark.parametrize(
    ("jobs", "told"),
    [
        ([raw("x")], False),
        ([raw("x", [CE, KL], roles={"teacher": ROLE})], False),
        ([raw("x", [KL, {**KL, "role": "b"}], roles={"teacher": ROLE, "b": SMALL})], True),
        ([raw("x", [{**CE, "member": m} for m in "ab"], members(a=SMALL, b=ROLE))], True),
        ([raw("x"), raw("y", student=after("x"))], True),
    ],
)
def test_it_is_drawn_where_it_tells_something(jobs: list[dict[str, Any]], told: bool) -> None:
    graph = of(*jobs)
    history = History("r", "x", "e", "finished", 1, {}, {}, {}, {}, {}, 0, 0, 0)
    page = render(history, {}, graph=graph)
    assert ("Who learns from whom" in page) == graph.tells_something == told
    assert "Who learns from whom" not in render(history, {})


def test_the_picture_is_the_same_each_time_and_says_what_edges_are() -> None:
    graph = graph_of(load_jobs(EXAMPLE))
    first = draw(graph, "graph-students")
    assert first == draw(graph, "graph-students") != draw(graph)
    assert draw(graph, form="png").startswith(b"\x89PNG")
    text = first.decode()
    for comment in ("graph-teacher", "3: forward_kl 0.2", "2: forward_kl 0.5"):
        assert comment in text  # matplotlib writes each text as a comment beside its shapes


def test_names_and_numbers_of_any_length_and_count_are_drawn() -> None:
    long = "a-name-that-is-longer-than-any-box-should-ever-be-drawn"
    several = members(**{f"member_{i}_{'x' * 20}": SMALL for i in range(5)})
    terms = [{**CE, "member": name} for name in several["members"]]
    graph = of(raw(long, terms, several), *(raw(f"{long[:40]}-{i}") for i in range(9)))
    assert draw(graph).startswith(b"<?xml")


def test_each_members_numbers_are_in_the_report() -> None:
    history = History("r", "x", "e", "finished", 1, {}, {}, {}, {}, {}, 0, 0, 0)
    metrics = {
        "held_out/student_loss": (Point(4, 0, 0.5),),
        "held_out/small/student_loss": (Point(0, 0, 2.0), Point(4, 0, 0.25)),
        "held_out/big/student_accuracy": (Point(4, 0, 0.75),),
    }
    page = render(replace(history, metrics=metrics), {})
    assert "<h3>Members</h3>" in page and "<td>small</td><td>0.2500</td><td>-</td>" in page
    assert "<td>big</td><td>-</td><td>75.0%</td>" in page
