"""Write docs/reference.md from the models of a job file, so that the two cannot drift apart.

    python docs/generate_reference.py           write it
    python docs/generate_reference.py --check   exit 1 if it is not current

Field descriptions are the string literals below the fields. Imports neither torch nor ray.
"""

import ast
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from orchestrator.search.spec import SearchSpec
from orchestrator.spec import JobSpec
from strategies.specs import Within

TARGET = Path(__file__).parent / "reference.md"
HEAD = """# Job file reference

Generated from the models by `docs/generate_reference.py`; edit those, not this page.

A job file is YAML: one job (a mapping with the keys of [JobSpec](#jobspec)), or an ordered list of
jobs under `jobs:`. Unknown keys are errors. `--set a.b.c=value` overrides any field of every job,
`--set JOB:a.b.c=value` those of one. `stillhouse validate FILE` prints a job with all its defaults.

With the key `search`, whose value is a [SearchSpec](#searchspec), one job is searched by
`stillhouse search FILE`.

Where a mapping has a `kind`, it chooses which of several tables below applies.
"""


def render() -> str:
    """The whole page."""
    models = list(dict.fromkeys([*_reachable(JobSpec), *_reachable(SearchSpec)]))
    return "\n".join([HEAD, *(_section(model) for model in models)])


def _reachable(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The model and all that its fields lead to, in the order of the file, nearest first."""
    level = [root]
    seen = {root}
    while level:
        yield from level
        found = [
            leaf
            for model in level
            for info in model.model_fields.values()
            for leaf in _leaves(info.annotation)
        ]
        level = [model for model in dict.fromkeys(found) if model not in seen]
        seen.update(level)


def _leaves(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [leaf for part in typing.get_args(annotation) for leaf in _leaves(part)]


def _section(model: type[BaseModel]) -> str:
    comments = _comments(model)
    lines = [f"## {model.__name__}", "", inspect.cleandoc(model.__doc__ or ""), ""]
    lines += ["| key | value | default | |", "| :-- | :-- | :-- | :-- |"]
    for name, info in model.model_fields.items():
        cells = (
            f"`{info.alias or name}`",
            _field_type(info),
            _default(info),
            comments.get(name, ""),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _comments(model: type[BaseModel]) -> dict[str, str]:
    """The string literal below each field, those of parent models included."""
    found: dict[str, str] = {}
    for parent in reversed(model.__mro__):
        if not issubclass(parent, BaseModel) or parent is BaseModel:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(parent))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr)):
                continue
            name, text = statement.target, following.value
            if isinstance(name, ast.Name) and isinstance(text, ast.Constant):
                found[name.id] = " ".join(str(text.value).split())
    return found


def _field_type(info: FieldInfo) -> str:
    return _with_limits(_type(info.annotation), info.metadata)


def _type(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        info = FieldInfo.from_annotation(annotation)
        return _with_limits(_type(parts[0]), info.metadata)
    if origin is typing.Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in parts))
    if origin is list:
        return f"list of {_type(parts[0])}"
    if origin is tuple:
        return "[" + ", ".join(_type(part) for part in parts) + "]"
    if origin is dict:
        return f"mapping of {_type(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    plain = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return plain.get(annotation, "absent" if annotation is type(None) else "anything")


def _with_limits(text: str, metadata: list[Any]) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [
        f"{sign} {getattr(each, name):g}"
        for each in metadata
        for name, sign in signs.items()
        if getattr(each, name, None) is not None
    ]
    patterns = [f"matching `{each.pattern}`" for each in metadata if getattr(each, "pattern", None)]
    limits += [each.limits for each in metadata if isinstance(each, Within)]
    return " ".join([text, *([", ".join(limits)] if limits else []), *patterns])


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined:
        return "required"
    if isinstance(info.default, BaseModel):
        given = info.default.model_dump(exclude_defaults=True)
        kind = getattr(info.default, "kind", None)
        shown = ({"kind": kind} if kind else {}) | given
        return f"`{shown}`" if shown else "its defaults"
    if info.default is None:
        return "absent"
    if isinstance(info.default, bool):
        return f"`{str(info.default).lower()}`"
    return f"`{info.default}`"


def main() -> int:
    """Write or check; the exit code."""
    page = render()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(page, encoding="utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == page:
        return 0
    print(f"{TARGET} is not current; run: python {Path(__file__).name}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
