"""A fresh architecture: the fields of a job file -> a transformers config.

Promises: a field without effect is refused; the vocabulary is the tokenizer's unless the job says
more; no token is a padding token unless the job names one, since transformers freezes the embedding
of a padding id, and here every id is text. Imports transformers inside functions only.
"""

import difflib
import inspect
import re
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError

from .tokenizer import special_ids, vocabulary_size

# Older spellings that transformers still turns into today's fields.
_OLDER = {"rope_theta": "rope_parameters", "rope_scaling": "rope_parameters"}
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def fresh_config(
    fields: dict[str, Any], tokenizer: str | None, field: str, *, text: bool = True
) -> Any:
    """The config of a fresh model.

    Args:
        fields: `model_type` and that type's config fields.
        tokenizer: folder of the tokenizer; None, as for features, leaves the vocabulary to
            `fields`.
        text: a causal model, whose special tokens are the tokenizer's and not the family's.
        field: dotted path of the model in the job, for messages.

    Raises:
        SpecError: unknown model type or field, or a vocabulary smaller than the tokenizer's.
    """
    from transformers import AutoConfig

    field = f"{field}.architecture"
    model_type = fields["model_type"]
    given = {key: value for key, value in fields.items() if key != "model_type"}
    try:
        default = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise SpecError(
            f"{field}.model_type",
            f"is {model_type!r}, which transformers does not know",
            _nearest_type(model_type),
        ) from error
    _check_known(given, default, field)
    if tokenizer is not None:
        _check_vocabulary(given, tokenizer, field)
        given = {**special_ids(tokenizer), "vocab_size": vocabulary_size(tokenizer), **given}
    if text:
        given = dict.fromkeys(_SPECIAL) | given
    try:
        return AutoConfig.for_model(model_type, **given)
    except (ValueError, TypeError) as error:
        raise SpecError(field, f"is no {model_type} config ({error})", "Mend its fields") from error


def _check_known(given: dict[str, Any], default: Any, field: str) -> None:
    known = set(default.to_dict()) | set(default.attribute_map) | {"num_labels"}
    known |= {old for old, new in _OLDER.items() if new in known}
    for name in given:
        if name not in known and not _is_read(name, default):
            near = difflib.get_close_matches(name, known, n=1)
            raise SpecError(
                f"{field}.{name}",
                f"is no field of a {default.model_type} config",
                f"Did you mean {near[0]!r}?" if near else "Remove it",
            )


def _is_read(name: str, config: Any) -> bool:
    """Whether the family's own source names a field: some are read without being declared."""
    folder = Path(inspect.getfile(type(config))).parent
    word = re.compile(rf"\b{re.escape(name)}\b")
    return any(word.search(file.read_text(encoding="utf-8")) for file in folder.glob("*.py"))


def _check_vocabulary(given: dict[str, Any], tokenizer: str, field: str) -> None:
    size = vocabulary_size(tokenizer)
    if given.get("vocab_size", size) < size:
        raise SpecError(
            f"{field}.vocab_size",
            f"is {given['vocab_size']}, and the tokenizer has {size} ids",
            f"Remove it, or set it to at least {size}",
        )


def _nearest_type(name: str) -> str:
    from transformers import CONFIG_MAPPING

    near = difflib.get_close_matches(name, list(CONFIG_MAPPING), n=1)
    return f"Did you mean {near[0]!r}?" if near else "Name a transformers model type, e.g. llama"
