"""All sources of a job -> documents with unique ids and checked content.

Promises: the same sources give the same documents in the same order with the same ids, wherever
they lie. A record's own `id`, if it is a string, is its id. A faulty record is a `SpecError`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from orchestrator.errors import SpecError
from orchestrator.interactions import table_of, words_of
from orchestrator.spec.data import (
    Completion,
    DataSpec,
    Features,
    Format,
    ImportSource,
    Interactions,
    LabelledText,
    Messages,
    PlainText,
    TextSource,
    format_of,
)

from .classified import features_of, label_of
from .sources import open_source

Content = str | tuple[str, str] | list[dict[str, Any]] | np.ndarray
"""A text; a (prompt, completion) pair; messages with at least a role each; [n] float32 features;
[n] int32 words of a user (`orchestrator.interactions`)."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document. `source` is the index of its source in the job."""

    id: str
    content: Content
    source: int
    label: int = -1  # the class of a classifier's document


def read_documents(spec: DataSpec) -> Iterator[Document]:
    """The documents of all sources, in order, up to `max_documents`.

    An id that an earlier source already used gets `@<source index>` appended; twice in one source
    is refused. Of interactions the documents are the users, by name.

    Raises:
        SpecError: a source is missing, empty or malformed, an id repeats, or features differ in
            number.
    """
    format = spec.formats[0]
    if isinstance(format, Interactions):
        return _users(spec, format)
    documents = islice(_all(spec), spec.max_documents)
    return documents if spec.reads_text else _alike(documents)


def _all(spec: DataSpec) -> Iterator[Document]:
    seen: dict[str, int] = {}
    for index, source in enumerate(spec.sources):
        field = f"data.sources.{index}"
        own_ids = not isinstance(source, TextSource | ImportSource)
        empty = True
        for name, record in open_source(source, field):
            empty = False
            own = record.get("id") if own_ids else None
            name = _unique(own if isinstance(own, str) and own else name, index, seen, field)
            format = format_of(source)
            label = -1
            if isinstance(format, LabelledText | Features):
                label = label_of(record, format, field, name)
            yield Document(name, _content(record, format, field, name), index, label)
        if empty:
            raise SpecError(field, "gives no document", "Remove the source or fill it")


def _users(spec: DataSpec, format: Interactions) -> Iterator[Document]:
    """A document a user; what there is of one is known once all records are read."""
    field = "data.sources.0"
    table = table_of(open_source(spec.sources[0], field), format, spec.held_out, field)
    for number, user in enumerate(table.users):
        _check_text(user.name, field, f"user {user.name!r}")
        yield Document(user.name, words_of(number, user), 0, 0)


def _alike(documents: Iterator[Document]) -> Iterator[Document]:
    """Documents of equally many features."""
    first: Document | None = None
    for document in documents:
        first = first or document
        if len(document.content) != len(first.content):
            raise SpecError(
                f"data.sources.{document.source}",
                f"document {document.id!r} has {len(document.content)} numbers, and "
                f"{first.id!r} has {len(first.content)}",
                "Give every record equally many",
            )
        yield document


def _unique(name: str, index: int, seen: dict[str, int], field: str) -> str:
    _check_text(name, field, f"id {name!r}")
    if seen.get(name, index) != index:
        name = f"{name}@{index}"
    if name in seen:
        raise SpecError(
            field,
            f"document id {name!r} occurs twice",
            "Make ids unique, or rename the field `id` to have rows numbered",
        )
    seen[name] = index
    return name


def _content(record: Mapping[str, Any], format: Format, field: str, name: str) -> Content:
    match format:
        case PlainText() | LabelledText():
            return _text(record, format.field, field, name)
        case Features():
            return features_of(record, format, field, name)
        case Completion():
            return (
                _text(record, format.prompt, field, name),
                _text(record, format.completion, field, name),
            )
        case Messages():
            return _messages(record, format.field, field, name)
        case Interactions():
            raise TypeError("interactions are read together, by user")


def _text(record: Mapping[str, Any], column: str, field: str, name: str) -> str:
    value = record[column]
    where = f"document {name!r}, column {column!r}"
    if not isinstance(value, str):
        raise SpecError(
            field,
            f"{where}: {type(value).__name__}, not a string",
            "Drop or repair such records, or name another column in the format",
        )
    _check_text(value, field, where)
    return value


def _check_text(value: str, field: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SpecError(
            field,
            f"{where}: half of a surrogate pair at character {error.start}, which is no text",
            "Repair the record",
        ) from error


def _messages(record: Mapping[str, Any], column: str, field: str, name: str) -> Content:
    value = record[column]
    where = f"document {name!r}, column {column!r}"
    if not isinstance(value, list) or not value:
        raise SpecError(
            field,
            f"{where}: {type(value).__name__} without messages",
            'Give a list of {"role": ..., "content": ...}',
        )
    messages = []
    for index, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise SpecError(
                field,
                f"{where}, message {index} has no role",
                'Give a list of {"role": ..., "content": ...}',
            )
        # Columnar files fill absent keys with None, and templates would print it.
        kept = {key: item for key, item in message.items() if item is not None}
        for key, item in kept.items():
            if isinstance(item, str):
                _check_text(item, field, f"{where}, message {index}, {key!r}")
        messages.append(kept)
    return messages
