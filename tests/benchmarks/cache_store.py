"""The signal cache's store against plain Arrow IPC files of the same bytes, and against raw files.

    python tests/benchmarks/cache_store.py
    python tests/benchmarks/cache_store.py --rounds 9 --mib 256 --folder /mnt/disk

Ways are interleaved, and every figure is the median of the rounds with their extremes. Reads are in
random order from the page cache, so they show what software adds to a disk. Every write ends with
the data on disk (fsync); a second column leaves that out for the plain ways.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from orchestrator.signals.cache.keys import record_key
from orchestrator.signals.cache.reader import Reader
from orchestrator.signals.cache.records import CacheRecord, Place
from orchestrator.signals.cache.store import SEGMENT_BYTES, Store
from orchestrator.signals.records import HiddenAsk, SignalAsk, TopKAsk

TOPK = TopKAsk(64, "float16", (1.0, 2.0))
BATCH = 16  # records that a store is given at once


def topk_record(sample: int, positions: int) -> CacheRecord:
    """280 bytes a position: 64 ids of 18 bits, 64 log-probabilities, two rungs."""
    rng = np.random.default_rng(sample)
    arrays = {
        "ids": rng.integers(0, 256, (positions, 144), np.uint8),
        "logprobs": rng.standard_normal((positions, 64), np.float32).astype(np.float16),
        "rest": rng.standard_normal((positions, 2), np.float32),
    }
    return make_record(sample, TOPK, positions, arrays)


def hidden_record(sample: int, positions: int) -> CacheRecord:
    """512 numbers of bfloat16 a position."""
    numbers = np.random.default_rng(sample).integers(0, 1 << 16, (positions, 512), np.uint16)
    return make_record(sample, HiddenAsk("bfloat16"), positions, {"hidden": numbers})


def make_record(
    sample: int, ask: SignalAsk, positions: int, arrays: dict[str, np.ndarray]
) -> CacheRecord:
    tokens = np.full(positions + 1, sample, np.int32)
    where = np.arange(positions, dtype=np.int32)
    key = record_key("teacher", tokens, ask, 0)
    return CacheRecord(key, "teacher", ask, positions + 1, where, arrays)


KINDS: dict[str, tuple[Callable[[int, int], CacheRecord], int]] = {
    "topk, 90 positions": (topk_record, 90),
    "topk, 256 positions": (topk_record, 256),
    "hidden, 256 positions": (hidden_record, 256),
}


# --- writing: each way gets the records and leaves its files in a fresh folder --------------------


def store_write(store: Store, records: Sequence[CacheRecord]) -> None:
    """Into an open store, as a job has it, until all is published."""
    for begin in range(0, len(records), BATCH):
        store.put(records[begin : begin + BATCH])
    store.flush()


def arrow_segments(folder: Path, payloads: Sequence[bytes], rows: int, sync: bool) -> None:
    """Files of about a segment's size, `rows` records a batch."""
    a_file = max(1, SEGMENT_BYTES // len(payloads[0]))
    schema = pa.schema([("payload", pa.large_binary())])
    for number, begin in enumerate(range(0, len(payloads), a_file)):
        file = folder / f"{number}.arrow"
        inside = payloads[begin : begin + a_file]
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for first in range(0, len(inside), rows):
                column = pa.array(inside[first : first + rows], pa.large_binary())
                writer.write_batch(pa.record_batch([column], schema=schema))
        if sync:
            fsync(file)


def raw_write(folder: Path, payloads: Sequence[bytes], sync: bool) -> None:
    file = folder / "raw"
    with file.open("wb", buffering=0) as sink:
        for payload in payloads:
            sink.write(payload)
        if sync:
            os.fsync(sink.fileno())


def fsync(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


MANY = 1 << 30  # rows of a batch
PLAIN_WRITES: dict[str, Callable[[Path, Sequence[bytes]], None]] = {
    "arrow, a batch a file": lambda f, p: arrow_segments(f, p, MANY, True),
    "arrow, a batch a file, no fsync": lambda f, p: arrow_segments(f, p, MANY, False),
    "arrow, a batch a record": lambda f, p: arrow_segments(f, p, 1, True),
    "raw file": lambda f, p: raw_write(f, p, True),
    "raw file, no fsync": lambda f, p: raw_write(f, p, False),
}


# --- reading: each way gets numbers of records and reads them in that order -----------------------


def store_reads(folder: Path, keys: Sequence[bytes]) -> Callable[[Sequence[int]], int]:
    with Store.open(folder, 1 << 40) as store:
        places = [place for place in store.find(keys) if isinstance(place, Place)]
    assert len(places) == len(keys)
    reader = Reader(folder)

    def read(order: Sequence[int]) -> int:
        total = 0
        for number in order:
            record = reader.read(keys[number], places[number])
            assert record is not None
            total += len(record.positions)
        return total

    return read


def arrow_reads(folder: Path, count: int, mapped: bool) -> Callable[[Sequence[int]], int]:
    files = sorted(folder.glob("*.arrow"), key=lambda file: int(file.stem))
    sources = [pa.memory_map(str(file)) if mapped else pa.OSFile(str(file)) for file in files]
    readers = [pa.ipc.open_file(source) for source in sources]
    where = [(reader, n) for reader in readers for n in range(reader.num_record_batches)]
    assert len(where) == count

    def read(order: Sequence[int]) -> int:
        total = 0
        for number in order:
            reader, row = where[number]
            buffer = reader.get_batch(row).column(0).buffers()[2]
            numbers = np.frombuffer(buffer, np.uint8)
            # A map has read nothing until its bytes are touched.
            total += int(numbers[::4096].sum()) if mapped else len(numbers)
        return total

    return read


def raw_reads(folder: Path, count: int, size: int) -> Callable[[Sequence[int]], int]:
    handle = os.open(folder / "raw", os.O_RDONLY)

    def read(order: Sequence[int]) -> int:
        return sum(len(os.pread(handle, size, number * size)) for number in order)

    return read


def timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def settled(call: Callable[[], Any]) -> float:
    """Timed, after the disk has done what others left it to do."""
    os.sync()
    return timed(call)


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median and extremes."""
    scaled = [value * scale for value in values]
    return {"median": statistics.median(scaled), "low": min(scaled), "high": max(scaled)}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All ways for one kind of record."""
    make, positions = KINDS[name]
    size = make(0, positions).nbytes
    count = options.mib * (1 << 20) // size
    records = [make(sample, positions) for sample in range(count)]
    payloads = [b"".join(a.tobytes() for a in each.arrays.values()) for each in records]
    keys = [record.key for record in records]
    writes: dict[str, list[float]] = {way: [] for way in ("store", *PLAIN_WRITES)}
    work = Path(tempfile.mkdtemp(dir=options.folder))
    for _ in range(options.rounds):
        for way in writes:
            folder = work / way
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            if way == "store":
                with Store.open(folder, 1 << 40) as store:
                    writes[way].append(settled(lambda s=store: store_write(s, records)))
            else:
                write = PLAIN_WRITES[way]
                writes[way].append(settled(lambda f=folder, w=write: w(f, payloads)))
    each = work / "arrow, a batch a record"
    reads = {
        "store": store_reads(work / "store", keys),
        "arrow, plain reads": arrow_reads(each, count, mapped=False),
        "arrow, mapped and touched": arrow_reads(each, count, mapped=True),
        "raw pread": raw_reads(work / "raw file", count, size),
    }
    order = list(range(count))
    read_times: dict[str, list[float]] = {way: [] for way in reads}
    for number in range(options.rounds + 1):
        random.Random(number).shuffle(order)
        for way, read in reads.items():
            took = timed(lambda r=read: r(order))
            if number:  # the first warms the page cache
                read_times[way].append(took)
    with Store.open(work / "store", 1 << 40) as store:
        finds = [timed(lambda: store.find(keys)) for _ in range(options.rounds)]
        stored = store.stats().bytes
    shutil.rmtree(work)
    return {
        "record_bytes": size,
        "records": count,
        "overhead_of_files": stored / (size * count) - 1,
        "write_s": {way: spread(values) for way, values in writes.items()},
        "read_us": {way: spread(values, 1e6 / count) for way, values in read_times.items()},
        "find_us": spread(finds, 1e6 / count),
        # Ratios within a round: what the machine did meanwhile falls out.
        "write_ratios": ratios(writes),
        "read_ratios": ratios(read_times),
    }


def ratios(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """The store over each other way, round by round."""
    return {
        way: spread([ours / theirs for ours, theirs in zip(times["store"], values, strict=True)])
        for way, values in times.items()
        if way != "store"
    }


def cell(each: dict[str, float] | None, digits: int) -> str:
    if each is None:
        return ""
    median, low, high = (f"{each[name]:.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def show(name: str, found: dict[str, Any]) -> None:
    """Two tables."""
    size, count = found["record_bytes"], found["records"]
    print(f"\n{name}: {count} records of {size / 1000:.0f} kB")
    print(
        f"files are larger by {found['overhead_of_files']:.2%}; find: {cell(found['find_us'], 1)}"
    )
    for what, unit, digits in (("write", "s", 3), ("read", "us", 1)):
        print(f"\n| {what} | {unit} | MB/s | records/s | store / this |\n|---|---|---|---|---|")
        for way, each in found[f"{what}_{unit}"].items():
            rate = count / each["median"] if what == "write" else 1e6 / each["median"]
            ratio = cell(found[f"{what}_ratios"].get(way), 2)
            cells = (way, cell(each, digits), f"{rate * size / 1e6:.0f}", f"{rate:.0f}", ratio)
            print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mib", type=int, default=128, help="bytes of records of each kind")
    parser.add_argument("--folder", default=None, help="where to write (default: the temporary)")
    options = parser.parse_args()
    results = {name: measure(name, options) for name in KINDS}
    for name, found in results.items():
        show(name, found)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
