"""Where a run is recorded: the tracking URI, its default, and whether it answers.

Standard library and our errors only: no MLflow. A URI may hold a password; only `Address.uri` has
it, and every message, file and tag gets `Address.shown`.
"""

import base64
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from orchestrator.errors import SpecError

_USERINFO = re.compile(r"(?<=://)[^/@\s'\"]+@")


def redact(text: str) -> str:
    """`text` with the user and password of every URL in it replaced by `***`."""
    return _USERINFO.sub("***@", text)


def redact_all(value: Any) -> Any:
    """The same for every string in nested mappings and lists."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Address:
    """A tracking store."""

    uri: str = field(repr=False)
    artifact_root: str | None = None  # folder of artifacts; None: the server decides

    @property
    def shown(self) -> str:
        """The URI without user and password."""
        return redact(self.uri)

    @property
    def has_secret(self) -> bool:
        """Whether `shown` lacks what is needed to connect."""
        return self.shown != self.uri


def address_of(uri: str | None, storage: str | Path) -> Address:
    """The address for a job's `tracking.uri`, or the default beside its runs.

    Args:
        uri: an http(s) server, `sqlite:///file.db`, `databricks`, or None for
            `sqlite:///<storage>/mlflow.db` with artifacts in `<storage>/mlartifacts`.
        storage: local folder of the runs.

    Raises:
        SpecError: a folder is given as the store, or `storage` is remote and `uri` is absent.
    """
    if uri is None:
        if "://" in str(storage):
            raise SpecError(
                "tracking.uri",
                f"is absent, and storage ({redact(str(storage))}) is no local folder to hold "
                "the default sqlite file",
                "Set tracking.uri, for example to http://host:5000",
            )
        root = Path(storage).resolve()
        return Address(f"sqlite:///{root / 'mlflow.db'}", str(root / "mlartifacts"))
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///")).resolve()
        return Address(f"sqlite:///{database}", str(database.parent / "mlartifacts"))
    if uri.startswith(("file:", "/", ".")):
        raise SpecError(
            "tracking.uri",
            f"{uri!r} is a folder; MLflow has retired folder stores, and they repeat a metric "
            "that is sent twice",
            f"Use a file instead, for example sqlite:///{uri.removeprefix('file:')}/mlflow.db",
        )
    return Address(uri)


def answers(uri: str, timeout_s: float = 3.0) -> bool:
    """Whether the store looks reachable now: a hint for a warning, not a promise.

    An http(s) server answers when it replies at all, with less than a server error. A sqlite file
    answers when it, or the folder it will be created in, can be written. Others are not checked.
    """
    if uri.startswith("sqlite:///"):
        return _is_writable(Path(uri.removeprefix("sqlite:///")))
    if not uri.startswith(("http://", "https://")):
        return True
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    bare = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
    request = urllib.request.Request(f"{bare}/health")
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        request.add_header("Authorization", "Basic " + base64.b64encode(pair).decode())
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False


def _is_writable(path: Path) -> bool:
    nearest = path
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    return os.access(nearest, os.W_OK) and (nearest.is_dir() or nearest == path)
