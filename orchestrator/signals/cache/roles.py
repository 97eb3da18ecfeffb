"""Role cards on disk: one checked Arrow file for each role fingerprint. Numpy and pyarrow only."""

import dataclasses
import hashlib
import json
import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from orchestrator.signals.records import HeadRecord, RoleDescription

from .codec import layout_of, layout_text, pack, payload_bytes, unpack
from .folder import ROLES
from .records import RoleCard
from .segments import TEMPORARY, publish

log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        pa.field("description", pa.string(), nullable=False),  # JSON of a RoleDescription
        pa.field("head", pa.string(), nullable=False),  # JSON of the head's numbers, or null
        pa.field("layout", pa.string(), nullable=False),  # of the head's arrays, see `codec`
        pa.field("checksum", pa.binary(16), nullable=False),
        pa.field("payload", pa.large_binary(), nullable=False),
    ],
    metadata={"stillhouse": "role 1"},
)
_ARRAYS = ("weight", "bias")


def role_file(path: Path, fingerprint: str) -> Path:
    """The file of a role's card, there or not."""
    digest = hashlib.blake2b(fingerprint.encode(), digest_size=16).hexdigest()
    return path / ROLES / f"{digest}.arrow"


def write_role(path: Path, card: RoleCard) -> None:
    """Publish a card.

    Raises:
        OSError: the disk is full or fails; nothing is left behind.
    """
    head = card.head
    arrays = {} if head is None else {n: a for n in _ARRAYS if (a := getattr(head, n)) is not None}
    columns = layout_of(layout_text(arrays))
    payload = np.empty(payload_bytes(columns, 0 if head is None else len(head.weight)), np.uint8)
    pack(columns, arrays, payload)
    texts = [json.dumps(dataclasses.asdict(card.description)), _numbers(head), layout_text(arrays)]
    row: list[Any] = [pa.array([text]) for text in texts]
    row.append(pa.array([_checksum(texts, payload.data)], pa.binary(16)))
    offsets = pa.py_buffer(np.array([0, len(payload)], np.int64))
    row.append(pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(payload)]))
    final = role_file(path, card.fingerprint)
    temporary = final.with_name(f"{TEMPORARY}{final.name}")
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(row, schema=SCHEMA))
        publish(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_role(path: str | Path, fingerprint: str) -> RoleCard | None:
    """A role's card, its head's arrays read-only views of one buffer.

    None if there is none, or if it is not what was put, which is logged. The role's name is that
    of the job which put it.
    """
    file = role_file(Path(path), fingerprint)
    try:
        card = load_card(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        log.warning("the card of role %s is damaged (%s): %s", fingerprint, file.name, error)
        return None
    return card if card.fingerprint == fingerprint else None


def load_card(file: Path) -> RoleCard:
    """The card in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not what was put.
    """
    data = file.read_bytes()
    try:
        return _card(data)
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from error


def _card(data: bytes) -> RoleCard:
    """Raises what `load_card` translates."""
    reader = pa.ipc.open_file(pa.BufferReader(data))
    if not reader.schema.equals(SCHEMA) or reader.num_record_batches != 1:
        raise ValueError("its columns are not those of a role card")
    batch = reader.get_batch(0)
    batch.validate(full=True)
    texts = [batch.column(name)[0].as_py() for name in ("description", "head", "layout")]
    payload = memoryview(batch.column("payload")[0].as_buffer())
    if _checksum(texts, payload) != batch.column("checksum")[0].as_py():
        raise ValueError("its checksum is another")
    description, numbers = RoleDescription(**json.loads(texts[0])), json.loads(texts[1])
    if numbers is None:
        return RoleCard(description, None)
    arrays = unpack(layout_of(texts[2]), description.vocabulary, payload)
    head = HeadRecord(
        description.role,
        description.fingerprint,
        arrays["weight"],
        arrays.get("bias"),
        numbers["scale"],
        numbers["softcap"],
        numbers["bfloat16"],
        numbers["protocol"],
    )
    return RoleCard(description, head)


def _numbers(head: HeadRecord | None) -> str:
    if head is None:
        return json.dumps(None)
    return json.dumps(
        {
            "scale": float(head.scale),
            "softcap": None if head.softcap is None else float(head.softcap),
            "bfloat16": head.bfloat16,
            "protocol": head.protocol,
        }
    )


def _checksum(texts: list[str], payload: memoryview) -> bytes:
    encoded = [text.encode() for text in texts]
    sizes = struct.pack(f"<{len(encoded)}q", *map(len, encoded))
    return xxhash.xxh3_128_digest(b"".join([sizes, *encoded, xxhash.xxh3_128_digest(payload)]))
