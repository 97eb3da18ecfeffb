"""The uploader against a store that fails on demand: it costs nothing and nothing is lost."""

import json
import pickle
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from orchestrator.errors import SpecError, StillhouseError
from orchestrator.evaluation.history import read_history
from orchestrator.spec.job import TrackingSpec
from orchestrator.tracking import Address, Tracker, send_rest, upload
from orchestrator.tracking.sink import MetricValue, RunHeader, SinkDown, SinkRefused
from orchestrator.tracking.spool import Spool
from orchestrator.tracking.tracker import flatten
from orchestrator.tracking.uploader import Pace, Uploader

QUICK = Pace(every_s=0.01, first_pause_s=0.01, longest_pause_s=0.05, drain_pause_s=0.02)
URI = "http://127.0.0.1:9"


class Store:
    """A tracking store in memory that keeps MLflow's rules; `hook` may fail any call."""

    def __init__(self) -> None:
        self.runs: dict[str, str] = {}  # our id -> theirs
        self.made = 0
        self.points: set[tuple[str, str, float, int, int]] = set()
        self.sent: list[int] = []  # sizes of metric batches
        self.pairs: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.files: list[str] = []
        self.versions: dict[tuple[str, str], str] = {}
        self.statuses: list[str] = []
        self.hook: Callable[[str], None] = lambda call: None
        self.after: Callable[[str], None] = lambda call: None

    def __call__(self, address: Address) -> "Store":
        self.hook("connect")
        return self

    def open(self, header: RunHeader) -> str:
        self.hook("open")
        if header.run_id not in self.runs:
            self.made += 1
            self.runs[header.run_id] = f"there-{self.made}"
        self.after("open")
        return self.runs[header.run_id]

    def alive(self, run: str) -> bool:
        self.hook("alive")
        return run in self.runs.values()

    def metrics(self, run: str, values: Sequence[MetricValue]) -> None:
        self._check("metrics", run)
        if any(value.key == "bad" for value in values):
            raise SinkRefused("bad name")
        self.sent.append(len(values))
        self.points |= {(run, v.key, v.value, v.step, v.time_ms) for v in values}
        self.after("metrics")

    def params(self, run: str, values: Mapping[str, str]) -> None:
        self._check("params", run)
        self.pairs |= values

    def tags(self, run: str, values: Mapping[str, str]) -> None:
        self._check("tags", run)
        self.pairs |= values

    def text(self, run: str, name: str, text: str) -> None:
        self._check("text", run)
        self.texts[name] = text

    def artifact(self, run: str, path: Path, folder: str | None) -> None:
        self._check("artifact", run)
        self.files.append(path.name)

    def register(self, run: str, path: Path, name: str, key: str, tags: Mapping[str, str]) -> str:
        self._check("register", run)
        self.facts = dict(tags)
        uri = self.versions.setdefault((name, key), f"models:/{name}/{len(self.versions) + 1}")
        self.after("register")
        return uri

    def status(self, run: str, status: str, time_ms: int) -> None:
        self._check("status", run)
        self.statuses.append(status)

    def _check(self, call: str, run: str) -> None:
        self.hook(call)
        if run not in self.runs.values():
            raise SinkRefused(f"no run {run}")


def _tracker(folder: Path, store: Store, **spec: object) -> Tracker:
    return Tracker(
        folder / "run",
        "run-1",
        TrackingSpec.model_validate({"uri": URI, **spec}),
        folder,
        open_sink=store,
        pace=QUICK,
    )


def _down(call: str) -> None:
    raise SinkDown("nobody there")


def _until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    until = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.005)


def test_everything_a_run_says_arrives(tmp_path: Path) -> None:
    store = Store()
    tracker = _tracker(tmp_path, store, tags={"team": "a"})
    tracker.params({"name": "job", "training": {"steps": 3}})
    for step in range(1, 4):
        tracker.metrics(step, {"loss/total": 1.0 / step})
    tracker.lineage({"teacher": {"fingerprint": "abc"}})
    (tmp_path / "run" / "report.html").write_text("x")
    tracker.artifact(tmp_path / "run" / "report.html")
    (tmp_path / "run" / "export").mkdir()
    tracker.register_student(tmp_path / "run" / "export", "small", {"search.trial": "3"})
    report = tracker.finish("finished", deadline_s=10)
    assert report.complete and report.refused == 0
    assert report.registered == ("models:/small/1",) and store.facts == {"search.trial": "3"}
    assert sorted(point[3] for point in store.points) == [1, 2, 3]
    assert store.pairs == {
        "team": "a",
        "name": "job",
        "training.steps": "3",
        "lineage.teacher.fingerprint": "abc",
    }
    assert "steps: 3" in store.texts["job.yaml"]
    assert store.files == ["report.html"]
    assert store.statuses == ["running", "finished"]


def test_a_store_that_is_down_costs_the_job_nothing(tmp_path: Path) -> None:
    store = Store()
    store.hook = _down
    began = time.monotonic()
    tracker = _tracker(tmp_path, store)
    for step in range(1, 501):
        tracker.metrics(step, {"loss/total": 1.0})
    assert time.monotonic() - began < 5.0
    began = time.monotonic()
    report = tracker.finish("finished", deadline_s=0.3)
    assert time.monotonic() - began < 5.0
    assert not report.complete
    assert report.waiting == 502
    assert f"stillhouse track {tmp_path / 'run'}" in str(report)
    assert "nobody there" in str(report)
    assert len(read_history(tmp_path / "run").metrics["loss/total"]) == 500


def test_what_was_spooled_is_sent_later_by_upload(tmp_path: Path) -> None:
    store = Store()
    store.hook = _down
    tracker = _tracker(tmp_path, store)
    tracker.metrics(1, {"loss/total": 1.0})
    assert not tracker.finish("failed", deadline_s=0.1).complete
    store.hook = lambda call: None
    report = upload(tmp_path / "run", deadline_s=10, open_sink=store)
    assert report.complete and report.sent == 3
    assert store.statuses[-1] == "failed"
    assert upload(tmp_path / "run", deadline_s=10, open_sink=store).complete
    assert (store.made, len(store.points)) == (1, 1)


def test_a_store_that_comes_back_during_the_run_gets_everything(tmp_path: Path) -> None:
    store = Store()
    tracker = _tracker(tmp_path, store)
    tracker.metrics(1, {"loss/total": 1.0})
    _until(lambda: len(store.points) == 1)
    store.hook = _down
    for step in range(2, 50):
        tracker.metrics(step, {"loss/total": 1.0})
    store.hook = lambda call: None
    assert tracker.finish("finished", deadline_s=10).complete
    assert sorted(point[3] for point in store.points) == list(range(1, 50))


@pytest.mark.parametrize("call", ["open", "metrics", "register"])
def test_an_answer_that_is_lost_makes_nothing_twice(tmp_path: Path, call: str) -> None:
    """The store did it, the answer never came: the crash between upload and cursor."""
    store, lost = Store(), []

    def lose_once(done: str) -> None:
        if done == call and not lost:
            lost.append(done)
            raise SinkDown("answer lost")

    store.after = lose_once
    tracker = _tracker(tmp_path, store)
    tracker.metrics(1, {"loss/total": 1.0})
    (tmp_path / "run" / "export").mkdir()
    tracker.register_student(tmp_path / "run" / "export", "small")
    assert tracker.finish("finished", deadline_s=10).complete
    assert lost == [call]
    assert store.made == 1
    assert len(store.points) == 1
    assert list(store.versions.values()) == ["models:/small/1"]


def test_a_restarted_job_goes_on_in_the_same_run_and_records_no_step_twice(
    tmp_path: Path,
) -> None:
    store = Store()
    first = _tracker(tmp_path, store)
    for step in range(1, 6):
        first.metrics(step, {"loss/total": float(step)})
    first.finish("interrupted", deadline_s=10)
    again = _tracker(tmp_path, store)
    for step in range(4, 9):  # resumed from the checkpoint at step 3
        again.metrics(step, {"loss/total": float(step)})
    assert again.finish("finished", deadline_s=10).complete
    assert store.made == 1
    assert sorted(point[3] for point in store.points) == list(range(1, 9))
    assert store.statuses == ["running", "interrupted", "running", "finished"]
    assert read_history(tmp_path / "run").starts == 2


def test_what_the_store_refuses_is_set_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    store = Store()
    tracker = _tracker(tmp_path, store)
    tracker.metrics(1, {"good": 1.0})
    tracker.metrics(2, {"bad": 1.0})
    tracker.metrics(3, {"good": 1.0})
    report = tracker.finish("finished", deadline_s=10)
    assert report.complete and report.refused == 1
    assert sorted(point[3] for point in store.points) == [1, 3]
    (aside,) = (tmp_path / "run" / "tracking" / "refused.jsonl").read_text().splitlines()
    assert json.loads(aside)["reason"] == "bad name"
    assert "refused.jsonl" in str(report)


def test_a_damaged_line_is_set_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    store = Store()
    store.hook = _down
    tracker = _tracker(tmp_path, store)
    tracker.metrics(1, {"a": 1.0})
    tracker.metrics(2, {"a": 1.0})
    tracker.finish("finished", deadline_s=0.05)
    path = tmp_path / "run" / "tracking" / "spool.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"\x00" * 9 + b"\n", *lines[2:]]))
    store.hook = lambda call: None
    report = upload(tmp_path / "run", deadline_s=10, open_sink=store)
    assert report.complete and report.refused == 1
    assert [point[3] for point in store.points] == [2]


def test_a_run_that_vanished_over_there_is_recorded_anew_and_whole(tmp_path: Path) -> None:
    store = Store()
    tracker = _tracker(tmp_path, store)
    tracker.metrics(1, {"a": 1.0})
    _until(lambda: len(store.points) == 1)
    store.runs.clear()
    tracker.metrics(2, {"a": 1.0})
    assert tracker.finish("finished", deadline_s=10).complete
    assert {point[3] for point in store.points if point[0] == "there-2"} == {1, 2}


def test_a_run_that_vanished_between_two_starts_is_recorded_whole(tmp_path: Path) -> None:
    store = Store()
    first = _tracker(tmp_path, store)
    first.metrics(1, {"a": 1.0})
    assert first.finish("interrupted", deadline_s=10).complete
    store.runs.clear()
    again = _tracker(tmp_path, store)
    again.metrics(2, {"a": 1.0})
    assert again.finish("finished", deadline_s=10).complete
    assert {point[3] for point in store.points if point[0] == "there-2"} == {1, 2}


def test_metrics_travel_in_batches_of_at_most_a_thousand(tmp_path: Path) -> None:
    store = Store()
    store.hook = _down
    tracker = _tracker(tmp_path, store)
    for step in range(1, 1202):
        tracker.metrics(step, {"a": 1.0, "b": 2.0})
    store.hook = lambda call: None
    assert tracker.finish("finished", deadline_s=10).complete
    assert sum(store.sent) == len(store.points) == 2402
    assert max(store.sent) <= 1000
    assert len(store.sent) <= 5


def test_two_uploaders_never_work_on_one_run_at_once(tmp_path: Path) -> None:
    store, gate, entered = Store(), threading.Event(), threading.Event()
    calls: list[str] = []

    def hold(call: str) -> None:
        calls.append(call)
        if call == "open":
            entered.set()
            assert gate.wait(10)

    store.hook = hold
    tracker = _tracker(tmp_path, store)
    assert entered.wait(10)
    second = Uploader(tmp_path / "run", Address(URI), store, QUICK).start()
    assert not second.drain(0.5).complete
    assert calls.count("open") == 1
    gate.set()
    assert tracker.finish("finished", deadline_s=10).complete
    assert second.drain(10).complete
    second.stop()
    assert store.made == 1


def test_an_unexpected_error_of_the_store_does_not_end_the_uploader(tmp_path: Path) -> None:
    store, raised = Store(), []

    def once(call: str) -> None:
        if call == "metrics" and not raised:
            raised.append(call)
            raise RuntimeError("a bug")

    store.hook = once
    tracker = _tracker(tmp_path, store)
    tracker.metrics(1, {"a": 1.0})
    assert tracker.finish("finished", deadline_s=10).complete
    assert raised and len(store.points) == 1


def test_steps_are_thinned_but_held_out_measurements_are_not(tmp_path: Path) -> None:
    store = Store()
    tracker = _tracker(tmp_path, store, every_steps=5)
    for step in range(1, 12):
        tracker.metrics(step, {"loss/total": 1.0, "held_out/kl": 2.0})
    tracker.finish("finished", deadline_s=10)
    steps = {name: {p[3] for p in store.points if p[1] == name} for name in ("loss/total",)}
    assert steps == {"loss/total": {5, 10}}
    assert len([p for p in store.points if p[1] == "held_out/kl"]) == 11


def test_a_password_reaches_no_file_of_the_run(tmp_path: Path) -> None:
    store = Store()
    uri = "http://me:hunter2@127.0.0.1:9"
    spec = TrackingSpec(uri=uri)
    tracker = Tracker(tmp_path / "run", "run-1", spec, tmp_path, open_sink=store, pace=QUICK)
    tracker.params({"tracking": {"uri": uri}})
    tracker.tags({"where": uri})
    report = tracker.finish("finished", deadline_s=10)
    assert report.complete
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert b"hunter2" not in path.read_bytes(), path
    assert "hunter2" not in str(store.pairs) + str(store.texts) + str(report) + repr(report)
    with pytest.raises(StillhouseError, match="password is not kept"):
        upload(tmp_path / "run", open_sink=store)
    assert upload(tmp_path / "run", Address(uri), 10, store).complete


def test_artifacts_must_lie_inside_the_run_folder(tmp_path: Path) -> None:
    tracker = _tracker(tmp_path, Store())
    (tmp_path / "outside").write_text("x")
    with pytest.raises(ValueError, match="not inside"):
        tracker.artifact(tmp_path / "outside")
    with pytest.raises(ValueError, match="does not exist"):
        tracker.artifact(tmp_path / "run" / "missing")
    tracker.finish("finished", deadline_s=10)


def test_a_run_id_with_a_quote_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="quote"):
        Tracker(tmp_path, "a'b", TrackingSpec(uri=URI), tmp_path, open_sink=Store())


def test_upload_of_a_folder_without_a_spool_says_so(tmp_path: Path) -> None:
    with pytest.raises(StillhouseError, match="give the folder of a run"):
        upload(tmp_path)
    Spool(tmp_path).close()
    with pytest.raises(StillhouseError, match="does not begin"):
        upload(tmp_path)


def test_nested_values_become_dotted_text() -> None:
    values = {
        "a": {"b": [{"c": 1}, {"c": None}]},
        "betas": (0.9, 0.95),
        "on": True,
        "empty": {},
        "text": "1",
    }
    assert flatten(values) == {
        "a.b.0.c": "1",
        "betas": "[0.9, 0.95]",
        "on": "true",
        "empty": "{}",
        "text": "1",
    }


@pytest.mark.parametrize("error", [SinkDown("why"), SinkRefused("why")])
def test_sink_errors_survive_pickling(error: StillhouseError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == "why"


def test_what_runs_left_unsent_is_sent_once_the_store_is_back(tmp_path: Path) -> None:
    store, address = Store(), Address(f"sqlite:///{tmp_path}/mlflow.db")
    store.hook = _down
    folders = [tmp_path / name for name in ("ended", "killed", "nothing")]
    spec = TrackingSpec(uri=address.uri)
    ended, killed = (
        Tracker(folder, folder.name, spec, tmp_path, open_sink=store, pace=QUICK)
        for folder in folders[:2]
    )
    for tracker in (ended, killed):
        tracker.metrics(1, {"loss/total": 2.0})
    ended.end("finished")
    assert not ended.drain(deadline_s=0.1).complete
    killed._uploader.stop()  # as its process's death would
    assert send_rest(folders, Address(URI), deadline_s=60.0) == 6, "a store that is down"
    store.hook = lambda call: None
    assert send_rest(folders, address, deadline_s=30.0, open_sink=store) == 0
    assert len(store.points) == 2 and sorted(store.runs) == ["ended", "killed"]
    assert store.statuses == ["running", "finished", "running", "interrupted"]
    assert send_rest(folders, address, deadline_s=30.0, open_sink=store) == 0
    assert len(store.statuses) == 4, "nothing is sent twice"
