"""Where runs are recorded, and what must not be shown of it."""

import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.tracking import address_of, answers, redact
from orchestrator.tracking.address import redact_all
from orchestrator.tracking.ui import ui_command


def test_the_default_is_a_sqlite_file_beside_the_runs(tmp_path: Path) -> None:
    address = address_of(None, tmp_path)
    assert address.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert address.artifact_root == f"{tmp_path}/mlartifacts"


def test_remote_storage_needs_a_tracking_uri() -> None:
    with pytest.raises(SpecError, match=r"tracking\.uri"):
        address_of(None, "s3://bucket/runs")


@pytest.mark.parametrize("uri", ["/tmp/runs", "./runs", "file:/tmp/runs"])
def test_a_folder_store_is_refused_with_the_remedy(uri: str) -> None:
    with pytest.raises(SpecError, match="sqlite:///"):
        address_of(uri, ".")


def test_passwords_are_never_shown() -> None:
    address = address_of("https://user:hunter2@host:5000/x", ".")
    assert address.shown == "https://***@host:5000/x"
    assert address.has_secret
    assert "hunter2" not in repr(address)
    assert redact("Get http://a:b@c/d failed, http://e/f@g too") == (
        "Get http://***@c/d failed, http://e/f@g too"
    )
    assert redact_all({"a": ["http://u:p@h", 1], "b": {"c": None}}) == {
        "a": ["http://***@h", 1],
        "b": {"c": None},
    }


class _Health(BaseHTTPRequestHandler):
    code = 200
    seen: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization"))
        self.send_response(self.code)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_answers_tells_a_live_server_from_a_dead_one() -> None:
    server = HTTPServer(("127.0.0.1", 0), _Health)
    port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert answers(f"http://u:p%40@127.0.0.1:{port}/", 5)
        assert _Health.seen == ["Basic dTpwQA=="]  # u:p@
        _Health.code = 401
        assert answers(f"http://127.0.0.1:{port}", 5)
        _Health.code = 503
        assert not answers(f"http://127.0.0.1:{port}", 5)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not answers(f"http://127.0.0.1:{port}", 5)


def test_a_server_that_accepts_and_says_nothing_does_not_answer() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert not answers(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2)


def test_a_sqlite_file_answers_where_it_can_be_written(tmp_path: Path) -> None:
    assert answers(f"sqlite:///{tmp_path}/new/mlflow.db")
    (tmp_path / "file").write_text("x")
    assert not answers(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_the_ui_is_bound_to_this_machine_and_needs_runs(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no run was recorded"):
        ui_command(tmp_path, 5000)
    (tmp_path / "mlflow.db").touch()
    command = ui_command(tmp_path, 5001)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5001"
    with pytest.raises(SpecError, match="port"):
        ui_command(tmp_path, 70000)


def test_importing_the_room_does_not_import_mlflow() -> None:
    code = (
        "import sys, orchestrator.tracking, orchestrator.evaluation.report;"
        "bad = {'mlflow', 'torch', 'ray', 'matplotlib'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
