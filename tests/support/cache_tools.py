"""Small signal-cache records, and a way to read what a store gives."""

from pathlib import Path

import numpy as np

from orchestrator.signals.cache.keys import RANGE, record_key
from orchestrator.signals.cache.reader import Reader
from orchestrator.signals.cache.records import CacheRecord, Place, RoleCard
from orchestrator.signals.cache.store import Store
from orchestrator.signals.records import HeadRecord, RoleDescription, SignalAsk, TopKAsk

ASK = TopKAsk(4, "float16", (1.0, 2.0))
LARGE = 1 << 40


def record(
    sample: int,
    positions: list[int] | None = None,
    fingerprint: str = "teacher-a",
    ask: SignalAsk = ASK,
    width: int = 8,
    seed: int = 0,
) -> CacheRecord:
    """A record whose key and arrays depend on its arguments alone; positions are of one range."""
    where = np.array([0, 2, 3, 9] if positions is None else positions, np.int32)
    start = int(where[0]) // RANGE * RANGE
    length = max(10, int(where[-1]) + 1)
    tokens = np.full(length, sample, np.int32)
    rng = np.random.default_rng([sample, seed, *where.tolist()])
    arrays = {
        "ids": rng.integers(0, 255, (len(where), width)).astype(np.uint8),
        "logprobs": rng.standard_normal((len(where), 4)).astype(np.float16),
        "entropy": rng.standard_normal(len(where)).astype(np.float32),
    }
    key = record_key(fingerprint, tokens, ask, start)
    return CacheRecord(key, fingerprint, ask, length, where, arrays)


def same(one: CacheRecord, other: CacheRecord) -> bool:
    """Whether two records are equal in every field, bit for bit, dtypes and order included."""
    fields = ("key", "fingerprint", "ask", "length")
    return (
        all(getattr(one, name) == getattr(other, name) for name in fields)
        and one.positions.dtype == other.positions.dtype
        and one.positions.tobytes() == other.positions.tobytes()
        and list(one.arrays) == list(other.arrays)
        and all(
            a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
            for a, b in zip(one.arrays.values(), other.arrays.values(), strict=True)
        )
    )


def fetched(store: Store, reader: Reader, key: bytes) -> CacheRecord | None:
    """What a client gets for a key."""
    (found,) = store.find([key])
    return reader.read(key, found) if isinstance(found, Place) else found


def place(store: Store, key: bytes) -> Place:
    """Where a published record lies."""
    (found,) = store.find([key])
    assert isinstance(found, Place), found
    return found


def segments(path: Path) -> list[Path]:
    """Segment files, oldest first."""
    return sorted((path / "segments").glob("*.arrow"))


def flip(file: Path, offset: int, mask: int = 1) -> None:
    """Change one byte of a file in place."""
    with file.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ mask]))


def card(fingerprint: str, head: bool = True) -> RoleCard:
    """A small role card."""
    weight = np.arange(12, dtype=np.uint16).reshape(4, 3)
    bias = np.arange(4, dtype=np.float32)
    return RoleCard(
        RoleDescription("teacher", fingerprint, 4, 3, 99),
        HeadRecord("teacher", fingerprint, weight, bias, 0.1, 30.0, True) if head else None,
    )
