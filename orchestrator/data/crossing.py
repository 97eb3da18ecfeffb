"""The same text in the tokens of a role whose tokenizer is another one, and which positions pair.

A position has read the text up to some character; it is known where that is unless it lies within
a character. Two positions pair if they have read the same: whatever either predicts then goes on
from one text. Pure but for the tokenizers; imports neither torch nor ray.

Promises: a pair has read the same characters; each position is in one pair at most; pairs come in
the order of both; equal tokenizers pair every position but those within a character.

Shape letters: n tokens of a sample in the job's tokenizer, m in the role's, N loss-bearing ones.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .pack import Row
from .store import SampleStore
from .tokenizer import TextTokenizer, load_tokenizer

WITHIN = -1
"""How far a position has read that ends within a character."""
SAMPLES_KEPT = 1024
"""Samples whose pairs stay in memory: a batch is asked and then narrowed."""
_HALF = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Crossing:
    """A role with a tokenizer of its own."""

    folder: str  # of its tokenizer
    positions: int | None = None  # that its model reads; None: any number


@dataclass(frozen=True, slots=True)
class Paired:
    """One sample, as the role reads it."""

    tokens: np.ndarray  # [m] int32, the role's
    wanted: np.ndarray  # [m] bool: positions in a pair
    kept: np.ndarray  # [N] bool: of the loss-bearing positions, those in a pair


class CrossedStore:
    """The samples of a store in a role's own tokens. Their indexes and ids stay."""

    def __init__(
        self, store: SampleStore, ours: TextTokenizer, theirs: TextTokenizer, limit: int | None
    ) -> None:
        """`limit` is how many positions the role reads; what is beyond has no partner."""
        self.store = store
        self._ours, self._theirs, self._limit = ours, theirs, limit
        self._known: OrderedDict[int, Paired] = OrderedDict()

    @classmethod
    def open(cls, store: SampleStore, tokenizer_folder: str, crossing: Crossing) -> "CrossedStore":
        """The same with the tokenizers of two folders: the job's, and the role's."""
        theirs = load_tokenizer(crossing.folder)
        return cls(store, load_tokenizer(tokenizer_folder), theirs, crossing.positions)

    def __len__(self) -> int:
        return len(self.store)

    def tokens(self, index: int) -> np.ndarray:
        """[m] int32."""
        return self.paired(index).tokens

    def wanted(self, index: int) -> np.ndarray:
        """[m] bool: positions in a pair, as many as are kept of the store's own."""
        return self.paired(index).wanted

    @cached_property
    def lengths(self) -> np.ndarray:
        """[S] int32: tokens of each sample. Reads them all."""
        return np.array([len(self.tokens(i)) for i in range(len(self))], np.int32)

    def kept(self, rows: Sequence[Row]) -> np.ndarray:
        """[N] bool of the loss-bearing positions of some rows, in their order."""
        parts = [self.paired(sample).kept for row in rows for sample in row]
        return np.concatenate([np.zeros(0, bool), *parts])

    def paired(self, index: int) -> Paired:
        """One sample's tokens and pairs."""
        if index not in self._known:
            self._known[index] = self._pair(index)
            if len(self._known) > SAMPLES_KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(index)
        return self._known[index]

    def _pair(self, index: int) -> Paired:
        text, ours = read_tokens(self._ours, self.store.tokens(index))
        tokens, theirs = read_text(self._theirs, text)
        bearing = np.flatnonzero(self.store.wanted(index))
        mine, partners = pairs(ours[bearing], theirs[: self._limit])
        wanted = np.zeros(len(theirs[: self._limit]), bool)
        wanted[partners] = True
        kept = np.zeros(len(bearing), bool)
        kept[mine] = True
        return Paired(tokens[: self._limit], wanted, kept)


Samples = SampleStore | CrossedStore
"""What a role is asked about: the job's samples, or the same in the role's own tokens."""


def pairs(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions that have read the same text.

    Of several that have read the same, as before and after a special token, the last one counts.

    Args:
        ours, theirs: [n] and [m] int64: characters that each position has read, or WITHIN.

    Returns:
        Indexes into either, [p] int64 each, both rising.
    """
    mine, partners = _last_of_each(ours), _last_of_each(theirs)
    _, left, right = np.intersect1d(
        ours[mine], theirs[partners], assume_unique=True, return_indices=True
    )
    return mine[left], partners[right]


def read_text(tokenizer: TextTokenizer, text: str) -> tuple[np.ndarray, np.ndarray]:
    """A text's tokens, after what the tokenizer puts before it, and how far each has read.

    Returns:
        [m] int32 ids; [m] int64 characters, or WITHIN. The last one has read the whole text.
    """
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    ids = np.array([*tokenizer.before, *encoding.ids], np.int32)
    begins = _begins(encoding.offsets)
    read = [begins[0] if len(begins) else len(text)] * len(tokenizer.before)
    read += [*begins[1:], len(text)] if len(begins) else []
    return ids, np.array(read, np.int64)


def read_tokens(tokenizer: TextTokenizer, ids: np.ndarray) -> tuple[str, np.ndarray]:
    """The text of a sample's tokens without the special ones, and how far each has read.

    Returns:
        The text; [n] int64 characters, or WITHIN.
    """
    backend = tokenizer.backend
    plain = ~np.isin(ids, _specials(backend))
    own = ids[plain].tolist()
    text = backend.decode(own, skip_special_tokens=False)
    again = backend.encode(text, add_special_tokens=False)
    if again.ids == own:
        begins = _begins(again.offsets)
    else:  # a piece cut within a word or a character, or text around special tokens
        text, begins = _decoded_begins(backend, own)
    # A position has read up to where the next token of the text begins.
    following = np.append(begins, len(text)).astype(np.int64)
    return text, following[np.cumsum(plain)]


def _begins(offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Where each token begins; WITHIN where the token before it holds a part of that character."""
    begins, end = [], 0
    for start, stop in offsets:
        begins.append(start if start >= end else WITHIN)
        end = max(end, stop)
    return begins


def _decoded_begins(backend: Any, ids: Sequence[int]) -> tuple[str, list[int]]:
    """The same for tokens that their own text would not become: decoded one after the other.

    A few tokens before are decoded along, because some decoders treat the first one otherwise.
    """

    def decoded(begin: int, end: int) -> str:
        return backend.decode(list(ids[begin:end]), skip_special_tokens=False)

    text, begins = "", [WITHIN] * len(ids)
    anchor = done = 0  # tokens that are decoded along; tokens whose text is known
    for end in range(1, len(ids) + 1):
        before, whole = decoded(anchor, done), decoded(anchor, end)
        last = end == len(ids)
        if not whole.startswith(before) or (whole.endswith(_HALF) and not last):
            continue  # within a character
        begins[done] = len(text)
        text += whole[len(before) :]
        anchor, done = done, end
    return text, begins


def _last_of_each(read: np.ndarray) -> np.ndarray:
    """[p] int64 rising: of known positions, the last of those that have read equally far."""
    known = np.flatnonzero(read != WITHIN)
    ends = np.append(read[known][1:] != read[known][:-1], True)[: len(known)]
    return known[ends]


def _specials(backend: Any) -> list[int]:
    tokens = backend.get_added_tokens_decoder()
    return [number for number, token in tokens.items() if token.special]
