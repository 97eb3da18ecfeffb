"""The graph of a list of jobs: who learns what from whom, in which stage, and its picture.

Nodes are models and data, edges are terms: their kind, weight and stage. A model that a later job
goes on with stays one node, as does a served one that several jobs ask. Pure but for the drawing;
matplotlib is imported when something is drawn.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.spec import JobSpec
from orchestrator.spec.models import ModelSpec
from strategies.specs import PEER, MeasureTerm, Number, TermBase, extremes

from .charts import COLOURS, INK, saved, styled

DATA = "data"
_KINDS = {"data": "#6b7280", "frozen": "#2f5d8a", "trained": "#c8702a", "both": "#8a5a9e"}
_WORDS = {
    "data": "data",
    "frozen": "frozen model",
    "trained": "trained",
    "both": "trained, then frozen",
}


@dataclass(frozen=True, slots=True)
class Node:
    """A model, or data."""

    name: str
    kind: Literal["data", "frozen", "trained", "both"]
    first: int  # the job in which it comes up


@dataclass(frozen=True, slots=True)
class Edge:
    """What one model learns from another, or from labels; or which model another goes on from."""

    source: str
    target: str
    kind: str  # of the term; "goes on" between stages
    weight: str  # a number, or where a schedule goes; "" where there is none
    job: str
    stage: int  # place of the job in the list, from 1

    @property
    def label(self) -> str:
        """On one line."""
        return " ".join(part for part in (self.kind, self.weight) if part)


@dataclass(frozen=True, slots=True)
class Graph:
    """All of a list of jobs."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    jobs: tuple[str, ...]

    @property
    def tells_something(self) -> bool:
        """Whether there is more than one stage, member or role."""
        frozen = sum(node.kind == "frozen" for node in self.nodes)
        models = sum(node.kind != "data" for node in self.nodes)
        return len(self.jobs) > 1 or frozen > 1 or models - frozen > 1

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """(stage, from, to, kind, weight) of every edge, for a table."""
        return [
            (f"{one.stage} {one.job}", one.source, one.target, one.kind, one.weight or "-")
            for one in self.edges
        ]


def graph_of(jobs: Sequence[JobSpec]) -> Graph:
    """The graph of jobs in order."""
    names = _Names(jobs)
    trained: dict[str, int] = {}
    frozen: dict[str, int] = {}
    data: dict[str, int] = {}
    edges: list[Edge] = []
    for index, job in enumerate(jobs):
        for member in job.student.parts or (None,):
            trained.setdefault(names.student(index, member), index)
        for role in job.used_roles:
            frozen.setdefault(names.role(index, role), index)
        for edge in (*_going_on(names, index), *_learning(names, index)):
            edges.append(edge)
            if edge.source == names.data(index):
                data.setdefault(edge.source, index)
    nodes = [Node(name, "data", first) for name, first in data.items()]
    for name in dict.fromkeys((*frozen, *trained)):
        both = "both" if name in frozen else "trained"
        kind: Any = both if name in trained else "frozen"
        firsts = [where[name] for where in (frozen, trained) if name in where]
        nodes.append(Node(name, kind, min(firsts)))
    return Graph(tuple(nodes), tuple(edges), tuple(job.name for job in jobs))


class _Names:
    """What the models of a list of jobs are called."""

    def __init__(self, jobs: Sequence[JobSpec]) -> None:
        self.jobs = jobs
        self._place = {job.name: index for index, job in enumerate(jobs)}

    def student(self, index: int, member: str | None) -> str:
        """A job's student, or a member of it."""
        job = self.jobs[index]
        part = member or job.student.main
        return job.name if part is None else f"{job.name}.{part}"

    def source(self, model: ModelSpec) -> str | None:
        """The earlier student that a model is."""
        if model.job is None:
            return None
        if model.job not in self._place:  # of another list
            return model.job if model.member is None else f"{model.job}.{model.member}"
        return self.student(self._place[model.job], model.member)

    def role(self, index: int, role: str) -> str:
        """A served role; an earlier student by its own name."""
        model = self.jobs[index].roles[role]
        earlier = self.source(model)
        if earlier is not None:
            return earlier
        for other in self.jobs[:index]:
            known = other.roles.get(role)
            if known is not None and known.served() != model.served():
                return f"{self.jobs[index].name}:{role}"
        return role

    def data(self, index: int) -> str:
        """What a job reads; named after the first job that does, where they differ."""
        first = next(job for job in self.jobs if job.data == self.jobs[index].data)
        same = all(job.data == first.data for job in self.jobs)
        return DATA if same else f"{DATA} of {first.name}"


def _going_on(names: _Names, index: int) -> Iterator[Edge]:
    job = names.jobs[index]
    for member in job.student.members or (None,):
        earlier = names.source(job.student.model_of(member))
        if earlier is not None:
            target = names.student(index, member)
            yield Edge(earlier, target, "goes on", "", job.name, index + 1)


def _learning(names: _Names, index: int) -> Iterator[Edge]:
    job = names.jobs[index]
    for term in job.objective.terms:
        if isinstance(term, MeasureTerm):
            continue
        target = names.student(index, term.member)
        sources = [_source(names, index, role) for role in term.named_roles]
        for source in sources or [names.data(index)]:
            kind = _shown(term)
            yield Edge(source, target, kind, _number(term.weight), job.name, index + 1)
    if not any(term.needs_labels for term in job.objective.terms):
        for member in job.student.parts or (None,):
            target = names.student(index, member)
            yield Edge(names.data(index), target, "inputs", "", job.name, index + 1)


def _source(names: _Names, index: int, role: str) -> str:
    if role.startswith(PEER):
        return names.student(index, role.removeprefix(PEER))
    return names.role(index, role)


def _shown(term: TermBase) -> str:
    """Its kind; of a term of one's own what it is called."""
    target = getattr(term, "target", None)
    return target.rpartition(":")[2] if isinstance(target, str) else term.kind  # type: ignore[attr-defined]


def _number(number: Number) -> str:
    low, high = extremes(number)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


# --- the picture ---------------------------------------------------------------------------------


WIDE, HIGH = 2.7, 1.25
"""Inches between columns and between rows."""
Place = tuple[float, float]
"""In inches, to the right and upwards."""


def draw(graph: Graph, here: str | None = None, form: Literal["svg", "png"] = "svg") -> bytes:
    """The graph as a file's bytes; stages from left to right, edges in their stage's colour.

    Args:
        graph: what to draw.
        here: the job whose edges are drawn stronger; None: all alike.
        form: of the file.
    """
    places = _places(graph)
    right, top = max(x for x, _ in places.values()), max(y for _, y in places.values())
    top += max((_lift(places[e.source], places[e.target]) for e in graph.edges), default=0.0)
    size = (max(5.6, right + 1.8), top + 1.5)
    with styled() as Figure:
        figure = Figure(figsize=size, dpi=110)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        left = (size[0] - right) / 2
        axes.set_xlim(-left, size[0] - left)
        axes.set_ylim(-0.5, size[1] - 0.5)
        for (source, target), edges in _bundles(graph).items():
            strong = here is None or any(edge.job == here for edge in edges)
            _arrow(axes, places[source], places[target], edges, strong)
        for node in graph.nodes:
            _box(axes, places[node.name], node)
        _legend(axes, graph)
        return saved(figure, form)


def _places(graph: Graph) -> dict[str, Place]:
    """A column a stage, frozen models before it; data below, in the middle of whom they teach."""
    columns: dict[int, list[str]] = {}
    trained = {edge.target: edge.stage for edge in reversed(graph.edges)}
    for node in graph.nodes:
        if node.kind != "data":
            column = node.first if node.kind == "frozen" else trained.get(node.name, node.first + 1)
            columns.setdefault(column, []).append(node.name)
    tallest = max(len(names) for names in columns.values())
    found: dict[str, Place] = {}
    for place, column in enumerate(sorted(columns)):
        names = columns[column]
        for row, name in enumerate(names):
            up = (tallest - len(names)) / 2 + len(names) - row
            aside = 0.5 * ((len(names) - 1) / 2 - row)  # so that no edge has to cross a node
            found[name] = (WIDE * place - aside, HIGH * up)
    for node in graph.nodes:
        if node.kind == "data":
            taught = [found[edge.target][0] for edge in graph.edges if edge.source == node.name]
            found[node.name] = (_free(sum(taught) / len(taught), found), 0.0)
    return found


def _free(x: float, found: dict[str, Place]) -> float:
    """The next place in the lowest row that is not taken."""
    taken = [other for other, y in found.values() if y == 0.0]
    while any(abs(x - other) < WIDE / 2 for other in taken):
        x += WIDE / 2
    return x


def _lift(start: Place, end: Place) -> float:
    """How far an edge rises above a straight line, to pass what lies between; in inches."""
    columns = round(abs(end[0] - start[0]) / WIDE)
    return 0.5 * (columns - 1) if start[1] and end[1] and columns > 1 else 0.0


def _bend(start: Place, end: Place) -> float:
    """Matplotlib's `rad`: the middle of an arc lies half of it, times the length, to the right."""
    across, up = end[0] - start[0], end[1] - start[1]
    length = math.hypot(across, up)
    if start[1] and end[1] and abs(across) < WIDE / 2:
        return 0.25  # members of one student: each way has an arc of its own
    return -2 * _lift(start, end) / length * (1 if across > 0 else -1)


def _bundles(graph: Graph) -> dict[tuple[str, str], list[Edge]]:
    """Edges between the same two nodes are one arrow with several lines of text."""
    found: dict[tuple[str, str], list[Edge]] = {}
    for edge in graph.edges:
        found.setdefault((edge.source, edge.target), []).append(edge)
    return found


def _arrow(axes: Any, start: Place, end: Place, edges: Sequence[Edge], strong: bool) -> None:
    from matplotlib.patches import FancyArrowPatch

    colour, bend = COLOURS[(edges[0].stage - 1) % len(COLOURS)], _bend(start, end)
    light = all(edge.weight == "0" for edge in edges) or edges[0].kind in ("goes on", "inputs")
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=11,
            shrinkA=20,
            shrinkB=_margin(start, end),
            connectionstyle=f"arc3,rad={bend}",
            color=colour,
            alpha=1.0 if strong else 0.45,
            linewidth=1.6 if strong else 1.2,
            linestyle="--" if light else "-",
            zorder=1,
        )
    )
    across, up = end[0] - start[0], end[1] - start[1]
    x = (start[0] + end[0]) / 2 + bend * up / 2
    y = (start[1] + end[1]) / 2 - bend * across / 2
    steep = bend != 0 and abs(across) < WIDE / 2
    lines = dict.fromkeys(f"{edge.stage}: {edge.label}" for edge in edges)
    axes.text(
        x,
        y,
        "\n".join(lines),
        fontsize=7.5,
        color=colour,
        ha=("left" if bend * up > 0 else "right") if steep else "center",
        va="center",
        zorder=2,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
    )


def _margin(start: Place, end: Place) -> float:
    """Points between an arrow's head and the middle of its box, which is wider than high."""
    across, up = abs(end[0] - start[0]), abs(end[1] - start[1])
    if not across:
        return 26.0
    slope = up / across
    half_width, half_height = 54.0, 22.0
    reach = half_width if slope * half_width < half_height else half_height / slope
    return reach * math.hypot(1.0, slope)


def _box(axes: Any, place: tuple[float, float], node: Node) -> None:
    colour = _KINDS[node.kind]
    axes.text(
        *place,
        _short(node.name),
        fontsize=9,
        fontweight="bold",
        color=INK,
        ha="center",
        va="center",
        zorder=3,
        bbox={
            "boxstyle": "round,pad=0.5" if node.kind != "data" else "square,pad=0.5",
            "facecolor": "white",
            "edgecolor": colour,
            "linewidth": 1.8,
        },
    )


def _legend(axes: Any, graph: Graph) -> None:
    from matplotlib.lines import Line2D

    kinds = [kind for kind in _KINDS if any(node.kind == kind for node in graph.nodes)]
    boxes: list[Any] = [
        Line2D([], [], color=_KINDS[kind], marker="s", markerfacecolor="white", linewidth=0)
        for kind in kinds
    ]
    words = [_WORDS[kind] for kind in kinds]
    if len(graph.jobs) > 1:
        for index, name in enumerate(graph.jobs):
            boxes.append(Line2D([], [], color=COLOURS[index % len(COLOURS)], linewidth=1.6))
            words.append(f"{index + 1}: {_short(name)}")
    columns = min(len(words), max(2, math.ceil(len(words) / 2)))
    axes.legend(boxes, words, loc="upper left", ncols=columns, frameon=False, fontsize=8)


def _short(name: str) -> str:
    """On two lines where it is long, and never longer than those."""
    if len(name) <= 16:
        return name
    head, dot, tail = name.partition(".")
    if dot:
        return f"{_cut(head)}\n{_cut(tail)}"
    return f"{name[:16]}\n{_cut(name[16:])}"


def _cut(text: str) -> str:
    return text if len(text) <= 16 else text[:15] + "…"
