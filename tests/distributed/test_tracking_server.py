"""A real MLflow server on loopback: what arrives, what survives its death, what can be fetched."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import Server

from orchestrator.errors import SpecError
from orchestrator.spec.job import TrackingSpec
from orchestrator.tracking import Address, Tracker, answers, resolve_registry_uri, upload
from orchestrator.tracking.spool import Cursor, publish_cursor, read_cursor
from orchestrator.tracking.uploader import Pace

QUICK = Pace(every_s=0.1, first_pause_s=0.1, longest_pause_s=0.5, drain_pause_s=0.2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server.on_a_free_port(tmp_path_factory.mktemp("server"))
    try:
        found.start()
        yield found
    finally:
        found.stop()


def _tracker(folder: Path, run_id: str, server: Server) -> Tracker:
    spec = TrackingSpec(uri=server.uri, experiment="loopback")
    return Tracker(folder, run_id, spec, folder.parent, pace=QUICK)


def _client(server: Server) -> Any:
    from orchestrator.tracking import mlflow_sink

    return mlflow_sink.MlflowClient(server.uri)


def _runs(server: Server, run_id: str) -> list[Any]:
    client = _client(server)
    experiment = client.get_experiment_by_name("loopback")
    return client.search_runs([experiment.experiment_id], f"tags.`stillhouse.run_id` = '{run_id}'")


def _history(server: Server, run: Any, key: str) -> list[tuple[int, float]]:
    points = _client(server).get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in points)


def _export(folder: Path) -> Path:
    export = folder / "export"
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    (export / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    return export


def test_a_run_its_files_and_its_student_arrive(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tracker = _tracker(folder, "whole", server)
    export = _export(folder)
    tracker.params({"name": "whole", "deepspeed": {"odd key!": 1}, "long": "x" * 9000})
    tracker.metrics(1, {"loss/total": 2.0, "schedule/forward_kl.weight": 0.5})
    tracker.metrics(2, {"loss/total": float("nan")})
    tracker.lineage({"data": {"version": "v1"}})
    tracker.text("generated.txt", "def f(): ü")
    tracker.artifact(export / "config.json", "extra")
    tracker.register_student(export, "small-student")
    report = tracker.finish("finished", deadline_s=60)
    assert report.complete and report.refused == 0, report

    (run,) = _runs(server, "whole")
    assert run.info.status == "FINISHED"
    assert run.data.params["name"] == "whole"
    assert len(run.data.params["long"]) == 6000
    assert run.data.tags["lineage.data.version"] == "v1"
    assert _history(server, run, "schedule/forward_kl.weight") == [(1, 0.5)]
    assert len(_history(server, run, "loss/total")) == 2
    paths = {file.path for file in _client(server).list_artifacts(run.info.run_id)}
    assert {"job.yaml", "generated.txt", "extra", "student"} <= paths

    assert report.registered == ("models:/small-student/1",)
    for uri in ("models:/small-student/1", "models:/small-student/latest"):
        fetched = resolve_registry_uri(uri, Address(server.uri), tmp_path / "registry")
        wanted = (export / "model.safetensors").read_bytes()
        assert (fetched / "model.safetensors").read_bytes() == wanted
        assert (fetched / "config.json").is_file()
    assert len(list((tmp_path / "registry").iterdir())) == 1
    with pytest.raises(SpecError, match="is not in the registry"):
        resolve_registry_uri("models:/small-student/9", Address(server.uri), tmp_path / "r")


def test_a_server_killed_in_the_middle_misses_nothing_and_repeats_nothing(
    server: Server, tmp_path: Path
) -> None:
    tracker = _tracker(tmp_path / "run", "killed", server)
    for step in range(1, 101):
        tracker.metrics(step, {"loss/total": step / 7, "train/learning_rate": 0.1})
    until = time.monotonic() + 60
    while not (_exists(server) and _runs(server, "killed")):
        assert time.monotonic() < until
        time.sleep(0.1)
    server.kill()
    assert not answers(server.uri, 1.0)
    began = time.monotonic()
    for step in range(101, 401):
        tracker.metrics(step, {"loss/total": step / 7, "train/learning_rate": 0.1})
    assert time.monotonic() - began < 5.0
    server.start()
    for step in range(401, 501):
        tracker.metrics(step, {"loss/total": step / 7, "train/learning_rate": 0.1})
    report = tracker.finish("finished", deadline_s=60)
    assert report.complete and report.refused == 0, report
    (run,) = _runs(server, "killed")
    assert _history(server, run, "loss/total") == [(s, s / 7) for s in range(1, 501)]
    assert len(_history(server, run, "train/learning_rate")) == 500


def _exists(server: Server) -> bool:
    return _client(server).get_experiment_by_name("loopback") is not None


def test_sending_all_again_changes_nothing(server: Server, tmp_path: Path) -> None:
    """As after a crash between the server's answer and the cursor, at the worst place."""
    folder = tmp_path / "run"
    tracker = _tracker(folder, "again", server)
    tracker.params({"name": "again"})
    for step in range(1, 21):
        tracker.metrics(step, {"loss/total": 1 / step, "held_out/kl": float("nan")})
    tracker.register_student(_export(folder), "again-student")
    assert tracker.finish("finished", deadline_s=60).complete
    before = read_cursor(folder, server.uri)
    publish_cursor(folder, Cursor(server.uri))
    report = upload(folder, deadline_s=60)
    assert report.complete and report.refused == 0, report
    after = read_cursor(folder, server.uri)
    assert after == before
    (run,) = _runs(server, "again")
    assert run.info.status == "FINISHED"
    assert _history(server, run, "loss/total") == [(s, 1 / s) for s in range(1, 21)]
    assert len(_history(server, run, "held_out/kl")) == 20
    assert len(_client(server).search_model_versions("name = 'again-student'")) == 1


def test_a_run_deleted_over_there_is_recorded_anew(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tracker = _tracker(folder, "deleted", server)
    tracker.metrics(1, {"loss/total": 1.0})
    assert tracker.finish("interrupted", deadline_s=60).complete
    (run,) = _runs(server, "deleted")
    assert run.info.status == "KILLED"
    _client(server).delete_run(run.info.run_id)
    again = _tracker(folder, "deleted", server)
    again.metrics(2, {"loss/total": 2.0})
    assert again.finish("finished", deadline_s=60).complete
    (fresh,) = _runs(server, "deleted")
    assert fresh.info.run_id != run.info.run_id
    assert _history(server, fresh, "loss/total") == [(1, 1.0), (2, 2.0)]


def test_a_trial_hangs_below_its_search(server: Server, tmp_path: Path) -> None:
    spec = TrackingSpec(uri=server.uri, experiment="loopback")
    trial = Tracker(
        tmp_path / "trial", "trial-1", spec, tmp_path, parent="search-1", pace=QUICK
    )  # before its parent is recorded: it waits
    search = _tracker(tmp_path / "search", "search-1", server)
    assert search.finish("finished", deadline_s=60).complete
    assert trial.finish("finished", deadline_s=60).complete
    (parent,), (child,) = _runs(server, "search-1"), _runs(server, "trial-1")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_the_default_store_is_a_file_and_serves_the_registry(tmp_path: Path) -> None:
    from orchestrator.tracking import address_of

    folder = tmp_path / "runs" / "a"
    tracker = Tracker(folder, "a-1", TrackingSpec(), tmp_path / "runs", pace=QUICK)
    tracker.metrics(1, {"loss/total": 1.0})
    tracker.register_student(_export(folder), "local")
    report = tracker.finish("finished", deadline_s=100)
    assert report.complete and report.registered == ("models:/local/1",), report
    address = address_of(None, tmp_path / "runs")
    fetched = resolve_registry_uri("models:/local/1", address, tmp_path / "runs" / "registry")
    assert (fetched / "model.safetensors").stat().st_size == 256 * 64
    assert (tmp_path / "runs" / "mlartifacts" / "stillhouse").is_dir()
