"""How a classified sample's words become a model's inputs, for student and served roles alike.

A word is 32 bits: a token id of a text, a float32 of features, or the number of a user or item. So
whatever stores, sends or hashes a sample knows one kind only, and here alone the words are told
apart. A text whose embeddings were moved is -T, its T ids, and T * d float32: what is added to what
embeds them; no id is below 0, so no other text begins so. Numpy only.

Shape letters: R rows (samples), n words of a sample, T tokens of a text, d width of its embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.interactions import trained_of
from orchestrator.spec.data import DataSpec, Features

TEXT = "text"
"""Label of a reading whose words are token ids."""
OFFSET = "embedding_offset"
"""Input of a text's classifier: what is added to its embedded tokens; absent where none moved."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a classifier is given of a sample."""

    input: str | None = None
    """Argument of the model that takes features; None: the words are a text's token ids."""
    shape: tuple[int, ...] | None = None
    """Of one sample's features; None: all in a row."""
    ranks_items: bool = False
    """The words are a user's, with the items; both other fields are None."""

    @property
    def label(self) -> str:
        """The same for readings that give a model the same."""
        if self.ranks_items:
            return "interactions"
        if self.input is None:
            return TEXT
        return f"{self.input}[{','.join(map(str, self.shape or ()))}]"

    @property
    def probe(self) -> np.ndarray | None:
        """Words of a sample to try a model on; None: nobody says how many numbers one has."""
        if self.ranks_items:
            return np.array([0, 1, 0], np.int32)
        if self.input is not None and self.shape is None:
            return None
        return np.arange(3 if self.shape is None else int(np.prod(self.shape)), dtype=np.int32) % 2


def reading_of(spec: DataSpec) -> Reading | None:
    """How a classifier reads a job's samples; None for causal models."""
    if spec.task == "causal_lm":
        return None
    first = spec.formats[0]
    if spec.ranks_items:
        return Reading(ranks_items=True)
    if not isinstance(first, Features):
        return Reading()
    return Reading(first.input_name, None if first.shape is None else tuple(first.shape))


def inputs_of(
    reading: Reading, samples: Sequence[np.ndarray], words: int = 1
) -> dict[str, np.ndarray]:
    """A classifier's inputs by name, a row a sample.

    Args:
        reading: of the samples.
        samples: [n] int32 each; one without words is an empty row.
        words: n of features, which is the same for all.

    Returns:
        Text: `input_ids` and `attention_mask`, int64 [R, longest], padded on the right, and where
        one of them was moved `OFFSET`, float32 [R, longest, d], zeros where nothing is. An empty
        row attends to its first padding: attention over nothing is no number. Features: float32
        [R, *shape], zeros in empty rows. Users: `users` int64 [R], and `items` int64 [R, most],
        those each is trained on, rising and -1 past their end; an empty row is user 0 without any.

    Raises:
        ValueError: a sample has another number of words than the others, or than the shape.
    """
    if reading.ranks_items:
        return _users(samples)
    if reading.input is None:
        return _text(samples)
    shape = (words,) if reading.shape is None else reading.shape
    lengths = {len(sample) for sample in samples if len(sample)}
    if not lengths <= {words} or int(np.prod(shape)) != words:
        raise ValueError(
            f"samples of {sorted(lengths)} numbers do not make a {reading.input} of shape "
            f"{list(shape)}; ask about samples of the data that the role was started for"
        )
    rows = np.zeros((len(samples), words), np.int32)
    for row, sample in zip(rows, samples, strict=True):
        row[: len(sample)] = sample
    return {reading.input: rows.view(np.float32).reshape(len(samples), *shape)}


def _users(samples: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    users = np.array([sample[0] if len(sample) else 0 for sample in samples], np.int64)
    trained = [trained_of(sample) for sample in samples]
    items = np.full((len(samples), max([1, *map(len, trained)])), -1, np.int64)
    for row, own in zip(items, trained, strict=True):
        row[: len(own)] = own
    return {"users": users, "items": items}


def moved_text(ids: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """[1 + T + T * d] int32: the words of a text whose embeddings were moved.

    Args:
        ids: [T] int32, T > 0.
        offset: [T, d] float32, in the width of whose words they shall be.
    """
    floats = np.ascontiguousarray(offset, np.float32).view(np.int32).ravel()
    return np.concatenate([np.array([-len(ids)], np.int32), ids, floats])


def parts_of_text(sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[T] int32 ids, and the words behind them: nothing unless the text was moved."""
    if not len(sample) or sample[0] >= 0:
        return sample, sample[:0]
    end = 1 - int(sample[0])
    return sample[1:end], sample[end:]


def text_tokens(words: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[S] int64: tokens of each of S texts that lie end to end, moved or not.

    Args:
        words: [M] int32.
        lengths: [S] words of each.
    """
    tokens = lengths.astype(np.int64)
    held = np.flatnonzero(lengths)
    first = words[(np.cumsum(tokens) - tokens)[held]]
    tokens[held] = np.where(first < 0, -first.astype(np.int64), tokens[held])
    return tokens


def _text(samples: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    parts = [parts_of_text(sample) for sample in samples]
    shape = (len(samples), max([1, *(len(own) for own, _ in parts)]))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, (own, _) in enumerate(parts):
        ids[row, : len(own)] = own
        mask[row, : max(1, len(own))] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    widths = {len(behind) / len(own) for own, behind in parts if len(behind)}
    if not widths:
        return inputs
    width = int(min(widths))
    if widths != {width}:
        raise ValueError(
            f"moved texts have {sorted(widths)} numbers a token, and one model embeds all of them"
        )
    offset = np.zeros((*shape, width), np.float32)
    for row, (own, behind) in enumerate(parts):
        if len(behind):
            offset[row, : len(own)] = behind.view(np.float32).reshape(len(own), width)
    return {**inputs, OFFSET: offset}
