"""The folder of a study: what it is, what it has done, and what came out.

Holds `study.yaml` (as it runs), `study.json` (the run id of the whole), `journal.jsonl`, `runs/`
(of its jobs), `tracking/` and, in the end, `table.md`, `table.html`, `table.json` and the plots. A
folder whose study differs from the one that is asked for is refused with the difference.
"""

import difflib
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import SpecError
from orchestrator.planner.checks import local_folder

from .load import load_study, study_yaml
from .spec import StudySpec

STUDY, PLACE, JOURNAL = "study.yaml", "study.json", "journal.jsonl"
_SHOWN_LINES = 12


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """Where a study lives."""

    path: Path  # on this machine, also where runs are stored elsewhere
    runs: str  # storage of its jobs, a folder or URI
    storage: str  # local folder of all runs, where the default tracking store lies
    run_id: str  # of the study itself, in tracking

    @property
    def journal(self) -> Path:
        """What it has done."""
        return self.path / JOURNAL


def open_folder(
    study: StudySpec, storage: str, local: str, *, resume: bool, accept_changes: bool
) -> StudyFolder:
    """Make or find the folder of a study.

    Args:
        study: as it is now.
        storage: of its jobs, a folder or URI; absolute.
        local: folder of runs on this machine.
        resume: an existing folder is gone on with.
        accept_changes: also where the study was another then.

    Raises:
        SpecError: it exists and `resume` is false, or the other way round; the study has changed
            and that is not accepted; or the folder is something else.
    """
    path = Path(local) / study.name
    record = path / STUDY
    if path.exists() and not record.is_file() and (not path.is_dir() or any(path.iterdir())):
        raise SpecError(
            str(path), "is there and is no study's", "Rename the study, or move it away"
        )
    if record.is_file():
        if not resume:
            raise SpecError(
                str(path),
                "holds this study, begun before",
                "Go on with it by --resume, remove the folder, or rename the study",
            )
        changes = difference(load_study(record), study)
        if changes and not accept_changes:
            raise SpecError(
                str(path),
                f"the study is not the one begun there:\n{changes}\n",
                "Undo the change, rename the study, or go on with --accept-changes: jobs that are "
                "the same are kept",
            )
    elif resume:
        raise SpecError(str(path), "there is nothing to go on with", "Leave --resume out")
    path.mkdir(parents=True, exist_ok=True)
    publish(record, study_yaml(study).encode())
    return StudyFolder(
        path, f"{storage.rstrip('/')}/{study.name}/runs", local, _run_id(path, study)
    )


def local_storage(storage: str, elsewhere: str) -> str:
    """Folder of runs on this machine for a storage; `elsewhere` where that is a remote one."""
    found = local_folder(storage)
    return elsewhere if found is None else str(found.absolute())


def difference(then: StudySpec, now: StudySpec) -> str:
    """Changed lines of two studies, marked - and +; empty if they are equal."""
    if then == now:
        return ""
    lines = difflib.unified_diff(
        study_yaml(then).splitlines(), study_yaml(now).splitlines(), lineterm="", n=0
    )
    changed = [f"  {line}" for line in lines if not line.startswith(("---", "+++", "@@"))]
    more = len(changed) - _SHOWN_LINES
    return "\n".join(
        changed[:_SHOWN_LINES] + ([f"  ... and {more} more lines"] if more > 0 else [])
    )


def _run_id(path: Path, study: StudySpec) -> str:
    """The study's own id in tracking: made once."""
    place = path / PLACE
    if not place.is_file():
        stamp = time.strftime("%Y%m%d-%H%M%S")
        run_id = f"study-{study.name}-{stamp}-{secrets.token_hex(2)}"
        publish(place, json.dumps({"run_id": run_id}).encode())
    return json.loads(place.read_text())["run_id"]


def publish(path: Path, content: bytes) -> Path:
    """Replace a file as one act; its path."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    os.replace(draft, path)
    return path
