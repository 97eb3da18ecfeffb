"""What prepared data are called: by all that decides their samples, and quickly by files unchanged.

Promises: a version depends on what documents say, on the fields of the spec that decide samples and
on the tokenizer; not on paths, times or machines. Numpy only.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.interactions import held_out_of, trained_of
from orchestrator.spec.data import DataSpec, Messages

from .format import required_chat
from .read import Document
from .sources import source_files
from .tokenizer import TextTokenizer

LAYOUT = "3"
"""Raised whenever the same input would give other samples or other files."""
_TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")


class Digest:
    """Hashes documents as they pass, and counts their classes."""

    def __init__(self, spec: DataSpec, tokenizer: TextTokenizer | None) -> None:
        chat = any(isinstance(format, Messages) for format in spec.formats)
        described = {
            "layout": LAYOUT,
            "context": spec.row_tokens,
            "long_documents": spec.long_documents,
            "held_out": spec.held_out,
            "corrupt": spec.corrupt.model_dump(),
            "classes": getattr(spec.formats[0], "classes", None),
            "tokenizer": None if tokenizer is None else tokenizer.identity,
            "chat": asdict(required_chat(tokenizer)) if tokenizer is not None and chat else None,
        }
        self._formats = [format.kind for format in spec.formats]
        self._apart = [source.held_out for source in spec.sources]
        self._ranks_items = spec.ranks_items
        self._hash = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
        self.classes = len(getattr(spec.formats[0], "classes", None) or ())

    def through(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The same documents; `version` and `classes` are right once all have passed."""
        for document in documents:
            content = document.content
            features = _bytes_of(content) if isinstance(content, np.ndarray) else b""
            entry = [document.id, self._formats[document.source], document.label]
            entry.append(len(features) if features else content)
            if self._apart[document.source] is not None:
                entry.append(self._apart[document.source])
            self._hash.update(json.dumps(entry, sort_keys=True, default=str).encode() + b"\n")
            self._hash.update(features)
            self.classes = max(self.classes, self._classes_of(document))
            yield document

    def _classes_of(self, document: Document) -> int:
        """As many as the document shows that there are."""
        words = document.content
        if not self._ranks_items or not isinstance(words, np.ndarray):
            return document.label + 1
        return 1 + int(max(trained_of(words).max(), held_out_of(words).max(initial=0)))

    @property
    def version(self) -> str:
        """Hex digest of all that decides the samples."""
        return self._hash.hexdigest()


def quick_key(spec: DataSpec, tokenizer_folder: str | None) -> str | None:
    """Names sizes and times of all files read; None where a source has no such files."""
    stats: list[Any] = [_stats(_tokenizer_files(tokenizer_folder) if tokenizer_folder else [])]
    for index, source in enumerate(spec.sources):
        files = source_files(source, f"data.sources.{index}")
        if files is None:
            return None
        stats.append(_stats(files))
    described = [LAYOUT, spec.model_dump(mode="json", exclude={"packing", "workers"}), stats]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _bytes_of(words: np.ndarray) -> bytes:
    return words.astype("<i4" if words.dtype.kind == "i" else "<f4").tobytes()


def _tokenizer_files(folder: str) -> list[Path]:
    return sorted(path for glob in _TOKENIZER_FILES for path in Path(folder).glob(glob))


def _stats(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    stats = [(path, path.stat()) for path in files]
    return [(str(path.absolute()), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
