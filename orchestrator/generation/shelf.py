"""Texts on disk: parts as they are written, then one JSONL file of all of them.

A part is published by rename once it is on the disk, so what a killed writer leaves is whole parts.
Any number of sessions may write one shelf: equal parts replace each other. Standard library only.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.spec.data import GeneratedSource

from .records import Part, Text

PART_TEXTS = 32
"""Texts that a killed writer may lose."""
LAYOUT = "1"
"""Raised whenever the same source would become other texts."""
TEXTS = "texts.jsonl"
_NOT_OF_TEXTS = {"kind", "role", "prompts", "format", "held_out"}


def shelf_key(
    role: str, tokenizer: str, source: GeneratedSource, prompts: Sequence[str], *, alone: bool
) -> str:
    """Names a source's texts by all that decides them.

    Args:
        role: fingerprint of the model that writes.
        tokenizer: fingerprint of its tokenizer.
        source: the source; its prompts by content.
        prompts: the beginnings.
        alone: whether each text is written alone.
    """
    numbers = source.model_dump(mode="json", exclude=_NOT_OF_TEXTS)
    described: list[Any] = [LAYOUT, role, tokenizer, numbers, list(prompts), alone]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]


class Shelf:
    """The texts of one source."""

    def __init__(self, folder: Path, count: int, prompts: Sequence[str]) -> None:
        """`prompts` begin the texts in turn; `count` of them are written."""
        self._folder, self._count, self._prompts = folder, count, prompts

    @property
    def texts(self) -> Path:
        """The file of all texts, once they are written."""
        return self._folder / TEXTS

    @property
    def complete(self) -> bool:
        """Whether it is there."""
        return self.texts.is_file()

    def missing(self) -> list[Part]:
        """Parts that nobody has written."""
        if self.complete:
            return []
        open_parts = [part for part in self._parts() if not self._file(part.number).is_file()]
        return [] if self.complete else open_parts  # another session may have bound them meanwhile

    def put(self, part: Part, texts: Sequence[Text]) -> None:
        """Keep a part.

        Raises:
            ValueError: these are not its texts.
        """
        places = range(part.begin, part.begin + len(part.prompts))
        if [text.index for text in texts] != list(places):
            raise ValueError(f"part {part.number} holds texts {places}; write these, in order")
        lines = (json.dumps(text.record(), ensure_ascii=False) + "\n" for text in texts)
        self._publish(self._file(part.number), "".join(lines).encode())

    def bind(self) -> Path:
        """Make one file of all parts; the file."""
        if not self.complete:
            parts = [self._file(part.number) for part in self._parts()]
            try:
                whole = b"".join(file.read_bytes() for file in parts)
            except FileNotFoundError:
                if self.complete:
                    return self.texts  # another session has bound them meanwhile
                raise
            self._publish(self.texts, whole)
            for file in parts:
                file.unlink(missing_ok=True)  # another session may bind, too
        return self.texts

    def _parts(self) -> Iterator[Part]:
        for number, begin in enumerate(range(0, self._count, PART_TEXTS)):
            places = range(begin, min(begin + PART_TEXTS, self._count))
            prompts = tuple(self._prompts[i % len(self._prompts)] for i in places)
            yield Part(number, begin, prompts)

    def _file(self, number: int) -> Path:
        return self._folder / f"part-{number:06d}.jsonl"

    def _publish(self, target: Path, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name, too
        finally:
            os.close(folder)
