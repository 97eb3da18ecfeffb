"""`models:/name/version` -> a local folder, for jobs that start from a registered model.

Imports MLflow when called, not before. Only copies files; `orchestrator.models` decides what may
be loaded from them.
"""

import hashlib
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError, StillhouseError

from .address import Address, redact

_URI = re.compile(r"^models:/(?P<name>[^/]+)/(?P<version>[^/]+)$")


def resolve_registry_uri(uri: str, address: Address, cache_folder: str | Path) -> Path:
    """The folder of a registered model, fetched once and kept.

    Args:
        uri: `models:/name/3`, or `models:/name/latest` for the highest version.
        address: the store that holds the registry.
        cache_folder: where fetched models are kept, one folder a version.

    Raises:
        SpecError: the URI is malformed, or names no model or version of this registry.
        StillhouseError: the registry does not answer, or the copy failed.
    """
    parts = _URI.match(uri)
    if parts is None:
        raise SpecError(uri, "is no registry URI", "Write models:/name/version")
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from . import mlflow_sink  # noqa: F401  sets the client's patience before MLflow is imported

    name, wanted = parts["name"], parts["version"]
    if "'" in name:
        raise SpecError(uri, "has a quote in its name", "Registered names of ours have none")
    try:
        client = MlflowClient(address.uri)
        version = wanted if wanted != "latest" else _highest(client, name, uri)
        found = client.get_model_version(name, version)
        identity = f"{address.shown} {name} {version} {found.creation_timestamp} {found.source}"
        folder = Path(cache_folder) / hashlib.sha256(identity.encode()).hexdigest()[:24]
        if not folder.is_dir():
            source = client.get_model_version_download_uri(name, version)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as draft:
                copy = download_artifacts(
                    artifact_uri=source, dst_path=draft, tracking_uri=address.uri
                )
                _publish(Path(copy), Path(draft), folder)
        return folder
    except MlflowException as error:
        detail = redact(" ".join(str(error).split()))
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise SpecError(
                uri,
                f"is not in the registry at {address.shown} ({detail})",
                "Register the student first (tracking.register_as), or correct the version",
            ) from error
        raise StillhouseError(
            f"{uri}: the registry at {address.shown} gave no answer ({detail}); try again later"
        ) from error


def _highest(client: Any, name: str, uri: str) -> str:
    versions = [int(found.version) for found in client.search_model_versions(f"name = '{name}'")]
    if not versions:
        raise SpecError(uri, "has no version yet", "Register a student under this name first")
    return str(max(versions))


def _publish(copy: Path, draft: Path, folder: Path) -> None:
    """Give a whole copy its name as one act; a second process that was first has the same files."""
    if not copy.resolve().is_relative_to(draft.resolve()):  # a local store hands out its own files
        copy = Path(shutil.copytree(copy, draft / "copy"))
    if copy == draft:
        copy = draft / "whole"
        copy.mkdir()
        for path in [path for path in draft.iterdir() if path != copy]:
            path.rename(copy / path.name)
    try:
        copy.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
