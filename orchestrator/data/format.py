"""Documents -> token ids, and which of them are to be learned; features -> their bits.

Promises: the first token of a document is never learned (nothing predicts it); an end token
closes a text or completion where the tokenizer has one. Shape letter: n tokens of a document.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from orchestrator.errors import SpecError
from orchestrator.spec.data import (
    Completion,
    Features,
    Format,
    Interactions,
    LabelledText,
    Messages,
    PlainText,
)

from .chat import Span, render
from .read import Document
from .tokenizer import Chat, TextTokenizer


@dataclass(frozen=True, slots=True)
class Encoded:
    """One document's tokens. `loss_mask[0]` is False."""

    tokens: np.ndarray  # [n] int32
    loss_mask: np.ndarray  # [n] bool: true on tokens that are to be learned
    closing: int = 0  # tokens at the end of a classifier's text that are not the text's own


def encode(
    tokenizer: TextTokenizer | None, documents: Sequence[Document], format: Format
) -> list[Encoded]:
    """Encode documents of one format, in one batch; `tokenizer` is None for features
    and users.

    Raises:
        SpecError: a chat template is missing, or refuses a document.
    """
    if isinstance(format, Features):
        return [_features(cast(np.ndarray, d.content)) for d in documents]
    if isinstance(format, Interactions):
        return [_user(cast(np.ndarray, d.content)) for d in documents]
    assert tokenizer is not None  # the job's validators: every other format reads text
    match format:
        case LabelledText():
            return _labelled(tokenizer, [cast(str, d.content) for d in documents])
        case PlainText():
            return _texts(tokenizer, [cast(str, d.content) for d in documents])
        case Completion():
            return _completions(tokenizer, [cast(tuple[str, str], d.content) for d in documents])
        case Messages():
            return _chats(tokenizer, documents)


def required_chat(tokenizer: TextTokenizer) -> Chat:
    """The tokenizer's chat template.

    Raises:
        SpecError: it has none.
    """
    if tokenizer.chat is None:
        raise SpecError(
            "data.sources.*.format",
            "messages need a chat template, and the job's tokenizer has none",
            "Use the tokenizer of a chat model, or format `completion` or `text`",
        )
    return tokenizer.chat


def _encoded(ids: Sequence[int], mask: Any) -> Encoded:
    loss_mask = np.array(mask, dtype=bool)
    loss_mask[:1] = False
    return Encoded(np.array(ids, dtype=np.int32), loss_mask)


def _texts(tokenizer: TextTokenizer, texts: list[str]) -> list[Encoded]:
    encodings = tokenizer.backend.encode_batch_fast(texts)
    result = []
    for text, encoding in zip(texts, encodings, strict=True):
        ids = [*tokenizer.before, *encoding.ids, *_end(tokenizer, encoding.ids)] if text else []
        result.append(_encoded(ids, [True] * len(ids)))
    return result


def _labelled(tokenizer: TextTokenizer, texts: list[str]) -> list[Encoded]:
    result = []
    for encoding in tokenizer.backend.encode_batch_fast(texts):
        closing = _end(tokenizer, encoding.ids)
        ids = np.array([*tokenizer.before, *encoding.ids, *closing], np.int32)
        result.append(Encoded(ids, np.zeros(len(ids), bool), len(closing)))
    return result


def _features(numbers: np.ndarray) -> Encoded:
    return Encoded(numbers.astype(np.float32).view(np.int32), np.zeros(len(numbers), bool))


def _user(words: np.ndarray) -> Encoded:
    return Encoded(words, np.zeros(len(words), bool))


def _completions(tokenizer: TextTokenizer, contents: list[tuple[str, str]]) -> list[Encoded]:
    wholes = tokenizer.backend.encode_batch([prompt + answer for prompt, answer in contents])
    result = []
    for (prompt, answer), whole in zip(contents, wholes, strict=True):
        border = len(prompt)
        known = [i for i, (_, end) in zip(whole.ids, whole.offsets, strict=True) if end <= border]
        learned = whole.ids[len(known) :]
        if any(start < border < end for start, end in whole.offsets):
            # A token crosses the border; at inference the prompt is tokenised alone.
            known, learned = (
                encoding.ids for encoding in tokenizer.backend.encode_batch_fast([prompt, answer])
            )
        known, learned = [*tokenizer.before, *known], [*learned, *_end(tokenizer, learned)]
        result.append(_encoded([*known, *learned], [False] * len(known) + [True] * len(learned)))
    return result


def _chats(tokenizer: TextTokenizer, documents: Sequence[Document]) -> list[Encoded]:
    chat = required_chat(tokenizer)
    rendered = [
        render(
            chat,
            cast(list[dict[str, Any]], document.content),
            f"data.sources.{document.source}, document {document.id!r}",
        )
        for document in documents
    ]
    encodings = tokenizer.backend.encode_batch([text for text, _ in rendered])
    return [
        _encoded(encoding.ids, _covered(encoding.offsets, spans))
        for encoding, (_, spans) in zip(encodings, rendered, strict=True)
    ]


def _covered(offsets: Sequence[Span], spans: Sequence[Span]) -> np.ndarray:
    """[n] bool: tokens with at least one character in a span."""
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    mask = np.zeros(len(offsets), dtype=bool)
    for begin, end in spans:
        mask |= (starts < end) & (ends > begin)
    return mask


def _end(tokenizer: TextTokenizer, ids: list[int]) -> list[int]:
    """What follows a text's own ids: what the tokenizer adds, closed by one end token."""
    after = list(tokenizer.after)
    closed = tokenizer.end is None or [*ids, *after][-1:] == [tokenizer.end]
    return after if closed else [*after, cast(int, tokenizer.end)]
