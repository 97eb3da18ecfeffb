"""The directory of a cache: what lies where, its format version, and the lock of its one writer.

format            text: which format the rest has
lock              held by the writer; says who that is
segments/*.arrow  the records
roles/*.arrow     role cards
notes/            see `notes`
index.sqlite*     where each record lies; made anew from the segments when it is lost
"""

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from orchestrator.errors import CacheBusy, SpecError

from .notes import FOLDER as NOTES
from .segments import TEMPORARY, sequence_of

SEGMENTS, ROLES, INDEX, FORMAT, LOCK = "segments", "roles", "index.sqlite", "format", "lock"
VERSION = "stillhouse signals 1"
DEFAULT_PATH = Path.home() / ".cache" / "stillhouse" / "signals"
"""Where a node's cache lies if nobody says otherwise."""


def make(path: Path) -> None:
    """Make the directory if it is not there.

    Raises:
        SpecError: it cannot be made, has another version, or belongs to something else.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / FORMAT).exists():
            _refuse_foreign(path)
            temporary = path / f"{TEMPORARY}{os.getpid()}"
            temporary.write_text(VERSION + "\n")
            os.replace(temporary, path / FORMAT)
        check(path)
        for name in (SEGMENTS, ROLES):
            (path / name).mkdir(exist_ok=True)
    except OSError as error:
        raise SpecError(
            str(path), f"cannot be made a signal cache: {error}", "Give another folder"
        ) from error


def refuse_unusable(path: Path) -> None:
    """What `make` would refuse, told without making anything.

    Raises:
        SpecError: it has another version, or belongs to something else.
    """
    if (path / FORMAT).exists():
        check(path)
    elif path.is_dir():
        _refuse_foreign(path)
    elif path.exists():
        raise SpecError(str(path), "is a file where a signal cache should be", "Give a folder")


def _refuse_foreign(path: Path) -> None:
    """A folder of something else, or a cache that lost its version, is left alone."""
    known = {SEGMENTS, ROLES, LOCK, NOTES}
    foreign = [
        each.name
        for each in path.iterdir()
        if each.name not in known and not each.name.startswith(TEMPORARY)
    ]
    foreign += [each.name for each in (path / SEGMENTS).glob("*.arrow")]
    if foreign:
        raise SpecError(
            str(path),
            f"has files ({', '.join(sorted(foreign)[:3])}) and no file `{FORMAT}` that says it is "
            "a signal cache",
            "Give an empty folder, or one that does not exist",
        )


def check(path: Path) -> None:
    """Raises SpecError unless the directory is a cache of this version."""
    file = path / FORMAT
    try:
        found = file.read_text(errors="replace").strip()
    except OSError as error:
        raise SpecError(
            str(path), f"is not a signal cache ({error})", "Give the folder of a cache"
        ) from error
    if found != VERSION:
        raise SpecError(
            str(path),
            f"has the format {found[:60]!r}, and this version reads {VERSION!r}",
            "Give another folder, or use the version of Stillhouse that wrote it",
        )


def published(folder: Path) -> list[Path]:
    """The Arrow files of a folder in order, without those that somebody is still writing."""
    files = folder.glob("*.arrow")
    return sorted(file for file in files if not file.name.startswith(TEMPORARY))


def segment_sizes(path: Path) -> dict[str, int]:
    """Bytes of each published segment by name, oldest first."""
    sizes: dict[str, int] = {}
    with os.scandir(path / SEGMENTS) as entries:
        for entry in entries:
            if sequence_of(entry.name) is not None:
                with contextlib.suppress(FileNotFoundError):  # evicted while we look
                    sizes[entry.name] = entry.stat().st_size
    return dict(sorted(sizes.items()))


def sweep(path: Path) -> None:
    """Remove what a writer that was killed left half written. For the holder of the lock."""
    for folder in (path, path / SEGMENTS, path / ROLES):
        for leftover in folder.glob(f"{TEMPORARY}*"):
            leftover.unlink()


class Lock:
    """The right to write to a directory; ends with the process, however that ends.

    Raises:
        CacheBusy: another has it.
        OSError: the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._handle)
            raise CacheBusy(str(path), holder(path) or "unknown") from error
        try:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError:  # a full disk; whoever tries again must not find us holding it
            os.close(self._handle)
            raise

    def release(self) -> None:
        """Give it up. The file stays: to remove it would let two writers lock two files."""
        os.ftruncate(self._handle, 0)
        os.close(self._handle)


def holder(path: Path) -> str | None:
    """What the present or last writer wrote about itself; None if nothing."""
    try:
        return (path / LOCK).read_text().strip() or None
    except FileNotFoundError:
        return None
