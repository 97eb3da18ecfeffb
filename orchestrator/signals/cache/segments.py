"""Segment files: immutable Arrow IPC files that any Arrow tool opens. Numpy and pyarrow only.

One row a record, one batch a file, never compressed. A segment is written under a temporary name,
made durable, and then renamed, so what has a segment's name is whole unless the disk lost bytes
later; the checksum of each row tells.
"""

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .codec import checksum, layout_of, payload_bytes
from .keys import KEY_BYTES
from .records import Place

TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("fingerprint", TEXT, nullable=False),
        pa.field("ask", TEXT, nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("positions", pa.binary(), nullable=False),
        pa.field("layout", TEXT, nullable=False),
        pa.field("checksum", pa.binary(16), nullable=False),
        pa.field("payload", pa.large_binary(), nullable=False),  # last: see `write_segment`
    ],
    metadata={"stillhouse": "signals 1"},
)
TEMPORARY = ".writing-"
_BRIEF = SCHEMA.remove(SCHEMA.get_field_index("payload"))
_OF_PLACE = ("positions", "start", "length", "fingerprint", "ask", "layout", "checksum")
_NAME = re.compile(r"(\d{12})-[0-9a-f]{16}\.arrow")

Rows = Sequence[tuple[bytes, Place]]
"""Keys and where their payloads lie."""


def new_name(sequence: int) -> str:
    """A file name that was never used before; names sort by sequence."""
    return f"{sequence:012d}-{secrets.token_hex(8)}.arrow"


def sequence_of(name: str) -> int | None:
    """The sequence number of a segment's name; None for other files."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def most_bytes(rows: Rows, payload: int) -> int:
    """An upper bound on the size of a segment of these rows, bytes."""
    texts = {text for _, place in rows for text in (place.fingerprint, place.ask, place.layout)}
    columns = sum(len(place.positions) + 128 for _, place in rows)
    return payload + columns + sum(map(len, texts)) * 4 + 16384


def write_segment(folder: Path, name: str, rows: Rows, payload: np.ndarray) -> int:
    """Publish rows whose payloads lie end to end in `payload`, [bytes] uint8.

    Args:
        rows: offsets count from the beginning of `payload`, lengths are multiples of 64.

    Returns:
        What to add to the rows' offsets: where `payload` begins in the file.

    Raises:
        OSError: the disk is full or fails; nothing is left behind.
    """
    temporary = folder / f"{TEMPORARY}{name}"
    try:
        with pa.OSFile(str(temporary), "wb") as sink:
            writer = pa.ipc.new_file(sink, SCHEMA)
            writer.write_batch(_batch(rows, payload))
            # The last buffer of the batch is the payload's, and its length needs no padding.
            begin = sink.tell() - len(payload)
            writer.close()
        publish(temporary, folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return begin


def publish(temporary: Path, final: Path) -> None:
    """Make a file durable, then give it its name.

    Whether the name itself outlives a loss of power is left to the file system: without it, the
    records are misses.
    """
    handle = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(temporary, final)


def _batch(rows: Rows, payload: np.ndarray) -> pa.RecordBatch:
    places = [place for _, place in rows]
    offsets = np.array([*(place.offset for place in places), len(payload)], np.int64)
    columns: list[Any] = [
        pa.array([key for key, _ in rows], pa.binary(KEY_BYTES)),
        pa.array([place.fingerprint for place in places]).dictionary_encode(),
        pa.array([place.ask for place in places]).dictionary_encode(),
        pa.array([place.tokens for place in places], pa.int32()),
        pa.array([place.start for place in places], pa.int32()),
        pa.array([place.positions for place in places], pa.binary()),
        pa.array([place.layout for place in places]).dictionary_encode(),
        pa.array([place.checksum for place in places], pa.binary(16)),
        pa.Array.from_buffers(
            pa.large_binary(), len(rows), [None, pa.py_buffer(offsets), pa.py_buffer(payload)]
        ),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


@dataclass(frozen=True, slots=True)
class Scan:
    """What a segment file holds, every record checked."""

    rows: Rows  # of records that are what was put
    damaged: tuple[bytes, ...] = ()  # keys of those that are not
    unreadable: str | None = None  # why the file as a whole cannot be read


def scan_segment(path: Path, name: str | None = None) -> Scan:
    """Read a whole segment and check every record.

    Args:
        name: of the segment, where the file has another one for now.

    Raises:
        FileNotFoundError: it is gone, e.g. evicted.
    """
    data = path.read_bytes()
    try:
        batches = _batches(data)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        return Scan((), unreadable=str(error).splitlines()[0] or type(error).__name__)
    rows: list[tuple[bytes, Place]] = []
    damaged: list[bytes] = []
    for batch in batches:
        for key, place in _rows(batch, name or path.name, pa.py_buffer(data).address):
            within = 0 <= place.offset <= place.offset + place.length <= len(data)
            payload = memoryview(data)[place.offset : place.offset + place.length]
            if within and checksum(key, place, payload) == place.checksum:
                rows.append((key, place))
            else:
                damaged.append(key)
    return Scan(rows, tuple(damaged))


def brief_batches(path: Path) -> list[pa.RecordBatch]:
    """All columns but the payload, which is not read.

    Raises:
        FileNotFoundError: it is gone, e.g. evicted.
        ValueError: it cannot be read as a segment.
    """
    chosen = [SCHEMA.get_field_index(name) for name in _BRIEF.names]
    try:
        with pa.OSFile(str(path)) as source:
            options = pa.ipc.IpcReadOptions(included_fields=chosen)
            reader = pa.ipc.open_file(source, options=options)
            if not reader.schema.equals(_BRIEF):
                raise ValueError("its columns are not those of a signal segment")
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
            if any(column.null_count for column in batch.columns):
                raise ValueError("it has empty fields")
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from error
    return batches


def brief_rows(path: Path) -> Rows:
    """The rows of a segment, unchecked, without a look at their payloads.

    Payloads lie end to end before the file's end mark and footer, and a layout tells how long each
    is. A file for which that does not hold gives places whose checksums will not agree.

    Raises:
        FileNotFoundError: it is gone, e.g. evicted.
        ValueError: it cannot be read as a segment.
    """
    batches = brief_batches(path)
    if len(batches) != 1:
        raise ValueError(f"it has {len(batches)} batches, and a segment has one")
    (batch,) = batches
    columns = {name: batch.column(name).to_pylist() for name in _BRIEF.names}
    counts = (int.from_bytes(held, "little").bit_count() for held in columns["positions"])
    lengths = [
        payload_bytes(layout_of(layout), count)
        for layout, count in zip(columns["layout"], counts, strict=True)
    ]
    offset = _payload_end(path) - sum(lengths)
    rows: list[tuple[bytes, Place]] = []
    for row, length in enumerate(lengths):
        rest = (columns[name][row] for name in _OF_PLACE)
        rows.append((columns["key"][row], Place(path.name, offset, length, *rest)))
        offset += length
    return rows


def _payload_end(path: Path) -> int:
    """Where the last buffer of an Arrow file's last batch ends: before end mark and footer."""
    tail = 10  # the footer's length, int32, and the 6 bytes of the format's name
    with path.open("rb") as file:
        end = file.seek(-tail, os.SEEK_END)
        footer = int.from_bytes(file.read(4), "little")
    return end - footer - 8


def _batches(data: bytes) -> list[pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.BufferReader(data))
    if not reader.schema.equals(SCHEMA):
        raise ValueError("its columns are not those of a signal segment")
    batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    for batch in batches:
        batch.validate(full=True)
        if any(column.null_count for column in batch.columns):
            raise ValueError("it has empty fields")
    return batches


def _rows(batch: pa.RecordBatch, name: str, base: int) -> list[tuple[bytes, Place]]:
    """The rows of a batch that lies in memory at `base`, their offsets counted from there."""
    values = {column: batch.column(column) for column in batch.schema.names}
    offsets_buffer, data_buffer = values["payload"].buffers()[1:]
    offsets = np.frombuffer(offsets_buffer, np.int64, len(batch) + 1)
    begin = data_buffer.address - base if data_buffer is not None else 0
    columns = {column: values[column].to_pylist() for column in values if column != "payload"}
    return [
        (
            key,
            Place(
                name,
                begin + int(offsets[row]),
                int(offsets[row + 1] - offsets[row]),
                columns["positions"][row],
                columns["start"][row],
                columns["length"][row],
                columns["fingerprint"][row],
                columns["ask"][row],
                columns["layout"][row],
                columns["checksum"][row],
            ),
        )
        for row, key in enumerate(columns["key"])
    ]


def is_full(error: OSError) -> bool:
    """Whether the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
