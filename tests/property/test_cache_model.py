"""The store against a dictionary: a read gives exactly what was put, or None, never another value.

Until something is lost on purpose (damage, eviction, a kill before publication) nothing may be.
"""

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
from cache_tools import flip, record, same, segments
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.signals.cache import codec
from orchestrator.signals.cache.guest import Guest
from orchestrator.signals.cache.keys import RANGE
from orchestrator.signals.cache.reader import Reader
from orchestrator.signals.cache.records import CacheRecord, Place
from orchestrator.signals.cache.store import Store

LOGGER = logging.getLogger("orchestrator.signals.cache")
SAMPLES = st.integers(0, 3)
ROLES = ["teacher-a", "teacher-b"]
POSITIONS = st.sampled_from([[0], [0, 2], [0, 2, 3, 9], [3, 9], [1, 5]])
SEGMENT_BYTES = 1024
LIMIT = 100_000
ANY = st.integers(0, 1 << 16)


class StoreAgainstDictionary(RuleBasedStateMachine):
    """Put, find, read, flush, evict, prune, reopen, kill, and damage the files."""

    def __init__(self) -> None:
        super().__init__()
        LOGGER.setLevel(logging.CRITICAL)  # damage is logged, by the thousand here
        self.path = Path(tempfile.mkdtemp())
        self.store = Store.open(self.path, LIMIT, SEGMENT_BYTES)
        self.reader = Reader(self.path)
        self.ever: dict[bytes, list[CacheRecord]] = {}  # all that was put, by key
        self.held: dict[bytes, CacheRecord] = {}  # what must be there
        self.doubtful: set[bytes] = set()  # keys under which something may have been damaged
        self.places: list[tuple[bytes, Place]] = []  # that readers still have

    def teardown(self) -> None:
        LOGGER.setLevel(logging.NOTSET)
        self.store.close()
        shutil.rmtree(self.path)

    @rule(sample=SAMPLES, positions=POSITIONS, role=st.sampled_from(ROLES), seed=st.integers(0, 2))
    def put(self, sample: int, positions: list[int], role: str, seed: int) -> None:
        put = record(sample, positions, role, seed=seed, width=40)
        self.ever.setdefault(put.key, []).append(put)
        there = self.held.get(put.key)
        if there is None or not set(positions) <= set(there.positions.tolist()):
            self.held[put.key] = put
        self.store.put([put])
        self.store._landed()  # so that a run can be played again; threads have a test of their own

    @rule()
    def flush(self) -> None:
        self.store.flush()

    @rule()
    def find(self) -> None:
        keys = [record(sample, fingerprint=role).key for sample in range(4) for role in ROLES]
        for key, found in zip(keys, self.store.find(keys), strict=True):
            if isinstance(found, Place):
                self.places.append((key, found))
            there, expected = self._read(key, found), self.held.get(key)
            if key not in self.doubtful:
                assert (there is None) == (expected is None)
                assert there is None or expected is None or same(there, expected)

    @rule(index=ANY)
    @precondition(lambda self: self.places)
    def read_a_place_of_earlier(self, index: int) -> None:
        self._read(*self.places[index % len(self.places)])

    @rule(limit=st.integers(0, 12_000))
    def evict(self, limit: int) -> None:
        self.store.prune_to(limit)
        self._accept_losses()

    @rule(gone=st.sampled_from(ROLES))
    def prune_a_role(self, gone: str) -> None:
        self.store.prune_role(gone)
        for key in [key for key, puts in self.ever.items() if puts[0].fingerprint == gone]:
            self.held.pop(key, None)
            self.doubtful.discard(key)
            assert self.store.find([key]) == [None]

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self._open()

    @rule()
    def delete_the_index(self) -> None:
        self.store.close()
        (self.path / "index.sqlite").unlink()
        self._open()

    @rule(size=ANY)
    def cut_the_index(self, size: int) -> None:
        self.store.close()
        file = self.path / "index.sqlite"
        os.truncate(file, size % file.stat().st_size)
        self._open()

    @rule()
    def kill(self) -> None:
        """A new process finds the files as they are this moment, and half a segment."""
        copy = Path(tempfile.mkdtemp())
        shutil.copytree(self.path, copy, dirs_exist_ok=True)
        self.store.close()
        shutil.rmtree(self.path)
        os.rename(copy, self.path)
        (self.path / "segments" / ".writing-half").write_bytes(b"ARROW1")
        self.reader.close()
        self._open()
        self._accept_losses()

    @rule(which=ANY, offset=ANY, bit=st.integers(0, 7))
    @precondition(lambda self: segments(self.path))
    def flip_a_bit_of_a_segment(self, which: int, offset: int, bit: int) -> None:
        files = segments(self.path)
        file = files[which % len(files)]
        if size := file.stat().st_size:
            flip(file, offset % size, 1 << bit)
        self.doubtful.update(self.ever)

    @rule(which=ANY, size=ANY)
    @precondition(lambda self: segments(self.path))
    def cut_a_segment(self, which: int, size: int) -> None:
        files = segments(self.path)
        file = files[which % len(files)]
        os.truncate(file, size % (file.stat().st_size + 1))
        self.doubtful.update(self.ever)

    @rule()
    def forget_all(self) -> None:
        """Readers tell of all they could not read; then what is found is sound again."""
        self.store.forget(list(self.ever))
        self._accept_losses()
        self.doubtful.clear()

    @rule()
    def a_guest_looks(self) -> None:
        """Another session finds what is published, without the writer's index."""
        self.store.flush()
        guest = Guest(self.path)
        for key, found in zip(self.ever, guest.find(list(self.ever)), strict=True):
            there, expected = self._read(key, found), self.held.get(key)
            if key not in self.doubtful and expected is not None:
                assert there is not None and same(there, expected)
        guest.close()

    def _open(self) -> None:
        self.store = Store.open(self.path, LIMIT, SEGMENT_BYTES)

    def _read(self, key: bytes, found: Place | CacheRecord | None) -> CacheRecord | None:
        """What a client gets; it was put under the key at some time."""
        there = self.reader.read(key, found) if isinstance(found, Place) else found
        assert there is None or any(same(there, each) for each in self.ever.get(key, []))
        return there

    def _accept_losses(self) -> None:
        """Records may be gone, or be again what was published before them."""
        keys = list(self.ever)
        for key, found in zip(keys, self.store.find(keys), strict=True):
            there = self._read(key, found)
            assert there is not None or found is None or key in self.doubtful
            if there is None:
                self.held.pop(key, None)
            else:
                self.held[key] = there

    @invariant()
    def the_limit_holds(self) -> None:
        assert sum(file.stat().st_size for file in segments(self.path)) <= LIMIT


TestStoreAgainstDictionary = StoreAgainstDictionary.TestCase
TestStoreAgainstDictionary.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # every example makes files
)


@given(st.lists(st.integers(0, RANGE - 1), min_size=1, max_size=60), st.integers(0, 3))
def test_a_bitmap_keeps_every_position(places: list[int], index: int) -> None:
    start = index * RANGE
    positions = np.array(sorted(set(places)), np.int32) + np.int32(start)
    bitmap = codec.bitmap_of(positions, start)
    back = codec.positions_of(bitmap, start)
    assert back.dtype == np.int32 and back.tolist() == positions.tolist()
    assert bitmap[-1] != 0


@given(
    st.sets(st.integers(0, 40), min_size=1, max_size=20),
    st.sets(st.integers(0, 40), min_size=1, max_size=4),
)
def test_a_bitmap_holds_another_if_its_positions_do(one: set[int], other: set[int]) -> None:
    def bitmap(places: set[int]) -> bytes:
        return codec.bitmap_of(np.array(sorted(places), np.int32), 0)

    assert codec.holds(bitmap(one), bitmap(other)) == (other <= one)
    assert codec.holds(bitmap(one | other), bitmap(other))


@given(st.data())
def test_packed_arrays_come_back(data: Any) -> None:
    rows = data.draw(st.integers(1, 9))
    kinds = st.sampled_from(["|u1", "<i2", "<i4", "<f2", "<f4", "<f8", "|b1"])
    shapes = st.lists(st.integers(0, 5), max_size=2)
    drawn = data.draw(st.lists(st.tuples(kinds, shapes), max_size=5))
    arrays = {
        f"a{index}": np.random.default_rng(index).integers(0, 99, (rows, *shape)).astype(kind)
        for index, (kind, shape) in enumerate(drawn)
    }
    columns = codec.layout_of(codec.layout_text(arrays))
    payload = np.full(codec.payload_bytes(columns, rows), 0xAA, np.uint8)
    codec.pack(columns, arrays, payload)
    back = codec.unpack(columns, rows, payload.tobytes())
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array, strict=True)
    again = np.zeros_like(payload)
    codec.pack(columns, back, again)
    assert again.tobytes() == payload.tobytes()  # gaps and end are zeros whatever was there
