"""How many positions a model reads, told from its config. Reads JSON only; imports no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.spec.models import ModelSpec

_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def positions_of(spec: ModelSpec) -> int | None:
    """Positions of a model that a folder or an architecture describes; None where nothing says.

    Args:
        spec: of a model whose `registry` and `job` sources were made folders.
    """
    kind, value = spec.source
    config: Mapping[str, Any] = {}
    if kind == "architecture":
        config = value
    elif kind == "path" and (Path(value) / "config.json").is_file():
        config = json.loads((Path(value) / "config.json").read_text(encoding="utf-8"))
    nested = config.get("text_config")
    text = {**config, **nested} if isinstance(nested, Mapping) else config
    found = [text[name] for name in _NAMES if isinstance(text.get(name), int)]
    return found[0] if found else None
