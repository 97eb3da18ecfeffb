"""Documents -> samples that fit the context, in batches, in one process or several.

Promises: samples come in the order of their documents, whatever the number of processes; at most
a few batches are in memory. Shape letter: n tokens of a sample.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import get_context
from typing import Literal

import numpy as np

from orchestrator.spec.data import Format

from .format import Encoded, encode
from .read import Document
from .tokenizer import TextTokenizer, load_tokenizer

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 1 << 21


@dataclass(frozen=True, slots=True)
class Sample:
    """A document or piece of one. `loss_mask[0]` is False: nothing in the sample predicts it.

    A classified sample has a label, and no token to learn.
    """

    id: str
    tokens: np.ndarray  # [n] int32: ids, or the bits of float32 features
    loss_mask: np.ndarray  # [n] bool
    label: int = -1  # the class; -1: none, as in text to be continued

    @property
    def wanted(self) -> np.ndarray:
        """[n] bool: positions that bear loss."""
        return wanted_positions(self.loss_mask, self.label)


def wanted_positions(loss_mask: np.ndarray, label: int) -> np.ndarray:
    """[n] bool: before each token that is to be learned; the last of a classified sample."""
    wanted = np.empty(len(loss_mask), bool)
    wanted[:-1] = loss_mask[1:]
    wanted[-1:] = label >= 0
    return wanted


def encoded_documents(
    documents: Iterable[Document],
    formats: Sequence[Format],
    tokenizer: TextTokenizer | None,
    tokenizer_folder: str | None,
    workers: int,
) -> Iterator[tuple[Document, Encoded]]:
    """Every document with its tokens, in order.

    Args:
        formats: one per source of the job.
        tokenizer: None for features.
        workers: processes; 1 means this one.
    """
    batches = _batches(documents)
    if workers == 1 or tokenizer_folder is None:
        for batch in batches:
            yield from zip(batch, _encode(tokenizer, formats, batch), strict=True)
        return
    # Fresh processes, because this one may hold threads (Ray, the tokenizer's) that a fork breaks.
    with ProcessPoolExecutor(
        workers, get_context("spawn"), _start_worker, (tokenizer_folder, formats)
    ) as pool:
        waiting: deque[tuple[list[Document], Future[list[Encoded]]]] = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(_work, batch)))
            if len(waiting) > 2 * workers:
                done, future = waiting.popleft()
                yield from zip(done, future.result(), strict=True)
        for done, future in waiting:
            yield from zip(done, future.result(), strict=True)


def classified(
    document: Document, encoded: Encoded, context: int | None, rule: Literal["truncate", "drop"]
) -> list[Sample]:
    """The one sample of a classifier's document, or none.

    Args:
        context: of text; None: whatever its length. What closes a text stays when it is truncated.
    """
    tokens = encoded.tokens
    if context is not None and len(tokens) > context:
        if rule == "drop":
            return []
        begun = len(tokens) - encoded.closing
        tokens = np.concatenate([tokens[: context - encoded.closing], tokens[begun:]])
    return [Sample(document.id, tokens, np.zeros(len(tokens), bool), document.label)]


def cut(
    document_id: str, encoded: Encoded, context: int, rule: Literal["split", "truncate", "drop"]
) -> list[Sample]:
    """The samples of a document: itself if it fits, else by the rule for long ones.

    Pieces of a split are `<id>#0`, `<id>#1`, ...; the first token of each bears no loss.
    """
    tokens, mask = encoded.tokens, encoded.loss_mask
    if len(tokens) <= context:
        return [Sample(document_id, tokens, mask)]
    if rule == "drop":
        return []
    if rule == "truncate":
        return [Sample(document_id, tokens[:context], mask[:context])]
    pieces = []
    for number, start in enumerate(range(0, len(tokens), context)):
        learned = mask[start : start + context].copy()
        learned[0] = False
        pieces.append(Sample(f"{document_id}#{number}", tokens[start : start + context], learned))
    return pieces


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += _characters(document)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _characters(document: Document) -> int:
    content = document.content
    if isinstance(content, np.ndarray):
        return len(content)
    if isinstance(content, list):
        return sum(len(str(message.get("content", ""))) for message in content)
    return len(content) if isinstance(content, str) else sum(map(len, content))


def _encode(
    tokenizer: TextTokenizer | None, formats: Sequence[Format], batch: list[Document]
) -> list[Encoded]:
    encoded: list[Encoded] = []
    for source, documents in groupby(batch, key=lambda document: document.source):
        encoded += encode(tokenizer, list(documents), formats[source])
    return encoded


_worker: tuple[TextTokenizer, Sequence[Format]] | None = None
"""Of a worker process: its tokenizer and the sources' formats."""


def _start_worker(tokenizer_folder: str, formats: Sequence[Format]) -> None:
    global _worker
    # The processes are the parallelism; threads of each would fight for the same cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = load_tokenizer(tokenizer_folder), formats


def _work(batch: list[Document]) -> list[Encoded]:
    assert _worker is not None
    return _encode(*_worker, batch)
