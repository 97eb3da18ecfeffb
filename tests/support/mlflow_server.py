"""A real MLflow server on loopback, to start, kill and start again."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.tracking import answers

START_S = 80.0  # the first start of a server on a fresh file takes most of a minute


@dataclass
class Server:
    """`mlflow server` on a port and a file that stay the same over restarts."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @classmethod
    def on_a_free_port(cls, folder: Path) -> "Server":
        """A server that is not started yet."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return cls(folder, probe.getsockname()[1])

    def start(self) -> None:
        log = open(self.folder / "server.log", "ab")  # noqa: SIM115
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
            *("--host", "127.0.0.1", "--port", str(self.port)),
        ]
        quiet = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, **quiet},
            start_new_session=True,  # so that a kill reaches its workers, and only them
        )
        log.close()
        until = time.monotonic() + START_S
        while not answers(self.uri, 2.0):
            tail = (self.folder / "server.log").read_text()[-2000:]
            assert self.process.poll() is None, f"server ended: {tail}"
            assert time.monotonic() < until, f"server did not come up: {tail}"
            time.sleep(0.2)

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.kill()
