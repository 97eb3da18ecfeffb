"""Ids of a vocabulary as a string of bits a row. Numpy only.

Little-endian: id j of a row takes the bits j * b to (j + 1) * b - 1, bit i of a row is bit i % 8 of
its byte i // 8, and bits past the last id are 0. So equal ids give equal bytes.

Eight ids take b whole bytes, hence the loops over eight: each id touches at most five bytes.
"""

from collections.abc import Iterator

import numpy as np

WIDEST = 32


def pack(ids: np.ndarray, bits: int) -> np.ndarray:
    """[N, K] ids of 0 to 2**bits - 1 -> [N, ceil(K * bits / 8)] uint8.

    Raises:
        ValueError: `bits` is not 1 to 32.
    """
    _check(bits)
    rows, count = ids.shape
    groups = -(-count // 8)
    grouped = np.zeros((8, rows, groups), np.uint64)
    for j in range(8):
        column = ids[:, j::8]
        grouped[j, :, : column.shape[1]] = column
    packed = np.zeros((bits, rows, groups), np.uint8)
    for j, byte, shift in _places(bits):
        value = grouped[j]
        packed[byte] |= (
            value << np.uint64(shift) if shift >= 0 else value >> np.uint64(-shift)
        ).astype(np.uint8)
    flat = np.ascontiguousarray(packed.transpose(1, 2, 0)).reshape(rows, groups * bits)
    return np.ascontiguousarray(flat[:, : -(-count * bits // 8)])


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """[N, ceil(count * bits / 8)] uint8 -> [N, count] int64.

    Raises:
        ValueError: `bits` is not 1 to 32.
    """
    _check(bits)
    rows, groups = len(packed), -(-count // 8)
    whole = np.zeros((rows, groups * bits), np.uint8)
    whole[:, : packed.shape[1]] = packed
    by_byte = np.ascontiguousarray(whole.reshape(rows, groups, bits).transpose(2, 0, 1))
    ids = np.zeros((rows, groups, 8), np.int64)
    for j, byte, shift in _places(bits):
        value = by_byte[byte].astype(np.int64)
        ids[:, :, j] |= value >> shift if shift >= 0 else value << -shift
    ids &= (1 << bits) - 1
    return ids.reshape(rows, groups * 8)[:, :count]


def _places(bits: int) -> Iterator[tuple[int, int, int]]:
    """(id of eight, byte, left shift of the id in that byte) for every byte an id touches."""
    for j in range(8):
        first, last = j * bits // 8, ((j + 1) * bits - 1) // 8
        for byte in range(first, last + 1):
            yield j, byte, j * bits - 8 * byte


def _check(bits: int) -> None:
    if not 1 <= bits <= WIDEST:
        raise ValueError(f"ids take 1 to {WIDEST} bits, got {bits}")
