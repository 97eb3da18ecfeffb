"""The folder of one run: where it lies and what is needed to go on with it."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec

from orchestrator.errors import SpecError
from orchestrator.planner.checks import check_run_folder
from orchestrator.spec import JobSpec, resolved_yaml
from orchestrator.spec.load import load_jobs


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where one job's run lives, and what is needed to go on with it.

    Holds `job.yaml` (the whole resolved list), `run.json` (which job of it this is, and the run ids
    of the list), `checkpoints/`, `export/`, `tracking/` and `report.html`.
    """

    uri: str  # folder or fsspec URI
    run_id: str
    local: Path  # the same folder, or a local one beside a remote store

    @classmethod
    def at(cls, storage: str, run_id: str) -> "RunFolder":
        """The folder of a run below its storage."""
        uri = f"{storage.rstrip('/')}/{run_id}"
        local = Path.home() / ".cache/stillhouse/runs" / run_id if "://" in storage else Path(uri)
        return cls(uri, run_id, local)

    def write(self, jobs: Sequence[JobSpec], index: int, run_ids: Sequence[str]) -> None:
        """Record the list and this job's place in it.

        Raises:
            SpecError: the folder belongs to another job, or to something else.
        """
        check_run_folder(self.local, jobs)
        self.local.mkdir(parents=True, exist_ok=True)
        fs, root = fsspec.core.url_to_fs(self.uri)
        fs.makedirs(root, exist_ok=True)
        fs.pipe_file(f"{root}/job.yaml", resolved_yaml(jobs).encode())
        place = {"index": index, "run_ids": list(run_ids)}
        fs.pipe_file(f"{root}/run.json", json.dumps(place).encode())

    @classmethod
    def read(cls, uri: str) -> tuple[list[JobSpec], int, list[str]]:
        """The list, the job's index in it, and the run ids of the list.

        Raises:
            SpecError: it is no run folder.
        """
        fs, root = fsspec.core.url_to_fs(uri)
        if not (fs.exists(f"{root}/run.json") and fs.exists(f"{root}/job.yaml")):
            raise SpecError(uri, "is not a run folder (no run.json in it)", "Give runs/<run id>")
        place = json.loads(fs.cat_file(f"{root}/run.json"))
        with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
            file.write(fs.cat_file(f"{root}/job.yaml"))
            file.flush()
            return load_jobs(file.name), place["index"], place["run_ids"]


SAME = (
    "student",
    "data",
    "seed",
    "training.global_batch",
    "training.workers",
    "training.zero",
    "training.precision",
)
"""Fields that a job shares with the run from whose checkpoint it starts."""


def check_start(job: JobSpec) -> None:
    """Refuse a job that cannot go on from the checkpoint it names.

    Raises:
        SpecError: that is no run, or one of another student, of other data or of another cut.
    """
    start = job.training.start
    if start is None:
        return
    jobs, index, _ = RunFolder.read(start.run)
    for field in SAME:
        then, now = _at(jobs[index], field), _at(job, field)
        if then != now:
            raise SpecError(
                "training.start.run",
                f"is {start.run!r}, a run with another {field}"
                + (f" ({then}, and the job has {now})" if isinstance(now, int | str) else ""),
                f"Set {field} as it was there, or start without a checkpoint",
            )


def _at(job: JobSpec, field: str) -> object:
    found: object = job
    for part in field.split("."):
        found = getattr(found, part)
    return found
