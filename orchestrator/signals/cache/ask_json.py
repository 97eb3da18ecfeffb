"""Asks as canonical JSON text, and back. The standard library only.

Equal asks have one text on every machine, so it can be hashed and stored: keys are sorted, floats
are written as floats whatever number type they came in, and every field is there, defaults too.
"""

import dataclasses
import json
import typing
from functools import lru_cache
from typing import Any

from orchestrator.signals.records import SignalAsk

_KINDS: dict[str, type[Any]] = {
    str(next(field.default for field in dataclasses.fields(cls) if field.name == "kind")): cls
    for cls in typing.get_args(SignalAsk)
}


@lru_cache(maxsize=256)
def ask_json(ask: SignalAsk) -> str:
    """Canonical JSON of an ask."""
    types = _types(type(ask))
    fields = {name: _plain(getattr(ask, name), types[name]) for name in types}
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


@lru_cache(maxsize=256)
def ask_from_json(text: str) -> SignalAsk:
    """The ask of a text.

    Raises:
        ValueError: no ask of this version is written so.
    """
    fields = json.loads(text)
    kind = fields.get("kind") if isinstance(fields, dict) else None
    if kind not in _KINDS:
        raise ValueError(f"ask {text} has kind {kind}; known are {', '.join(_KINDS)}")
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    try:
        ask = _KINDS[kind](**given)
    except TypeError as error:
        raise ValueError(f"ask {text} does not have the fields of kind {kind}") from error
    return typing.cast(SignalAsk, ask)


@lru_cache(maxsize=16)
def _types(cls: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _plain(value: Any, declared: Any) -> Any:
    """The value as JSON has it, a float where the field is declared one."""
    if declared is float:
        return float(value)
    if declared == tuple[float, ...]:
        return [float(each) for each in value]
    return list(value) if isinstance(value, tuple) else value
