"""`stillhouse recipes`: the published methods that an objective may name, listed and explained.

Everything is read off the recipes themselves. Loads neither torch nor ray.
"""

import difflib
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from orchestrator.errors import SpecError
from orchestrator.signals.asks import ask_of
from orchestrator.signals.layouts import Sizes, position_bytes
from orchestrator.spec.models import EncodingSpec, HiddenEncoding, RoleSpec
from strategies.recipes import RECIPES, Recipe
from strategies.specs import MovedSpec, Within

SHOWN = Sizes(vocabulary=32_000, width=2048)
"""Sizes of the role whose bytes are told."""

WRITTEN = {
    "kind": "generated",
    "role": "teacher",
    "prompts": {"text": ["Once upon a time"]},
    "count": 2000,
    "length": 200,
}
"""The source of an example whose texts a role writes."""

DIGITS = {
    "kind": "import",
    "target": "orchestrator.data.digits:documents",
    "format": {"kind": "features", "shape": [64]},
}
"""The source of an example of classifiers."""

RANKED = {
    "kind": "csv",
    "path": "interactions.csv",
    "format": {"kind": "interactions", "leave_one_out": True},
}
"""The source of an example about the items of users."""

SEVERAL: dict[str, dict[str, Any]] = {
    "mutual_learning": {"members": {name: {"path": f"models/{name}"} for name in ("a", "b")}},
    "one": {
        "import": "orchestrator.models.reference:branches",
        "arguments": {"inputs": 64, "classes": 10, "branches": 3},
        "outputs": ["branch_0", "branch_1", "branch_2", "ensemble"],
    },
}
"""Students of recipes whose terms name members."""

Name = Annotated[str | None, typer.Argument(help="One of them, explained.", metavar="[NAME]")]


def recipes(name: Name = None) -> None:
    """List the published methods that `objective.recipe` may name, or explain one."""
    if name is None:
        _print_table()
        return
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        known = f"Known: {', '.join(RECIPES)}"
        remedy = f"Did you mean {near[0]}? {known}" if near else known
        raise SpecError("NAME", f"there is no recipe {name!r}", remedy)
    sys.stdout.write("\n".join(explained(name)) + "\n")


def default_recipe(name: str) -> Recipe:
    """The recipe with all its defaults."""
    return RECIPES[name].model_validate({"kind": name})


def example(name: str) -> dict[str, Any]:
    """A whole job with the recipe, its fields written out; models and data are placeholders."""
    recipe, writes = default_recipe(name), RECIPES[name].learns_written_text
    source = (
        WRITTEN if writes else {"kind": "import", "target": "orchestrator.data.stdlib:documents"}
    )
    roles = (*recipe.roles, "teacher") if writes else recipe.roles
    task: dict[str, Any] = {}
    data: dict[str, Any] = {"sources": [source], "context": 256}
    if RECIPES[name].of_classifiers:
        source = RANKED if recipe.ranks_items else DIGITS
        task, data = {"task": "classifier"}, {"sources": [source]}
    return {
        "name": name.replace("_", "-"),
        "student": {**SEVERAL.get(name, {"path": "models/student"}), **task},
        "roles": {role: {"path": f"models/{role}", **task} for role in roles},
        "data": data,
        "objective": {"recipe": {"kind": name, **_written(recipe)}},
        "training": {"steps": 400, "global_batch": 16, "micro_batch": 4},
    }


def _written(spec: BaseModel) -> dict[str, Any]:
    """Its fields as one would write them: schedules without what they have by default."""
    fields = {name: getattr(spec, name) for name in type(spec).model_fields}
    return {
        name: _schedule(value) if isinstance(value, BaseModel) else value
        for name, value in fields.items()
        if value is not None
    }


def _schedule(schedule: BaseModel) -> dict[str, Any]:
    plain = schedule.model_dump(exclude_defaults=True)
    return {"kind": plain.pop("kind"), **plain}


def explained(name: str) -> Iterator[str]:
    """What is to be known of one recipe, as lines of text."""
    kind, recipe = RECIPES[name], default_recipe(name)
    terms = ", ".join(term.kind for term in recipe.terms())
    yield f"{name}: {kind.title}"
    yield f"  {(kind.__doc__ or '').strip()}"
    yield ""
    yield f"Equation  {kind.equation}"
    yield f"Source    {kind.source}"
    yield f"Asks      {_asks(recipe)}"
    yield f"Labels    {'needed' if recipe.needs_labels else 'not needed'}"
    yield f"Expands   to {terms}"
    if any(what == "logits" for _, what in recipe.asks):
        told = ", ".join(f"{kind} {size:,}" for kind, size in _bytes(recipe).items())
        of_text = RoleSpec.model_fields["encoding"].default.kind
        default = "full" if recipe.ranks_items else of_text
        yield (
            f"Bytes     a position and role, for {SHOWN.vocabulary:,} entries and a width of "
            f"{SHOWN.width:,}: {told}; default {default}"
        )
    yield ""
    yield "Fields"
    rows = [row for row in _fields(kind)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for field, values, default, comment in rows:
        cells = (field.ljust(widths[0]), values.ljust(widths[1]), default.ljust(widths[2]), comment)
        yield "  " + "  ".join(cells).rstrip()
    yield ""
    yield "Example"
    written = yaml.safe_dump(example(name), sort_keys=False, default_flow_style=None, width=96)
    yield from (f"  {line}" for line in written.splitlines())


def _print_table() -> None:
    from rich.console import Console
    from rich.table import Table

    headings = ("name", "method", "roles", "passes", "labels", "source")
    table = Table(*headings, box=None, pad_edge=False)
    for name, kind in RECIPES.items():
        recipe = default_recipe(name)
        labels = "yes" if recipe.needs_labels else "no"
        passes = _passes(recipe)
        table.add_row(name, kind.title, ", ".join(recipe.roles), passes, labels, kind.source)
    out = Console()
    if not out.is_terminal:
        out.width = 240  # nobody's lines to fit
    out.print(table)


def _passes(recipe: Recipe) -> str:
    """Teacher passes a sample: one for each thing asked of a role, fewer where some are chosen."""
    selected = recipe.select()
    count = sum(what != "resident" for _, what in recipe.asks)
    return f"{count * selected.share:g}" if selected is not None else str(count)


def _asks(recipe: Recipe) -> str:
    if not recipe.roles:
        return "no role"
    passes = _passes(recipe)
    plural = "" if passes == "1" else "es"
    told = f"{', '.join(recipe.roles)}: {passes} teacher pass{plural} a sample"
    beside = ", ".join(role for role, what in recipe.asks if what == "resident")
    if beside:
        told += f"; the weights of {beside} beside the student"
    if isinstance(recipe.between_epochs(), MovedSpec):
        told += ", and one with a backward for each step of each sample that is moved"
    return told


def _bytes(recipe: Recipe) -> Mapping[str, int]:
    """By encoding that the recipe can use, at its defaults: bytes of a position's answer."""
    default = HiddenEncoding(kind="hidden")
    found: dict[str, int] = {}
    for encoding in typing.get_args(typing.get_args(EncodingSpec)[0]):
        kind = typing.get_args(encoding.model_fields["kind"].annotation)[0]
        if kind in recipe.encodings:
            given = default if kind == default.kind else encoding(kind=kind)
            found[kind] = position_bytes(ask_of(given), SHOWN)
    return found


def _fields(kind: type[Recipe]) -> Iterator[tuple[str, str, str, str]]:
    """(field, values, default, comment) of each field but `kind`."""
    for name, info in kind.model_fields.items():
        if name != "kind":
            yield name, values_of(info), _default(info), info.description or ""


def values_of(info: FieldInfo) -> str:
    """What a field takes, in words: its type and its limits."""
    return _with_limits(_type(info.annotation), info.metadata)


def _type(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _with_limits(_type(parts[0]), FieldInfo.from_annotation(annotation).metadata)
    if origin is typing.Literal:
        return " or ".join(parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in parts))
    if origin is list:
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"mapping of {_type(parts[0])} to {_type(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "schedule"
    names = {
        str: "text",
        bool: "true or false",
        int: "whole number",
        float: "number",
        type(None): "absent",
    }
    return names[annotation]


def _with_limits(text: str, metadata: list[Any]) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [
        f"{sign} {getattr(each, name):g}"
        for each in metadata
        for name, sign in signs.items()
        if getattr(each, name, None) is not None
    ]
    limits += [each.limits for each in metadata if isinstance(each, Within)]
    return " ".join([text, ", ".join(limits)]).rstrip()


def _default(info: FieldInfo) -> str:
    value = info.default
    if isinstance(value, BaseModel):
        flow = {"default_flow_style": True, "sort_keys": False, "width": 200}
        return yaml.safe_dump(_schedule(value), **flow).strip()
    if isinstance(value, bool):
        return str(value).lower()
    return "absent" if value is None else str(value)
