"""Which tokenizer a job uses, and what makes two tokenizers the same.

Promises: needs no torch and no ray; transformers is imported only for folders without a
tokenizer.json.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec.models import ModelSpec

from .hub import TOKENIZER_FILES, fetch

Resolve = Callable[[str, str], str]
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def tokenizer_folder(
    models: Iterable[tuple[str, ModelSpec]], resolve: Resolve | None = None
) -> tuple[str, str]:
    """The folder of the job's tokenizer.

    What the student names or brings comes first; then what roles name in their `tokenizer` field,
    in order; then the first role's own folder that holds one.

    Args:
        models: (dotted path, spec) of the student, then of each role.
        resolve: turns a `registry` or `job` source into a folder; without it they are passed over.

    Returns:
        (folder, dotted path of the field it came from).

    Raises:
        SpecError: no model names or brings a tokenizer.
    """
    models = list(models)
    for field, spec in models[:1]:
        folder = own_tokenizer(spec, field, resolve)
        if folder is not None:
            named = spec.tokenizer is not None
            return folder, f"{field}.{'tokenizer' if named else spec.source[0]}"
    for field, spec in models:
        if spec.tokenizer is not None:
            return _named(spec.tokenizer, f"{field}.tokenizer"), f"{field}.tokenizer"
    for field, spec in models:
        folder = own_tokenizer(spec, field, resolve)
        if folder is not None:
            return folder, f"{field}.{spec.source[0]}"
    tried = ", ".join(field for field, _ in models)
    raise SpecError(
        f"{models[0][0]}.tokenizer" if models else "student.tokenizer",
        f"is absent, and no model brings one (looked at {tried})",
        "Name a folder or hub id that holds a tokenizer",
    )


def own_tokenizer(spec: ModelSpec, field: str, resolve: Resolve | None = None) -> str | None:
    """The folder of the tokenizer that a model names or brings; None if it does neither.

    Args:
        spec: the model.
        field: its dotted path.
        resolve: as in `tokenizer_folder`.
    """
    if spec.tokenizer is not None:
        return _named(spec.tokenizer, f"{field}.tokenizer")
    folder = _own(spec, field, resolve)
    return folder if folder is not None and has_tokenizer(folder) else None


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a folder holds a tokenizer's files."""
    return any((Path(folder) / name).is_file() for name in _FILES)


def vocabulary_size(folder: str) -> int:
    """One more than the largest id: what a model's embedding must at least have."""
    vocabulary = _backend(folder).get_vocab(with_added_tokens=True)
    return max(vocabulary.values()) + 1


def special_ids(folder: str) -> dict[str, int]:
    """`bos_token_id` and `eos_token_id` of a tokenizer, where it has them."""
    file = Path(folder) / "tokenizer_config.json"
    named = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    ids: dict[str, int] = {}
    for name in ("bos_token", "eos_token"):
        token = named.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        found = _backend(folder).token_to_id(token) if isinstance(token, str) else None
        if found is not None:
            ids[f"{name}_id"] = found
    return ids


def tokenizer_fingerprint(folder: str) -> str:
    """Hash of what ids mean and how text becomes them: equal for tokenizers that are one.

    Covers the id of every token, the merges, normalisation, splitting and decoding. Leaves out file
    names, chat templates, padding, truncation and what is added around a text.
    """
    description = json.loads(_backend(folder).to_str())
    kept: dict[str, Any] = {
        key: description.get(key)
        for key in ("model", "normalizer", "pre_tokenizer", "decoder", "added_tokens")
    }
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


@lru_cache(maxsize=8)
def _read(file: str, _modified_ns: int) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(file)


def _backend(folder: str) -> Any:
    file = Path(folder) / "tokenizer.json"
    try:
        if file.is_file():
            return _read(str(file), file.stat().st_mtime_ns)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    except Exception as error:  # the tokenizers library raises bare Exception
        raise SpecError(
            str(folder),
            f"holds no tokenizer that can be read ({error})",
            "Use one with a tokenizer.json",
        ) from error


def _named(value: str, field: str) -> str:
    if Path(value).is_dir():
        if not has_tokenizer(value):
            raise SpecError(
                field, f"{value} holds no tokenizer", f"It needs one of {', '.join(_FILES)}"
            )
        return value
    if value.startswith((".", "/", "~")):
        raise SpecError(field, f"is {value!r}, which is no folder", "Give a folder that exists")
    return fetch(value, None, list(TOKENIZER_FILES), field)


def _own(spec: ModelSpec, field: str, resolve: Resolve | None) -> str | None:
    kind, value = spec.source
    if kind == "path":
        return value
    if kind == "hub":
        return fetch(value, spec.revision, list(TOKENIZER_FILES), f"{field}.hub")
    if kind in ("registry", "job") and resolve is not None:
        return resolve(kind, value)
    return None
