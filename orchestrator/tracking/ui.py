"""`stillhouse ui`: MLflow's server over the runs of one storage folder, on this machine only."""

import subprocess
import sys
from pathlib import Path

from orchestrator.errors import SpecError

from .address import address_of


def ui_command(storage: str | Path, port: int) -> list[str]:
    """The command line of the server, bound to 127.0.0.1.

    Raises:
        SpecError: the storage has no tracking file yet, or the port is out of range.
    """
    address = address_of(None, storage)
    database = Path(address.uri.removeprefix("sqlite:///"))
    if not database.is_file():
        raise SpecError(
            "storage",
            f"{storage} has no mlflow.db, so no run was recorded there",
            "Run a job first, or give the storage folder of your jobs",
        )
    if not 1 <= port <= 65535:
        raise SpecError("port", f"{port} is no port", "Use 1024 to 65535")
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", address.uri),
        *("--artifacts-destination", str(address.artifact_root)),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]


def open_ui(storage: str | Path, port: int = 5000) -> subprocess.Popen[bytes]:
    """Start the server; the caller waits for it and ends it.

    It takes ten seconds to a minute until http://127.0.0.1:<port> answers.

    Raises:
        SpecError: as `ui_command`.
    """
    return subprocess.Popen(ui_command(storage, port))
