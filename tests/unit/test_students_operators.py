"""A builder that was killed keeps nobody from building."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.students.operators import one_builder

BUILDER = """
import sys, pathlib
from orchestrator.students.operators import one_builder
root = pathlib.Path(sys.argv[1])
with one_builder(root):
    (root / "an_operator").mkdir()
    (root / "an_operator/lock").touch()
    print("building", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def builder(tmp_path: Path) -> subprocess.Popen[str]:
    """A process in the middle of a build."""
    started = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert started.stdout is not None
    assert "building\n" in iter(started.stdout.readline, "")  # after what imports have to say
    return started


def test_who_comes_later_waits_for_a_living_builder_and_not_for_a_dead_one(
    tmp_path: Path, builder: subprocess.Popen[str]
) -> None:
    entered = threading.Event()

    def enter() -> None:
        with one_builder(tmp_path):
            entered.set()

    later = threading.Thread(target=enter, daemon=True)
    later.start()
    assert not entered.wait(0.5)
    assert (tmp_path / "an_operator/lock").exists()
    builder.kill()
    builder.wait()
    assert entered.wait(60)
    later.join(60)
    assert not (tmp_path / "an_operator/lock").exists()
