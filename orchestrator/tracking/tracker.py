"""What a job tells about itself: written to the spool at once, sent to MLflow by the uploader.

No call here waits for a tracking server, except `drain` and `finish`, for a bounded time. MLflow
is not imported by this file. Every kind of record a spool can hold is written here and nowhere
else.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from orchestrator.errors import SpecError
from orchestrator.evaluation.history import SPOOL, parse_record
from orchestrator.spec.job import TrackingSpec

from .address import Address, address_of, answers, redact, redact_all
from .sink import Sink
from .spool import Spool
from .uploader import DrainReport, Pace, Uploader

logger = logging.getLogger(__name__)

Status = Literal["finished", "failed", "interrupted"]
UNTHINNED = ("held_out/", "cost/")
"""Metrics that `tracking.every_steps` does not thin."""


class Tracker:
    """Records one run.

    Opening a folder that already has a spool goes on with that run: what a restart replays is not
    recorded again, because a value of a step is recorded once, the first time.

    Args:
        run_folder: local folder of the run; artifacts must lie inside it.
        run_id: our id of the run, without quotes; MLflow's run is found by it.
        spec: the job's tracking section.
        storage: folder of all runs, where the default store lies.
        name: the run's name in MLflow; None: `run_id`.
        parent: our id of the run that this one is a trial of.
        open_sink: makes the store's client; None: MLflow.

    Raises:
        SpecError: the address cannot hold a run, or `run_id` has a quote in it.
    """

    def __init__(
        self,
        run_folder: str | Path,
        run_id: str,
        spec: TrackingSpec,
        storage: str | Path,
        name: str | None = None,
        parent: str | None = None,
        open_sink: Callable[[Address], Sink] | None = None,
        pace: Pace | None = None,
    ) -> None:
        if any(quote in (run_id + (parent or "")) for quote in "'\"`\\"):
            raise SpecError("run_id", f"{run_id!r} has a quote in it", "Use letters and dashes")
        self._folder = Path(run_folder)
        self._address = address_of(spec.uri, storage)
        self._every_steps = spec.every_steps
        self._recorded = _recorded_steps(self._folder)
        self._spool = Spool(self._folder)
        self._spool.append(
            "begin",
            {
                "run_id": run_id,
                "name": name or run_id,
                "experiment": spec.experiment,
                "parent": parent,
                "uri": self._address.shown,
                "has_secret": self._address.has_secret,
                "artifact_root": self._address.artifact_root,
            },
        )
        if spec.tags:
            self.tags(spec.tags)
        self._uploader = Uploader(self._folder, self._address, open_sink, pace).start()

    @property
    def target(self) -> str:
        """The store's address without secrets."""
        return self._address.shown

    def warn_if_silent(self, timeout_s: float = 3.0) -> bool:
        """Log one warning when the store does not answer now; returns whether it did."""
        alive = answers(self._address.uri, timeout_s)
        if not alive:
            logger.warning(
                "tracking: %s does not answer: spooling to %s", self.target, self._spool.path
            )
        return alive

    def params(self, resolved: Mapping[str, Any]) -> None:
        """The resolved job: flattened as parameters, and whole as the artifact `job.yaml`."""
        safe = redact_all(resolved)
        self._spool.append("params", {"values": flatten(safe)})
        self.text("job.yaml", yaml.safe_dump(safe, sort_keys=False, allow_unicode=True))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Values of one optimiser step; thinned to every `tracking.every_steps`.

        A name's steps rise: a value for a step at or before the last one recorded is what a
        restart replays, and is left out.
        """
        on_beat = step % self._every_steps == 0
        fresh = {
            name: float(value)
            for name, value in values.items()
            if (on_beat or name.startswith(UNTHINNED)) and step > self._recorded.get(name, -1)
        }
        if fresh:
            self._spool.append("metrics", {"step": step, "values": fresh})
            self._recorded.update(dict.fromkeys(fresh, step))

    def tags(self, values: Mapping[str, str]) -> None:
        """Short facts; a later value replaces an earlier one."""
        texts = {key: redact(str(value)) for key, value in values.items()}
        self._spool.append("tags", {"values": texts})

    def lineage(self, facts: Mapping[str, Any]) -> None:
        """Where the student comes from: teacher fingerprints, data version, checkpoint and export
        hashes, encodings, pool. Nested mappings are flattened; recorded as `lineage.*` tags."""
        self._spool.append("lineage", {"values": flatten(redact_all(facts))})

    def text(self, name: str, text: str) -> None:
        """A text artifact called `name`, kept in the spool itself."""
        self._spool.append("text", {"name": name, "text": text})

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """A file or folder inside the run folder, sent as it is when its turn comes.

        Raises:
            ValueError: it lies outside the run folder, or is not there.
        """
        self._spool.append("artifact", {"path": self._inside(path), "folder": folder})

    def register_student(
        self, export_folder: str | Path, name: str, facts: Mapping[str, str] | None = None
    ) -> None:
        """The exported student as a new version of `name` in the registry (no pickles).

        Args:
            export_folder: of the student.
            name: of the registered model.
            facts: the version's tags.

        Raises:
            ValueError: the folder lies outside the run folder, or is not there.
        """
        tags = {key: redact(value) for key, value in (facts or {}).items()}
        path = self._inside(export_folder)
        self._spool.append("register", {"path": path, "name": name, "tags": tags})

    def finish(self, status: Status, deadline_s: float = 60.0) -> DrainReport:
        """Record the end and send what waits, for at most `deadline_s`. No calls after it.

        A store that is down raises nothing: the report says where the records are.
        """
        self.end(status)
        return self.drain(deadline_s)

    def end(self, status: Status) -> None:
        """Record the end; what waits is still being sent. No calls after it but `drain`."""
        self._spool.append("status", {"status": status})
        self._spool.close()

    def drain(self, deadline_s: float) -> DrainReport:
        """Send what waits, for at most `deadline_s`, and no more after that."""
        report = self._uploader.drain(deadline_s)
        self._uploader.stop()
        if not report.complete:
            logger.warning("tracking: %s", report)
        return report

    def _inside(self, path: str | Path) -> str:
        root, full = self._folder.resolve(), Path(path).resolve()
        if not full.is_relative_to(root):
            raise ValueError(f"{path} is not inside the run folder {self._folder}")
        if not full.exists():
            raise ValueError(f"{path} does not exist")
        return str(full.relative_to(root))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings and lists as `a.b.0.c` -> text; None is left out, empty ones stay visible."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, list | tuple) and any(isinstance(v, Mapping | list) for v in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{path}."))
        elif value is not None:
            flat[path] = value if isinstance(value, str) else yaml_scalar(value)
    return flat


def yaml_scalar(value: Any) -> str:
    """A plain value or short list the way a job file would write it."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").removesuffix("\n")


def _recorded_steps(run_folder: Path) -> dict[str, int]:
    """The last step of each metric in a spool that is already there."""
    path = run_folder / SPOOL
    steps: dict[str, int] = {}
    if path.exists():
        with open(path, "rb") as lines:
            for record in map(parse_record, lines):
                if record is not None and record.kind == "metrics":
                    steps.update(dict.fromkeys(record.body["values"], int(record.body["step"])))
    return steps
