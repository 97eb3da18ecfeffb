"""Documents -> token ids, and which of them are to be learned.

Promises: the first token of a document is never learned (nothing predicts it); an end token
closes a text or completion where the tokenizer has one. Shape letter: n tokens of a document.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from orchestrator.spec.data import Completion, Format, Messages, PlainText

from .chat import Span, chat_of, render
from .read import Document


@dataclass(frozen=True, slots=True)
class Encoded:
    """One document's tokens. `loss_mask[0]` is False."""

    tokens: np.ndarray  # [n] int32
    loss_mask: np.ndarray  # [n] bool: true on tokens that are to be learned


def encode(tokenizer: Any, documents: Sequence[Document], format: Format) -> list[Encoded]:
    """Encode documents of one format, in one batch.

    Args:
        tokenizer: from `load_tokenizer`.

    Raises:
        SpecError: a chat template is missing, or refuses a document.
    """
    match format:
        case PlainText():
            pairs = _texts(tokenizer, [cast(str, d.content) for d in documents])
        case Completion():
            pairs = _completions(tokenizer, [cast(tuple[str, str], d.content) for d in documents])
        case Messages():
            pairs = _chats(tokenizer, documents)
    return [_encoded(ids, mask) for ids, mask in pairs]


_Pair = tuple[Sequence[int], Any]


def _encoded(ids: Sequence[int], mask: Any) -> Encoded:
    loss_mask = np.array(mask, dtype=bool)
    loss_mask[:1] = False
    return Encoded(np.array(ids, dtype=np.int32), loss_mask)


def _texts(tokenizer: Any, texts: list[str]) -> list[_Pair]:
    pairs: list[_Pair] = []
    for text, encoding in zip(
        texts, tokenizer.backend_tokenizer.encode_batch_fast(texts), strict=True
    ):
        ids = _closed(tokenizer, encoding.ids) if text else []
        pairs.append((ids, np.ones(len(ids), dtype=bool)))
    return pairs


def _completions(tokenizer: Any, contents: list[tuple[str, str]]) -> list[_Pair]:
    whole = [prompt + completion for prompt, completion in contents]
    pairs: list[_Pair] = []
    encodings = tokenizer.backend_tokenizer.encode_batch(whole)
    for (prompt, completion), encoding in zip(contents, encodings, strict=True):
        border, added = len(prompt), np.array(encoding.special_tokens_mask, dtype=bool)
        ids = list(encoding.ids)
        starts, ends = extents(encoding.offsets)
        mask = (ends > border) & ~added
        if (~added & (starts < border) & (ends > border)).any():
            # A token crosses the border; at inference the prompt is tokenised alone.
            ids, mask = _apart(tokenizer, prompt, completion, ids[: int(np.argmin(added))])
        closed = _closed(tokenizer, ids)
        mask = np.concatenate([mask, np.ones(len(closed) - len(ids), dtype=bool)])
        mask[-1:] |= closed[-1:] == [tokenizer.eos_token_id]
        pairs.append((closed, mask))
    return pairs


def _apart(
    tokenizer: Any, prompt: str, completion: str, before: list[int]
) -> tuple[list[int], np.ndarray]:
    first, second = tokenizer.backend_tokenizer.encode_batch_fast(
        [prompt, completion], add_special_tokens=False
    )
    known = [*before, *first.ids]
    mask = np.array([False] * len(known) + [True] * len(second.ids), dtype=bool)
    return [*known, *second.ids], mask


def _chats(tokenizer: Any, documents: Sequence[Document]) -> list[_Pair]:
    chat = chat_of(tokenizer)
    rendered = [
        render(
            chat,
            cast(list[dict[str, Any]], document.content),
            f"data.sources.{document.source}, document {document.id!r}",
        )
        for document in documents
    ]
    encodings = tokenizer.backend_tokenizer.encode_batch(
        [text for text, _ in rendered],
        add_special_tokens=False,  # the template writes them
    )
    return [
        (encoding.ids, _covered(encoding.offsets, spans))
        for encoding, (_, spans) in zip(encodings, rendered, strict=True)
    ]


def _covered(offsets: Sequence[Span], spans: Sequence[Span]) -> np.ndarray:
    """[n] bool: tokens with at least one character in a span."""
    starts, ends = extents(offsets)
    mask = np.zeros(len(offsets), dtype=bool)
    for begin, end in spans:
        mask |= (starts < end) & (ends > begin)
    return mask


def extents(offsets: Sequence[Span]) -> tuple[np.ndarray, np.ndarray]:
    """([n], [n]) int64: the characters a token stands for, white space included.

    Byte-level tokenizers may report a token without its leading space, and a token of white space
    alone as empty; ends are right, so a token begins at the latest where the one before it ended.
    """
    array = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    ends = np.maximum.accumulate(array[:, 1])
    before = np.concatenate([np.zeros(1, dtype=np.int64), ends])[: len(ends)]
    return np.minimum(array[:, 0], before), ends


def _closed(tokenizer: Any, ids: list[int]) -> list[int]:
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]
