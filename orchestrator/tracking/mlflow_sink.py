"""The tracking store behind MLflow's client. Importing this file imports MLflow (seconds).

None of MLflow's types or errors leave: they become `SinkDown` (try again) or `SinkRefused`.
Sending again is harmless, because the sqlite and server stores key a metric by (name, time, step,
value), a parameter by its name, and a version of ours by a tag.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .address import Address, redact
from .sink import MetricValue, RunHeader, SinkDown, SinkRefused

CLIENT_SETTINGS = {
    # One policy retries: the uploader's. MLflow's own seven tries of 120 s hold a thread for
    # a quarter of an hour on a server that is down.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # The address may hold a password.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Read by MLflow from the environment when it is imported and at each request. They are set where
this file is imported (the process that uploads) and only where the user has set nothing."""

for _name, _value in CLIENT_SETTINGS.items():
    os.environ.setdefault(_name, _value)

from mlflow.entities import Metric, Param, RunTag, ViewType  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)

RUN_ID_TAG = "stillhouse.run_id"
VERSION_TAG = "stillhouse.export"
PARENT_TAG = "mlflow.parentRunId"
STUDENT_FOLDER = "student"
STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

_METRICS_A_REQUEST = 1000
_PAIRS_A_REQUEST = 100
_PARAM_LENGTH = 6000
_TAG_LENGTH = 5000
_NEVER = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "MALFORMED_REQUEST",
    "INVALID_STATE",
    "RESOURCE_DOES_NOT_EXIST",
}
_MLMODEL = """\
artifact_path: student
flavors:
  stillhouse:
    format: huggingface
    code: null
run_id: {run}
"""


class MlflowSink:
    """One run's way into MLflow.

    Raises:
        SinkDown: the store cannot be opened.
    """

    def __init__(self, address: Address) -> None:
        self._artifact_root = address.artifact_root
        with _translated("open the store"):
            self._client = MlflowClient(address.uri)

    def open(self, header: RunHeader) -> str:
        with _translated("open the run"):
            experiment = self._experiment(header.experiment)
            tags = {RUN_ID_TAG: header.run_id}
            if header.parent is not None:
                parent = self._find(experiment, header.parent)
                if parent is None:
                    raise SinkDown(f"the parent run {header.parent} is not recorded yet")
                tags[PARENT_TAG] = parent
            found = self._find(experiment, header.run_id)
            if found is not None:
                return found
            run = self._client.create_run(experiment, run_name=header.name, tags=tags)
            return run.info.run_id

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = self._artifact_root
            try:
                return self._client.create_experiment(
                    name, None if location is None else f"{location}/{_safe_key(name)}"
                )
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(name)  # another run was first
        if found is None or found.lifecycle_stage != "active":
            raise SinkDown(
                f"experiment {name!r} is deleted; restore it in MLflow, or set tracking.experiment"
            )
        return found.experiment_id

    def _find(self, experiment: str, run_id: str) -> str | None:
        query = f"tags.`{RUN_ID_TAG}` = '{run_id}'"
        runs = self._client.search_runs(
            [experiment], query, ViewType.ACTIVE_ONLY, max_results=1, order_by=["start_time ASC"]
        )
        return runs[0].info.run_id if runs else None

    def alive(self, run: str) -> bool:
        with _translated("look for the run"):
            try:
                return self._client.get_run(run).info.lifecycle_stage == "active"
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise

    def metrics(self, run: str, values: Sequence[MetricValue]) -> None:
        with _translated("log metrics"):
            for start in range(0, len(values), _METRICS_A_REQUEST):
                piece = values[start : start + _METRICS_A_REQUEST]
                self._client.log_batch(
                    run, [Metric(_safe_key(m.key), m.value, m.time_ms, m.step) for m in piece]
                )

    def params(self, run: str, values: Mapping[str, str]) -> None:
        with _translated("log parameters"):
            for piece in _pieces(values, _PARAM_LENGTH):
                self._client.log_batch(run, params=[Param(key, value) for key, value in piece])

    def tags(self, run: str, values: Mapping[str, str]) -> None:
        with _translated("set tags"):
            for piece in _pieces(values, _TAG_LENGTH):
                self._client.log_batch(run, tags=[RunTag(key, value) for key, value in piece])

    def text(self, run: str, name: str, text: str) -> None:
        with _translated(f"store {name}"):
            self._client.log_text(run, text, name)

    def artifact(self, run: str, path: Path, folder: str | None) -> None:
        with _translated(f"store {path.name}"):
            if path.is_dir():
                self._client.log_artifacts(run, str(path), folder)
            elif path.is_file():
                self._client.log_artifact(run, str(path), folder)
            else:
                raise SinkRefused(f"{path} is gone")

    def register(self, run: str, path: Path, name: str, key: str, tags: Mapping[str, str]) -> str:
        with _translated(f"register {name}"):
            if not path.is_dir():
                raise SinkRefused(f"{path} is gone")
            self._create_registered_model(name)
            for version in self._client.search_model_versions(f"name = '{name}'"):
                if version.run_id == run and version.tags.get(VERSION_TAG) == key:
                    return f"models:/{name}/{version.version}"
            folder = f"{STUDENT_FOLDER}/{key}"
            self._client.log_artifacts(run, str(path), folder)
            self._client.log_text(run, _MLMODEL.format(run=run), f"{folder}/MLmodel")
            source = f"{self._client.get_run(run).info.artifact_uri}/{folder}"
            said = dict(pair for piece in _pieces(tags, _TAG_LENGTH) for pair in piece)
            made = self._client.create_model_version(
                name, source, run, tags={**said, VERSION_TAG: key}, await_creation_for=30
            )
            return f"models:/{name}/{made.version}"

    def _create_registered_model(self, name: str) -> None:
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def status(self, run: str, status: str, time_ms: int) -> None:
        with _translated("set the status"):
            if status == "running":
                self._client.update_run(run, status=STATUS[status])
            else:
                self._client.set_terminated(run, STATUS[status], time_ms)


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Nothing but our two errors leaves; messages lose the passwords of URLs."""
    try:
        yield
    except (SinkDown, SinkRefused):
        raise
    except MlflowException as error:
        message = f"cannot {doing}: {redact(_brief(error))}"
        kind = SinkRefused if error.error_code in _NEVER else SinkDown
        raise kind(message) from error
    except Exception as error:  # requests, sqlalchemy and the file system have no common root
        message = f"cannot {doing}: {type(error).__name__}: {redact(_brief(error))}"
        raise SinkDown(message) from error


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."


def _safe_key(key: str) -> str:
    """MLflow takes letters, digits, `_-. :/` in a key, at most 250 of them."""
    return re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII)[:250]


def _pieces(values: Mapping[str, str], longest: int) -> Iterator[list[tuple[str, str]]]:
    pairs: list[Any] = [
        (_safe_key(key), value if len(value) <= longest else value[: longest - 3] + "...")
        for key, value in values.items()
    ]
    for start in range(0, len(pairs), _PAIRS_A_REQUEST):
        yield pairs[start : start + _PAIRS_A_REQUEST]
