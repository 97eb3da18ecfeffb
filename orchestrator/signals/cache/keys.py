"""The key of a cached record: a hash of all that its content depends on. Numpy only.

A key is BLAKE2b over a versioned, unambiguous encoding of: the wire protocol, the role's
fingerprint, the ask with all its fields, the sample's tokens and their number, and where the range
of positions begins. Whatever row or batch a sample shared does not enter, and neither do the
positions that were wanted: the record says which it holds.

Shape letters: S samples, M tokens of all samples end to end.
"""

import hashlib
import struct
from collections.abc import Iterator

import numpy as np

from orchestrator.signals.records import PROTOCOL, SignalAsk

from .ask_json import ask_json

RANGE = 4096
"""Positions that one record covers; a longer sample has several records."""

KEY_BYTES = 16
_ENCODING = b"stillhouse signal key 1\n"  # raise it when the encoding below changes


def record_key(fingerprint: str, tokens: np.ndarray, ask: SignalAsk, start: int) -> bytes:
    """The key of one range of one sample, 16 bytes.

    Args:
        fingerprint: of the role.
        tokens: [n] int32, the whole sample.
        start: first position of the range, a multiple of RANGE below n.

    Raises:
        ValueError: the tokens are not int32, or no range of the sample starts there.
    """
    if start % RANGE or not 0 <= start < len(tokens):
        raise ValueError(
            f"start is {start}, and a sample of {len(tokens)} tokens has ranges at multiples of "
            f"{RANGE} below its length"
        )
    (sample,) = _hashed(_prefix(fingerprint, ask), tokens, np.array([len(tokens)]))
    return _at(sample, start)


def record_keys(
    fingerprint: str, tokens: np.ndarray, lengths: np.ndarray, ask: SignalAsk
) -> list[tuple[int, int, bytes]]:
    """(sample index, start, key) of every range of every sample, in order.

    Args:
        fingerprint: of the role.
        tokens: [M] int32, samples end to end.
        lengths: [S] integers, tokens of each sample; one without tokens has no range.

    Raises:
        ValueError: the tokens are not int32, or the lengths do not add up to M.
    """
    samples = _hashed(_prefix(fingerprint, ask), tokens, lengths)
    return [
        (index, start, _at(sample, start))
        for index, (sample, length) in enumerate(zip(samples, lengths.tolist(), strict=True))
        for start in range(0, length, RANGE)
    ]


def _prefix(fingerprint: str, ask: SignalAsk) -> "hashlib.blake2b":
    texts = [fingerprint.encode(), ask_json(ask).encode()]
    sizes = struct.pack("<3q", PROTOCOL, *map(len, texts))
    return hashlib.blake2b(_ENCODING + sizes + b"".join(texts), digest_size=KEY_BYTES)


def _hashed(
    prefix: "hashlib.blake2b", tokens: np.ndarray, lengths: np.ndarray
) -> Iterator["hashlib.blake2b"]:
    """The hash state of each sample, to which only the range's start is to be added."""
    if tokens.dtype != np.int32 or tokens.ndim != 1:
        raise ValueError(f"tokens are {tokens.dtype} {list(tokens.shape)}, int32 [M] is needed")
    if int(lengths.sum()) != len(tokens):
        raise ValueError(f"lengths add up to {int(lengths.sum())}, and tokens are {len(tokens)}")
    content = np.ascontiguousarray(tokens, "<i4").view(np.uint8)
    end = 0
    for length in lengths.tolist():
        begin, end = end, end + length
        sample = prefix.copy()
        sample.update(struct.pack("<q", length))
        sample.update(content[begin * 4 : end * 4].data)
        yield sample


def _at(sample: "hashlib.blake2b", start: int) -> bytes:
    ranged = sample.copy()
    ranged.update(struct.pack("<q", start))
    return ranged.digest()
