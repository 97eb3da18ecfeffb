"""Uniform numbers that depend on what they are for and on nothing else. Numpy only.

A counter-based generator: each number is a hash of (seed, sample, position), so a position's draws
are the same whatever shares its request, on any machine and in any order.

Source:
    Steele, Lea, Flood. "Fast splittable pseudorandom number generators." OOPSLA 2014: SplitMix64.
"""

import hashlib

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def token_hash(tokens: np.ndarray) -> int:
    """64 bits of a sample's token ids, [n] of any integer type."""
    data = np.ascontiguousarray(tokens, dtype="<i4").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def uniforms(seed: int, samples: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[N] float64 in [0, 1).

    Args:
        seed: any integer; taken modulo 2**64.
        samples: [N] uint64, `token_hash` of each position's sample.
        positions: [N] integers, the position in the sample.
    """
    state = _mixed(samples.astype(np.uint64) ^ _mixed_seed(seed))
    state = _mixed(state + (positions.astype(np.uint64) + np.uint64(1)) * _GAMMA)
    return (state >> np.uint64(11)) * 2.0**-53


def signs(seed: int, rows: int, columns: int) -> np.ndarray:
    """[rows, columns] float32 of -1 and 1, fair coins."""
    counters = np.arange(1, rows * columns + 1, dtype=np.uint64) * _GAMMA
    coins = _mixed(counters + _mixed_seed(seed)) >> np.uint64(63)
    return (2.0 * coins.reshape(rows, columns) - 1.0).astype(np.float32)


def _mixed_seed(seed: int) -> np.uint64:
    return _mixed(np.array([seed % (1 << 64)], np.uint64) + _GAMMA)[0]


def _mixed(state: np.ndarray) -> np.ndarray:
    """SplitMix64's output function; uint64 arithmetic wraps."""
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
