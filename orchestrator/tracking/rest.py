"""What several runs left unsent: a store that was down while they ended is sent it later."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from orchestrator.evaluation.history import SPOOL, parse_record

from .address import Address, answers
from .sink import Sink
from .spool import Spool
from .uploader import report_on, upload


def send_rest(
    run_folders: Iterable[Path],
    address: Address,
    deadline_s: float = 60.0,
    open_sink: Callable[[Address], Sink] | None = None,
) -> int:
    """Send what the spools of runs still hold; how many records are left.

    A run that a kill has left open is recorded as interrupted.

    Args:
        run_folders: of runs that nobody records now; those without a spool are passed over.
        address: the store that they were recorded for.
        deadline_s: for all of them together; a store that does not answer is not waited for.
        open_sink: makes the store's client; None: MLflow.
    """
    until = time.monotonic() + deadline_s
    waiting: dict[Path, int] = {}
    for folder in run_folders:
        if (folder / SPOOL).is_file():
            _end(folder)
            waiting[folder] = report_on(folder, address, None).waiting
    waiting = {folder: records for folder, records in waiting.items() if records}
    if not waiting or not answers(address.uri):
        return sum(waiting.values())
    left = 0
    for folder in waiting:
        patience_s = max(0.0, until - time.monotonic())
        left += upload(folder, address, patience_s, open_sink).waiting
    return left


def _end(folder: Path) -> None:
    with open(folder / SPOOL, "rb") as lines:
        last = [parse_record(line) for line in deque(lines, maxlen=1)]
    if not last or last[0] is None or last[0].kind != "status":
        with Spool(folder) as spool:
            spool.append("status", {"status": "interrupted"})
