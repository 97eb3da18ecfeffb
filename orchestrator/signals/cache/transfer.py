"""Copies of a cache at any fsspec address: whole segments and role cards, checked on their way in.

A copy has the layout of a cache without lock and index. Export only reads, so it works beside a
running writer.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from orchestrator.errors import SpecError, StillhouseError

from . import folder
from .roles import load_card
from .segments import TEMPORARY, scan_segment, sequence_of
from .store import Store


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export did."""

    files: int = 0  # segments and role cards copied
    bytes: int = 0
    there: int = 0  # files that the copy had already


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did."""

    segments: int = 0  # taken
    records: int = 0  # of those that were news
    bytes: int = 0
    known: int = 0  # segments without news, left
    cards: int = 0
    refused: tuple[str, ...] = ()  # file: what is wrong with it


def export_to(path: str | Path, uri: str) -> Exported:
    """Copy what a directory has and the copy lacks.

    Raises:
        SpecError: the directory is not a cache, or the address cannot be written; nothing was
            copied then.
        StillhouseError: it failed on the way; what has arrived is found by the next export.
    """
    source = Path(path)
    folder.check(source)
    files, root = _address(uri)
    _check_writable(files, root, uri)
    copied = nbytes = there = 0
    with _remote(uri):
        _check_version(files, root, uri, empty_is_fine=True)
        files.pipe_file(f"{root}/{folder.FORMAT}", (folder.VERSION + "\n").encode())
        for part in (folder.SEGMENTS, folder.ROLES):
            files.makedirs(f"{root}/{part}", exist_ok=True)
            sizes = _sizes(files, f"{root}/{part}")
            for file in folder.published(source / part):
                try:
                    size = file.stat().st_size
                    if sizes.get(file.name) == size:
                        there += 1
                        continue
                    files.put_file(str(file), f"{root}/{part}/{file.name}")
                except FileNotFoundError:
                    if file.exists():
                        raise
                    continue  # evicted meanwhile
                copied, nbytes = copied + 1, nbytes + size
    return Exported(copied, nbytes, there)


def import_from(uri: str, store: Store) -> Imported:
    """Take what a copy has and the store lacks. A damaged file is refused, the others are taken.

    Raises:
        SpecError: there is no copy of this version, or it is larger than the room that the
            store's limit leaves; nothing was copied then.
        StillhouseError: it failed on the way; what has arrived is kept.
    """
    files, root = _address(uri)
    with _remote(uri):
        _check_version(files, root, uri, empty_is_fine=False)
        segments = _sizes(files, f"{root}/{folder.SEGMENTS}")
        cards = _sizes(files, f"{root}/{folder.ROLES}")
    needed, room = sum(segments.values()), store.room()
    if needed > room:
        raise SpecError(
            uri,
            f"has {needed} bytes of segments, and the limit of {store.path} leaves {room}",
            "Raise the limit, or prune first",
        )
    taken = records = nbytes = known = 0
    refused: list[str] = []
    for name in sorted(name for name in segments if sequence_of(name) is not None):
        local = store.path / folder.SEGMENTS / f"{TEMPORARY}import-{name}"
        with _fetched(files, f"{root}/{folder.SEGMENTS}/{name}", local, uri):
            scan = scan_segment(local)
            if scan.unreadable is not None or scan.damaged:
                wrong = scan.unreadable or f"{len(scan.damaged)} records have another checksum"
                refused.append(f"{name}: {wrong}")
                continue
            try:
                news = store.adopt(local, scan)
            except OSError as error:
                raise StillhouseError(
                    f"{store.path}: {name} cannot be kept: {error}; free space and import again"
                ) from error
        if news:
            taken, records, nbytes = taken + 1, records + news, nbytes + segments[name]
        else:
            known += 1
    for name in sorted(cards):
        local = store.path / folder.ROLES / f"{TEMPORARY}import-{name}"
        with _fetched(files, f"{root}/{folder.ROLES}/{name}", local, uri):
            try:
                store.put_role(load_card(local))
            except ValueError as error:
                refused.append(f"{name}: {error}")
    return Imported(taken, records, nbytes, known, len(cards), tuple(refused))


def _address(uri: str) -> tuple[Any, str]:
    """(fsspec file system, path in it)."""
    try:
        files, root = url_to_fs(uri)
    except (ValueError, ImportError, OSError) as error:
        raise SpecError(
            uri,
            f"is not an address that can be used: {error}",
            "Give a folder or an fsspec address, and install what its protocol needs",
        ) from error
    return files, str(root).rstrip("/")


def _check_writable(files: Any, root: str, uri: str) -> None:
    """Write a few bytes and remove them."""
    probe = f"{root}/{TEMPORARY}{secrets.token_hex(4)}"
    try:
        files.makedirs(root, exist_ok=True)
        files.pipe_file(probe, b"stillhouse")
        files.rm_file(probe)
    except Exception as error:  # every file system has its own kinds
        raise SpecError(
            uri,
            f"cannot be written: {type(error).__name__}: {error}",
            "Give an address that you may write to",
        ) from error


def _check_version(files: Any, root: str, uri: str, *, empty_is_fine: bool) -> None:
    file = f"{root}/{folder.FORMAT}"
    if not files.exists(file):
        if empty_is_fine and not files.exists(f"{root}/{folder.SEGMENTS}"):
            return
        raise SpecError(uri, "is not a copy of a signal cache", "Give what an export has written")
    found = files.cat_file(file).decode(errors="replace").strip()
    if found != folder.VERSION:
        raise SpecError(
            uri,
            f"has the format {found[:60]!r}, and this version reads {folder.VERSION!r}",
            "Give another address, or use the version of Stillhouse that wrote it",
        )


def _sizes(files: Any, root: str) -> dict[str, int]:
    """Bytes of each Arrow file in a remote folder by name."""
    try:
        entries = files.ls(root, detail=True)
    except FileNotFoundError:
        return {}
    named = {entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] for entry in entries}
    return {name: size for name, size in named.items() if name.endswith(".arrow")}


@contextmanager
def _fetched(files: Any, remote: str, local: Path, uri: str) -> Iterator[None]:
    """A remote file under a local name, for a while."""
    try:
        with _remote(uri):
            files.get_file(remote, str(local))
        yield
    finally:
        local.unlink(missing_ok=True)


@contextmanager
def _remote(uri: str) -> Iterator[None]:
    """Whatever a file system raises, as an error of ours."""
    try:
        yield
    except StillhouseError:
        raise
    except Exception as error:  # every file system has its own kinds
        raise StillhouseError(f"{uri}: {type(error).__name__}: {error}") from error
