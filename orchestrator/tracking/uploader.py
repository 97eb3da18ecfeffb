"""Drains a run's spool into a tracking store, in one thread, and never at the job's cost.

A store that is down is tried again after growing pauses, for as long as the run lives; what is
not sent stays in the spool. The cursor moves only after the store's answer, so a crash between
the two sends a batch again, which changes nothing: the stores key a metric by (name, time, step,
value), a parameter by its name, and the run and its registered versions are found by our tags.
What the store will never take (a damaged line, a name it refuses) is set aside, with the reason, in
`tracking/refused.jsonl`, and the rest goes on. One uploader a run at a time, by a file lock.
Must not import MLflow: the sink is made in the thread, by the function given.
"""

import fcntl
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from orchestrator.errors import StillhouseError
from orchestrator.evaluation.history import SPOOL, Record

from .address import Address
from .sink import MetricValue, RunHeader, Sink, SinkDown, SinkRefused
from .spool import Cursor, count_lines, has_more, publish_cursor, read_cursor, read_page

logger = logging.getLogger(__name__)

METRICS_A_BATCH = 1000


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What became of a spool."""

    target: str  # the store, without secrets
    spool: Path
    sent: int  # records that the store has
    waiting: int  # records that only the spool has
    refused: int  # records the store will never take
    registered: tuple[str, ...]  # registry URIs of the students registered
    cause: str | None  # why the last try failed; None: it did not

    @property
    def complete(self) -> bool:
        """Whether nothing waits."""
        return self.waiting == 0

    def __str__(self) -> str:
        if self.complete:
            aside = f", {self.refused} refused (see {self.spool.parent / 'refused.jsonl'})"
            return f"{self.sent} records are in {self.target}{aside if self.refused else ''}"
        run_folder = self.spool.parent.parent
        return (
            f"{self.waiting} of {self.sent + self.waiting} records are not in {self.target} yet "
            f"({self.cause or 'out of time'}). They are safe in {self.spool}; send them with "
            f"`stillhouse track {run_folder}`"
        )


@dataclass(frozen=True, slots=True)
class Pace:
    """When the uploader works."""

    every_s: float = 2.0  # between looks at the spool, so that batches grow
    first_pause_s: float = 0.5  # after a failure, doubled after each further one
    longest_pause_s: float = 30.0
    drain_pause_s: float = 1.0  # longest pause while somebody waits for the end


class Uploader:
    """The thread. `open_sink` is called in it, again after each failure to open."""

    def __init__(
        self,
        run_folder: str | Path,
        address: Address,
        open_sink: Callable[[Address], Sink] | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._folder = Path(run_folder)
        self._address = address
        self._open_sink = open_sink or _open_mlflow
        self._pace = pace or Pace()
        self._wake = threading.Event()
        self._state = threading.Condition()
        self._draining = False
        self._stopping = False
        self._cause: str | None = None
        self._thread = threading.Thread(target=self._run, name="tracking-uploader", daemon=True)

    def start(self) -> "Uploader":
        """Begin to send; returns at once."""
        self._thread.start()
        return self

    def drain(self, deadline_s: float) -> DrainReport:
        """Send what is in the spool now, for at most `deadline_s`; never raises for a store."""
        until = time.monotonic() + deadline_s
        with self._state:
            self._draining = True
            self._wake.set()
            while self._waiting() and self._thread.is_alive():
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._state.wait(left)
            self._draining = False
        return self.report()

    def stop(self, deadline_s: float = 1.0) -> None:
        """End the thread; a request on its way is not waited for beyond `deadline_s`."""
        self._stopping = True
        self._wake.set()
        self._thread.join(deadline_s)

    def report(self) -> DrainReport:
        """Where the spool stands now."""
        return report_on(self._folder, self._address, self._cause)

    def _waiting(self) -> bool:
        return has_more(self._folder, read_cursor(self._folder, self._address.shown).offset)

    def _run(self) -> None:
        pace, pause, shipment = self._pace, self._pace.first_pause_s, None
        with _turn(self._folder, lambda: self._stopping) as mine:
            while mine and not self._stopping:
                try:
                    if shipment is None:
                        shipment = Shipment(self._folder, self._address, self._open_sink)
                    while not self._stopping and shipment.send_page():
                        self._told(None)
                    self._told(None)
                    pause, wait_s = pace.first_pause_s, pace.every_s
                except Exception as error:  # whatever it is, tracking must not cost the job
                    expected = isinstance(error, SinkDown)
                    if self._cause is None:
                        logger.warning(
                            "tracking: %s; records wait in %s",
                            error,
                            self._folder / SPOOL,
                            exc_info=not expected,
                        )
                    self._told(str(error) if expected else f"{type(error).__name__}: {error}")
                    wait_s, pause = pause, min(2 * pause, pace.longest_pause_s)
                if self._draining:
                    wait_s = min(wait_s, pace.drain_pause_s)
                self._wake.wait(wait_s)
                self._wake.clear()

    def _told(self, cause: str | None) -> None:
        with self._state:
            self._cause = cause
            self._state.notify_all()


class Shipment:
    """One run on its way into one store: the cursor, the run over there, and the sink.

    Raises:
        SinkDown: the store cannot be opened now.
    """

    def __init__(
        self, run_folder: Path, address: Address, open_sink: Callable[[Address], Sink]
    ) -> None:
        self._folder = run_folder
        self._cursor = read_cursor(run_folder, address.shown)
        self._sink = open_sink(address)
        self._opened = False

    def send_page(self) -> bool:
        """Send the next page of the spool; False when there was nothing to send.

        Raises:
            SinkDown: the store does not take it now; the cursor stands where it is true.
        """
        if not has_more(self._folder, self._cursor.offset):
            return False
        self._open()  # may find that another run over there lacks what the cursor has passed
        entries = read_page(self._folder, self._cursor.offset)
        pairs = [(entry.record, entry.end) for entry in entries]
        for batch in _batches(pairs):
            try:
                self._send([record for record, _ in batch if record is not None])
            except SinkRefused as refusal:
                if not self._sink.alive(self._run):
                    return self._start_over(refusal)
                self._send_singly(batch)
            else:
                damaged = sum(record is None for record, _ in batch)
                if damaged:
                    self._set_aside(None, "a damaged line of the spool")
                self._move(batch[-1][1], len(batch), damaged)
        return True

    @property
    def _run(self) -> str:
        assert self._cursor.mlflow_run is not None, "opened before anything is sent"
        return self._cursor.mlflow_run

    def _open(self) -> None:
        if self._opened:
            return
        try:
            run = self._sink.open(_header(self._folder))
        except SinkRefused as refusal:
            raise SinkDown(str(refusal)) from refusal  # nothing can be sent without a run
        if self._cursor.mlflow_run not in (None, run):  # another run there: it lacks the rest
            self._cursor = Cursor(self._cursor.target)
        self._publish(replace(self._cursor, mlflow_run=run))
        self._opened = True

    def _start_over(self, refusal: SinkRefused) -> bool:
        """The run is gone over there (a new database, a deleted run): make it again, whole."""
        logger.warning("tracking: %s; the run is gone there and is recorded anew", refusal)
        self._publish(Cursor(self._cursor.target))
        self._opened = False
        return True

    def _send_singly(self, batch: list[tuple[Record | None, int]]) -> None:
        for record, end in batch:
            try:
                self._send([record] if record is not None else [])
            except SinkRefused as refusal:
                self._set_aside(record, str(refusal))
                self._move(end, 1, 1)
            else:
                self._move(end, 1, 0)

    def _send(self, records: list[Record]) -> None:
        if not records:
            return
        sink, run, kind = self._sink, self._run, records[0].kind
        if kind == "metrics":
            sink.metrics(run, [value for record in records for value in _values(record)])
            return
        for record in records:
            body = record.body
            match kind:
                case "begin":
                    sink.status(run, "running", record.time_ms)
                case "params":
                    sink.params(run, body["values"])
                case "tags":
                    sink.tags(run, body["values"])
                case "lineage":
                    values = body["values"]
                    sink.tags(run, {f"lineage.{key}": value for key, value in values.items()})
                case "text":
                    sink.text(run, body["name"], body["text"])
                case "artifact":
                    sink.artifact(run, self._folder / body["path"], body["folder"])
                case "register":
                    key = f"export-{record.number}"
                    path, tags = self._folder / body["path"], body.get("tags", {})
                    uri = sink.register(run, path, body["name"], key, tags)
                    known = self._cursor.registered
                    if uri not in known:
                        self._publish(replace(self._cursor, registered=(*known, uri)))
                case "status":
                    sink.status(run, body["status"], record.time_ms)
                case _:
                    raise SinkRefused(f"records of kind {kind!r} are not known here")

    def _set_aside(self, record: Record | None, reason: str) -> None:
        logger.warning("tracking: set aside: %s", reason)
        number = None if record is None else record.number
        with open(self._folder / SPOOL.parent / "refused.jsonl", "a", encoding="utf-8") as aside:
            aside.write(json.dumps({"n": number, "reason": reason}) + "\n")

    def _move(self, end: int, records: int, refused: int) -> None:
        cursor = self._cursor
        self._publish(
            replace(
                cursor,
                offset=end,
                records=cursor.records + records,
                refused=cursor.refused + refused,
            )
        )

    def _publish(self, cursor: Cursor) -> None:
        publish_cursor(self._folder, cursor)
        self._cursor = cursor


def upload(
    run_folder: str | Path,
    address: Address | None = None,
    deadline_s: float = 600.0,
    open_sink: Callable[[Address], Sink] | None = None,
) -> DrainReport:
    """Send what a run's spool still holds: `stillhouse track RUN`.

    Args:
        run_folder: folder of the run.
        address: the store; None: the one the run was recorded for.
        deadline_s: how long to try.

    Raises:
        StillhouseError: the folder has no spool, or the run's address needs a password that is
            not kept on disk.
    """
    folder = Path(run_folder)
    if not (folder / SPOOL).is_file():
        raise StillhouseError(f"{folder} has no {SPOOL}; give the folder of a run")
    address = address or _recorded_address(folder)
    uploader = Uploader(folder, address, open_sink, Pace(every_s=0.1)).start()
    try:
        return uploader.drain(deadline_s)
    finally:
        uploader.stop()


def report_on(run_folder: Path, address: Address, cause: str | None) -> DrainReport:
    """Where a spool stands, from its files."""
    cursor = read_cursor(run_folder, address.shown)
    return DrainReport(
        target=address.shown,
        spool=run_folder / SPOOL,
        sent=cursor.records - cursor.refused,
        waiting=count_lines(run_folder, cursor.offset),
        refused=cursor.refused,
        registered=cursor.registered,
        cause=cause,
    )


def _open_mlflow(address: Address) -> Sink:
    from .mlflow_sink import MlflowSink  # seconds: in the thread, on first use

    return MlflowSink(address)


def _first_record(folder: Path) -> Record:
    entries = read_page(folder, 0, limit_bytes=1)
    record = entries[0].record if entries else None
    if record is None or record.kind != "begin":
        raise StillhouseError(
            f"{folder / SPOOL} does not begin with a run's header; it cannot be sent"
        )
    return record


def _header(folder: Path) -> RunHeader:
    body = _first_record(folder).body
    return RunHeader(body["run_id"], body["name"], body["experiment"], body["parent"])


def _recorded_address(folder: Path) -> Address:
    body = _first_record(folder).body
    if body["has_secret"]:
        raise StillhouseError(
            f"the run was recorded for {body['uri']}, whose password is not kept on disk; give "
            "the whole tracking URI"
        )
    return Address(body["uri"], body["artifact_root"])


def _batches(
    pairs: list[tuple[Record | None, int]],
) -> Iterator[list[tuple[Record | None, int]]]:
    """Neighbours of one kind together, metrics up to a request's worth; all others alone."""
    for kind, group in groupby(pairs, lambda pair: pair[0].kind if pair[0] else None):
        batch: list[tuple[Record | None, int]] = []
        size = 0
        for record, end in group:
            weight = (
                len(record.body["values"])
                if record is not None and kind == "metrics"
                else METRICS_A_BATCH
            )
            if batch and size + weight > METRICS_A_BATCH:
                yield batch
                batch, size = [], 0
            batch.append((record, end))
            size += weight
        yield batch


def _values(record: Record) -> list[MetricValue]:
    step = int(record.body["step"])
    return [
        MetricValue(name, float(value), step, record.time_ms)
        for name, value in record.body["values"].items()
    ]


@contextmanager
def _turn(folder: Path, given_up: Callable[[], bool]) -> Iterator[bool]:
    """Wait for this process's turn to upload the run; two at once could create it twice."""
    with open(folder / SPOOL.parent / "upload.lock", "ab") as lock:
        while not given_up():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.2)
            else:
                yield True  # closing the file gives the lock back
                return
        yield False
