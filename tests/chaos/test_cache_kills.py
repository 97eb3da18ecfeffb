"""Whatever happens to a cache, a job ends with the weights it has without one."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny

from orchestrator.events import Event, JobStarted, StepDone
from orchestrator.pool.cache import Cache
from orchestrator.run_folder import RunFolder
from orchestrator.session import Session
from orchestrator.spec import JobSpec

pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,
    pytest.mark.slow,  # five minutes of restarts; `make chaos` runs them
    pytest.mark.timeout(300),
]

SEGMENT = "segments/*.arrow"
STEPS, MANY_STEPS = 24, 160
"""Steps from the cache take milliseconds: what is struck while it reads must last until then."""


@dataclass
class Stage:
    """One Ray session; every test has a cache directory of its own."""

    session: Session
    root: Path
    strike: Callable[[], object] | None = None
    struck: bool = False
    played: int = 0
    starts: int = 0  # of the job that is played: one more than its group started again

    def job(self, cache: str | None, steps: int = STEPS) -> JobSpec:
        spec = tiny.job(self.root / "teacher", self.root / "text", self.root / "runs")
        raw = spec.model_dump(mode="json", by_alias=True)
        raw["training"]["steps"] = steps
        if cache is not None:
            # Without memory of its own, so that a later epoch reads what was harmed meanwhile.
            raw["cache"] = {"path": str(self.root / cache), "memory_bytes": 0}
        return JobSpec.model_validate(raw)

    def play(self, spec: JobSpec, strike: Callable[[], object] | None = None) -> dict[str, Any]:
        """Run a job from its start; strike when the driver hears of its sixth step."""
        self.played += 1
        self.strike, self.struck, self.starts = strike, False, 0
        folder = RunFolder.at(spec.storage, f"tiny-{self.played}")
        folder.write([spec], 0, [folder.run_id])
        summary = self.session.run_job(spec, folder, {}, resume=False)
        assert self.struck == (strike is not None), "nothing was struck"
        return summary

    def on_event(self, event: Event) -> None:
        self.starts += isinstance(event, JobStarted)
        if self.strike is not None and isinstance(event, StepDone) and event.step >= 6:
            self.strike()
            self.strike, self.struck = None, True

    def cache(self, name: str) -> Cache:
        return self.session.caches[str(self.root / name)]

    def kill_owner(self, name: str) -> None:
        """With its claims, and with the records that it has not published."""
        for pid in self.cache(name).pids():
            os.kill(pid, signal.SIGKILL)

    def kill_student(self) -> None:
        mine = psutil.Process().children(recursive=True)
        ranks = [p for p in mine if "RayTrainWorker" in " ".join(p.cmdline())]
        max(ranks, key=lambda rank: rank.create_time()).kill()

    def segments(self, name: str) -> list[Path]:
        found = sorted((self.root / name).glob(SEGMENT))
        assert found, "nothing was published"
        return found


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    root = tmp_path_factory.mktemp("cache-chaos")
    tiny.save_teacher(root / "teacher")
    tiny.save_text(root / "text")
    stage = Stage(None, root)  # type: ignore[arg-type]
    with Session([stage.job(None)], lambda event: stage.on_event(event)) as session:
        stage.session = session
        yield stage


@pytest.fixture(scope="module")
def weights(stage: Stage) -> str:
    """Of the job without a cache."""
    return stage.play(stage.job(None))["weights_sha256"]


@pytest.fixture(scope="module")
def long_weights(stage: Stage) -> str:
    """The same, of many steps."""
    return stage.play(stage.job(None, MANY_STEPS))["weights_sha256"]


def test_killing_the_owner_while_the_cache_fills(stage: Stage, weights: str) -> None:
    spec = stage.job("filling")
    summary = stage.play(spec, lambda: stage.kill_owner("filling"))
    assert summary["weights_sha256"] == weights
    assert stage.play(spec)["weights_sha256"] == weights


def test_killing_the_owner_while_the_cache_is_read(stage: Stage, long_weights: str) -> None:
    spec = stage.job("reading", MANY_STEPS)
    stage.play(spec)
    stage.cache("reading").publish()
    summary = stage.play(spec, lambda: stage.kill_owner("reading"))
    assert summary["weights_sha256"] == long_weights
    assert summary["cache"]["misses"] == summary["pool"]["asked"] == 0


def test_killing_a_reader(stage: Stage, long_weights: str) -> None:
    spec = stage.job("reader", MANY_STEPS)
    stage.play(spec)
    stage.cache("reader").publish()
    summary = stage.play(spec, stage.kill_student)
    assert summary["weights_sha256"] == long_weights
    assert stage.starts == 2, "the job had ended before its reader died"
    assert summary["pool"]["asked"] == 0


def test_killing_who_computes_leaves_no_claim_behind(stage: Stage, weights: str) -> None:
    summary = stage.play(stage.job("leader"), stage.kill_student)
    assert summary["weights_sha256"] == weights
    assert stage.cache("leader").stats()["claims"] == 0


def _flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    for place in range(len(raw) // 8, len(raw), len(raw) // 8):
        raw[place] ^= 1
    file.write_bytes(raw)


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("harm", [_flip, _cut, Path.unlink])
def test_damage_to_segments_costs_forwards_and_nothing_else(
    stage: Stage, weights: str, harm: Callable[[Path], None]
) -> None:
    name = f"harm-{harm.__name__}"
    spec = stage.job(name)
    stage.play(spec)
    stage.cache(name).publish()
    for file in stage.segments(name):
        harm(file)
    summary = stage.play(spec)
    assert summary["weights_sha256"] == weights
    assert summary["cache"]["damaged"] > 0 and summary["cache"]["misses"] > 0
    healed = stage.play(spec)
    assert healed["weights_sha256"] == weights
    assert healed["cache"]["misses"] == 0


def test_a_segment_cut_short_under_its_readers(stage: Stage, long_weights: str) -> None:
    spec = stage.job("under", MANY_STEPS)
    stage.play(spec)
    stage.cache("under").publish()

    def cut() -> None:
        for file in stage.segments("under"):
            _cut(file)

    assert stage.play(spec, cut)["weights_sha256"] == long_weights


def test_an_index_that_is_gone_is_made_again(stage: Stage, weights: str) -> None:
    spec = stage.job("index")
    stage.play(spec)
    stage.cache("index").publish()
    for file in (stage.root / "index").glob("index.sqlite*"):
        file.unlink()
    stage.kill_owner("index")
    summary = stage.play(spec)
    assert summary["weights_sha256"] == weights
    assert summary["cache"]["misses"] == 0


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        # Less is free than is left to others: nothing is tried.
        ("small", "size=192k"),
        # Gigabytes are free and the disk is full all the same: there is room for nine files and
        # folders, those of an empty cache, and the file system refuses every segment.
        ("full", "size=4g,nr_inodes=9"),
    ],
)
def test_a_full_disk_stops_the_caching_and_not_the_job(
    stage: Stage, weights: str, name: str, limit: str
) -> None:
    folder = stage.root / name
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"this machine mounts no file system: {made.stderr.strip()}")
    try:
        summary = stage.play(stage.job(name))
        stage.cache(name).publish()
        stats = stage.cache(name).stats()
        assert stats["write_failures"] > 0
        assert stats["dropped"] > 0 and stats["records"] == stats["claims"] == 0
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    assert summary["weights_sha256"] == weights
