"""The folder of many jobs: what they are, what they have done, and what came out.

Holds `<kind>.yaml` (as it runs), `<kind>.json` (the run id of the whole), `journal.jsonl`, `runs/`
(of the jobs), `tracking/` and, under other names, what is written in the end. A folder whose file
differs from the one that is asked for is refused with the difference.
"""

import difflib
import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.errors import SpecError
from orchestrator.planner.checks import local_folder

JOURNAL = "journal.jsonl"
Kind = Literal["study", "search"]
_SHOWN_LINES = 12


@dataclass(frozen=True, slots=True)
class Folder:
    """Where many jobs live."""

    path: Path  # on this machine, also where runs are stored elsewhere
    runs: str  # storage of the jobs, a folder or URI
    storage: str  # local folder of all runs, where the default tracking store lies
    run_id: str  # of the whole, in tracking

    @property
    def journal(self) -> Path:
        """What has been done."""
        return self.path / JOURNAL


def open_folder(
    kind: Kind,
    name: str,
    text: str,
    written: Callable[[Path], str],
    storage: str,
    local: str,
    *,
    resume: bool,
    accept_changes: bool,
) -> Folder:
    """Make or find the folder.

    Args:
        kind: of what lives there.
        name: of the folder.
        text: the file as it is now, every default written out.
        written: the same of a file that was written there before.
        storage: of the jobs, a folder or URI; absolute.
        local: folder of runs on this machine.
        resume: an existing folder is gone on with.
        accept_changes: also where the file was another then.

    Raises:
        SpecError: it exists and `resume` is false, or the other way round; the file has changed
            and that is not accepted; or the folder is something else.
    """
    path = Path(local) / name
    record = path / f"{kind}.yaml"
    if path.exists() and not record.is_file() and (not path.is_dir() or any(path.iterdir())):
        raise SpecError(
            str(path), f"is there and is no {kind}'s", f"Rename the {kind}, or move it away"
        )
    if record.is_file():
        if not resume:
            raise SpecError(
                str(path),
                f"holds this {kind}, begun before",
                f"Go on with it by --resume, remove the folder, or rename the {kind}",
            )
        changes = difference(written(record), text)
        if changes and not accept_changes:
            raise SpecError(
                str(path),
                f"the {kind} is not the one begun there:\n{changes}\n",
                f"Undo the change, rename the {kind}, or go on with --accept-changes: jobs that "
                "are the same are kept",
            )
    elif resume:
        raise SpecError(str(path), "there is nothing to go on with", "Leave --resume out")
    path.mkdir(parents=True, exist_ok=True)
    publish(record, text.encode())
    return Folder(path, f"{storage.rstrip('/')}/{name}/runs", local, _run_id(path, kind, name))


def local_storage(storage: str, elsewhere: str) -> str:
    """Folder of runs on this machine for a storage; `elsewhere` where that is a remote one."""
    found = local_folder(storage)
    return elsewhere if found is None else str(found.absolute())


def difference(then: str, now: str) -> str:
    """Changed lines of two files, marked - and +; empty if they are equal."""
    lines = difflib.unified_diff(then.splitlines(), now.splitlines(), lineterm="", n=0)
    changed = [f"  {line}" for line in lines if not line.startswith(("---", "+++", "@@"))]
    more = len(changed) - _SHOWN_LINES
    return "\n".join(
        changed[:_SHOWN_LINES] + ([f"  ... and {more} more lines"] if more > 0 else [])
    )


def _run_id(path: Path, kind: Kind, name: str) -> str:
    """The id of the whole in tracking: made once."""
    place = path / f"{kind}.json"
    if not place.is_file():
        stamp = time.strftime("%Y%m%d-%H%M%S")
        run_id = f"{kind}-{name}-{stamp}-{secrets.token_hex(2)}"
        publish(place, json.dumps({"run_id": run_id}).encode())
    return json.loads(place.read_text())["run_id"]


def publish(path: Path, content: bytes) -> Path:
    """Replace a file as one act; its path."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    os.replace(draft, path)
    return path
