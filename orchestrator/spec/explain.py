"""Pydantic's errors -> one `SpecError` in the words of the job file.

Promises: the field's path has the keys of the user's file and no tag of a union; an unknown key
comes with the nearest known one; a value is shown as it was written.
"""

import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.errors import SpecError


def explain(error: ValidationError, root: type[BaseModel], raw: Any, prefix: str) -> SpecError:
    """The most telling of a validation's errors.

    Args:
        error: what pydantic said.
        root: the model that was validated.
        raw: the plain data it was given.
        prefix: what precedes every field in messages, e.g. "jobs.1.".
    """
    details = error.errors()
    chosen = _most_telling(details, raw)
    distinct = {_field(detail, raw) for detail in details if not _is_lost_branch(detail)}
    others = max(0, len(distinct) - 1)
    more = f" ({others} more after this one)" if others else ""
    problem, remedy = _say(chosen, root, raw)
    return SpecError(prefix + ".".join(_field(chosen, raw)) or "job", problem, remedy + more)


def _most_telling(details: Sequence[Any], raw: Any) -> Any:
    """The first error, or a deeper one in the same value.

    A number or a mapping is tried as both: where a mapping was written, "not a number" says
    nothing, and the error inside the mapping says it all.
    """
    return next((detail for detail in details if not _is_lost_branch(detail)), details[0])


def _is_lost_branch(detail: Any) -> bool:
    scalar = detail["type"] in ("float_type", "int_type", "string_type", "bool_type")
    mapping = detail["type"] in ("model_type", "model_attributes_type", "dict_type")
    given = detail.get("input")
    number = "float" in detail["loc"] or "constrained-float" in detail["loc"]
    return (scalar and isinstance(given, dict | list) and number) or (
        mapping and isinstance(given, str | int | float) and "tagged-union" in str(detail["loc"])
    )


def _field(detail: Any, raw: Any) -> tuple[str, ...]:
    """The keys of the file that lead to the error."""
    keys = tuple(str(part) for part, in_file in _steps(detail, raw) if in_file)
    return (*keys, detail["ctx"]["field"]) if detail["type"] == "refused" else keys


def _steps(detail: Any, raw: Any) -> list[tuple[Any, bool]]:
    """Each part of pydantic's location, and whether the file has it (else it names a branch)."""
    steps, node = [], raw
    location = detail["loc"]
    for index, part in enumerate(location):
        absent_key = index == len(location) - 1 and detail["type"] == "missing"
        if _holds(node, part):
            node = node[part]
            steps.append((part, True))
        else:
            steps.append((part, absent_key))
    return steps


def _holds(node: Any, part: Any) -> bool:
    if isinstance(node, dict):
        return part in node
    return isinstance(node, list | tuple) and isinstance(part, int) and part < len(node)


def _say(detail: Any, root: type[BaseModel], raw: Any) -> tuple[str, str]:
    """(problem, remedy)."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "refused":
        return context["problem"], context["remedy"]
    if kind == "extra_forbidden":
        return "is not a known key", nearest(str(detail["loc"][-1]), _known_keys(detail, root, raw))
    if kind == "missing":
        return "is missing", "Add it"
    if kind == "union_tag_not_found":
        kinds = _kinds(root, raw, detail)
        return "has no kind", f"Add kind: one of {', '.join(kinds)}"
    if kind == "union_tag_invalid":
        return (
            f"has the unknown kind {context['tag']!r}",
            nearest(
                context["tag"], [tag.strip(" '") for tag in context["expected_tags"].split(",")]
            ),
        )
    if kind == "literal_error":
        expected = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"is {_shown(detail['input'])}", nearest(str(detail["input"]), expected)
    if kind == "string_pattern_mismatch":
        return f"is {_shown(detail['input'])}", f"Write something that matches {context['pattern']}"
    message = detail["msg"].removeprefix("Value error, ")
    problem, semicolon, remedy = message.rpartition("; ")
    if semicolon:
        return problem, remedy[:1].upper() + remedy[1:]
    message = message[:1].lower() + message[1:]
    return f"is {_shown(detail.get('input'))}: {message}", _REMEDIES.get(kind, "Change the value")


_REMEDIES = {
    "int_type": "Write a whole number",
    "int_parsing": "Write a whole number",
    "int_from_float": "Write a whole number",
    "float_type": "Write a number",
    "float_parsing": "Write a number",
    "bool_type": "Write true or false",
    "bool_parsing": "Write true or false",
    "string_type": "Write text, quoted if it looks like a number",
    "list_type": "Write a list",
    "dict_type": "Write a mapping, key: value",
    "model_type": "Write a mapping, key: value",
    "model_attributes_type": "Write a mapping, key: value",
    "greater_than": "Choose a larger value",
    "greater_than_equal": "Choose a larger value",
    "less_than": "Choose a smaller value",
    "less_than_equal": "Choose a smaller value",
    "too_short": "Write at least one entry",
}


def nearest(given: str, known: Sequence[str]) -> str:
    """A remedy for an unknown name: the known one it is most like, and all of them."""
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    listed = ", ".join(sorted(known))
    return f"Did you mean {near[0]!r}? Known: {listed}" if near else f"Known: {listed}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _known_keys(detail: Any, root: type[BaseModel], raw: Any) -> list[str]:
    models = _models_at(root, _steps(detail, raw)[:-1], detail["loc"])
    keys = [info.alias or name for model in models for name, info in model.model_fields.items()]
    return list(dict.fromkeys(keys))


def _kinds(root: type[BaseModel], raw: Any, detail: Any) -> list[str]:
    models = _models_at(root, _steps(detail, raw), detail["loc"])
    return [kind for model in models for kind in _own_kinds(model)]


def _models_at(
    root: type[BaseModel], steps: Sequence[tuple[Any, bool]], location: Sequence[Any]
) -> list[type[BaseModel]]:
    """The models that a location leads to: unions give several, a tag among the steps one."""
    models: list[type[BaseModel]] = [root]
    for part, in_file in steps:
        if not in_file:
            models = [model for model in models if part in _own_kinds(model)] or models
            continue
        following = [leaf for model in models for leaf in _field_models(model, part)]
        models = following or models  # a list index or a mapping's key stays where it is
    return models


def _own_kinds(model: type[BaseModel]) -> tuple[str, ...]:
    info = model.model_fields.get("kind")
    return typing.get_args(info.annotation) if info is not None else ()


def _field_models(model: type[BaseModel], part: Any) -> list[type[BaseModel]]:
    for name, info in model.model_fields.items():
        if part in (name, info.alias):
            return _leaves(info.annotation)
    return []


def _leaves(annotation: Any) -> list[type[BaseModel]]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _leaves(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType, list, tuple, dict):
        return [leaf for arg in typing.get_args(annotation) for leaf in _leaves(arg)]
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return [annotation] if is_model else []
