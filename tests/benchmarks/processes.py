"""Memory and processor time of a process and all its descendants. Linux only."""

import re
import threading
from collections import defaultdict
from pathlib import Path

import psutil


class TreeMemory:
    """Samples a process tree until stopped.

    `peak_mib` is the largest sum of proportional set sizes (a page that n processes share counts
    1/n in each) and `at_peak` what each kind of process had then. `summed_peaks_mib` adds up each
    process's own peak resident size (ru_maxrss), so it counts shared pages again, and peaks that
    were at different times.
    """

    def __init__(self, pid: int, every_s: float = 0.5) -> None:
        self._root, self._every_s = psutil.Process(pid), every_s
        self._peaks: dict[int, float] = {}
        self.peak_mib = 0.0
        self.at_peak: dict[str, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def summed_peaks_mib(self) -> float:
        return sum(self._peaks.values())

    def stop(self) -> None:
        """No more samples."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self._sample()

    def _sample(self) -> None:
        now: defaultdict[str, float] = defaultdict(float)
        try:
            family = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
                rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                line = process.cmdline()
            except (FileNotFoundError, ProcessLookupError, psutil.Error):
                continue  # it has ended meanwhile
            now[kind(line, process == self._root)] += _kib(rollup, "Pss") / 1024
            self._peaks[process.pid] = _kib(status, "VmHWM") / 1024
        if sum(now.values()) > self.peak_mib:
            self.peak_mib, self.at_peak = sum(now.values()), dict(now)


def _kib(text: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0  # a process that is ending has no memory left


def processor_seconds() -> dict[str, float]:
    """Seconds of user and system time by kind of process, of this one and all below it."""
    me = psutil.Process()
    spent: defaultdict[str, float] = defaultdict(float)
    for process in [me, *me.children(recursive=True)]:
        try:
            line, times = process.cmdline(), process.cpu_times()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # it has ended meanwhile
        spent[kind(line, process == me)] += times.user + times.system
    return dict(spent)


def kind(line: list[str], driver: bool) -> str:
    """What a process is, from its command line."""
    text = " ".join(line)
    if driver:
        return "driver"
    if text.startswith("ray::"):
        return text.removeprefix("ray::").split(".")[0].split("(")[0].strip()
    return "Ray's own (gcs, raylet, agents)"
