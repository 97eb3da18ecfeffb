"""A record's arrays as bytes, and the checksum that tells whether they are what was put.

Payload: the arrays in the order of the layout, row-major and little-endian, each beginning at a
multiple of 64 bytes, the gaps and the end filled with zeros to such a multiple. Layout: a JSON list
of [name, dtype, trailing shape], dtype as numpy writes it ("<f2"). The number of rows is that of
the positions.
"""

import json
import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import xxhash

from .ask_json import ask_from_json, ask_json
from .records import CacheRecord, Place, check_record

ALIGN = 64


class Column(NamedTuple):
    """One array of a layout."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]  # without the rows
    row_bytes: int


def layout_text(arrays: Mapping[str, np.ndarray]) -> str:
    """The layout of arrays, as JSON."""
    return _layout_text(*((name, a.dtype, a.shape[1:]) for name, a in arrays.items()))


@lru_cache(maxsize=1024)
def _layout_text(*columns: tuple[str, np.dtype, tuple[int, ...]]) -> str:
    plain = [[name, dtype.newbyteorder("<").str, shape] for name, dtype, shape in columns]
    return json.dumps(plain, separators=(",", ":"))


@lru_cache(maxsize=1024)
def layout_of(text: str) -> tuple[Column, ...]:
    """The columns of a layout.

    Raises:
        ValueError: it is not a layout.
    """
    try:
        columns = [
            (str(name), np.dtype(kind), tuple(shape)) for name, kind, shape in json.loads(text)
        ]
    except (TypeError, SyntaxError) as error:
        raise ValueError(f"{text} is not a layout") from error
    for _, dtype, shape in columns:
        if dtype.kind not in "biuf" or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"{text} is not a layout of numbers")
    return tuple(Column(*each, each[1].itemsize * math.prod(each[2])) for each in columns)


def payload_bytes(columns: tuple[Column, ...], rows: int) -> int:
    """Bytes of the payload."""
    return sum(aligned(column.row_bytes * rows) for column in columns)


def aligned(count: int) -> int:
    """The next multiple of ALIGN."""
    return -(-count // ALIGN) * ALIGN


def pack(columns: tuple[Column, ...], arrays: Mapping[str, np.ndarray], into: np.ndarray) -> None:
    """Write arrays into a buffer of `payload_bytes`, [bytes] uint8."""
    begin = 0
    for column in columns:
        array = arrays[column.name]
        end = begin + column.row_bytes * len(array)
        view = into[begin:end].view(column.dtype)
        view.reshape(array.shape)[...] = array
        begin = aligned(end)
        into[end:begin] = 0


def unpack(
    columns: tuple[Column, ...], rows: int, payload: bytes | memoryview
) -> dict[str, np.ndarray]:
    """Arrays that are views of the payload, read-only as it is."""
    arrays: dict[str, np.ndarray] = {}
    begin = 0
    for name, dtype, shape, row_bytes in columns:
        size = row_bytes * rows
        # numpy takes no empty view at the very end of a buffer
        buffer = payload if size else None
        arrays[name] = np.ndarray((rows, *shape), dtype, buffer, begin if size else 0)
        begin += aligned(size)
    return arrays


def bitmap_of(positions: np.ndarray, start: int) -> bytes:
    """[n] int32 rising -> a bit for each position of the range, without zero bytes at the end."""
    first, count = int(positions[0]) - start, len(positions)
    end = int(positions[-1]) - start + 1
    if end - first == count:  # without gaps, as most are
        return (((1 << count) - 1) << first).to_bytes(-(-end // 8), "little")
    mask = np.zeros(end, bool)
    mask[positions - start] = True
    return np.packbits(mask, bitorder="little").tobytes()


def positions_of(bitmap: bytes, start: int) -> np.ndarray:
    """[n] int32 rising."""
    bits = int.from_bytes(bitmap, "little")
    if bits & (bits + 1) == 0:  # without gaps, as most are
        return np.arange(start, start + bits.bit_length(), dtype=np.int32)
    mask = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little").view(bool)
    positions = mask.nonzero()[0].astype(np.int32)
    positions += np.int32(start)
    return positions


def holds(bitmap: bytes, other: bytes) -> bool:
    """Whether the first has every position of the second."""
    return int.from_bytes(other, "little") & ~int.from_bytes(bitmap, "little") == 0


def checksum(key: bytes, place: Place, payload: bytes | memoryview) -> bytes:
    """XXH3-128 over the key, everything of the place but where it is, and the payload.

    The payload and the texts are hashed first and their digests taken in.
    """
    head = struct.pack("<iiq", place.tokens, place.start, place.length)
    texts = _texts_digest(place.fingerprint, place.ask, place.layout)
    content = xxhash.xxh3_128_digest(payload)
    return xxhash.xxh3_128_digest(b"".join((key, head, texts, content, place.positions)))


@lru_cache(maxsize=1024)
def _texts_digest(*texts: str) -> bytes:
    encoded = [text.encode() for text in texts]
    sizes = struct.pack(f"<{len(encoded)}q", *map(len, encoded))
    return xxhash.xxh3_128_digest(sizes + b"".join(encoded))


def decode(key: bytes, place: Place, payload: bytes | memoryview) -> CacheRecord | None:
    """The record, its arrays being views of the payload; None where the checksum is another."""
    if checksum(key, place, payload) != place.checksum:
        return None
    return unchecked(key, place, payload)


def unchecked(key: bytes, place: Place, payload: bytes | memoryview) -> CacheRecord:
    """The record of a payload that this process has just written or checked."""
    positions = positions_of(place.positions, place.start)
    arrays = unpack(layout_of(place.layout), len(positions), payload)
    return CacheRecord(
        key, place.fingerprint, ask_from_json(place.ask), place.tokens, positions, arrays
    )


def place_of(record: CacheRecord) -> Place:
    """A place without segment, offset and checksum: all that is known before the bytes are.

    Raises:
        ValueError: the record could not be read back as it is; names the field.
    """
    check_record(record)
    layout, start = layout_text(record.arrays), record.start
    length = payload_bytes(layout_of(layout), len(record.positions))
    positions = bitmap_of(record.positions, start)
    texts = (record.fingerprint, ask_json(record.ask), layout)
    return Place("", -1, length, positions, start, record.length, *texts, b"")
