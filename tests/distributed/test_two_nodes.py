"""Two Ray nodes in two network namespaces: teacher on one, student on the other.

What crosses the network must not change a bit of the result, nor may a cut link or a dead node,
nor a cache of which each node holds its part.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from orchestrator.spec import resolved_yaml

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "clusters/two_nodes.sh"
HOME = Path(os.environ.get("STILLHOUSE_TWO_NODES", "/tmp/stillhouse-two-nodes"))
STUDENT, TEACHER = '{"student": 1}', '{"teacher": 1}'


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    if shutil.which("ip") is None:
        return "needs iproute2"
    probe = subprocess.run(["ip", "netns", "add", "sh-probe"], capture_output=True, text=True)
    if probe.returncode != 0:
        return f"this machine makes no network namespaces: {probe.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", "sh-probe"], check=True)
    return None


pytestmark = [pytest.mark.ray, pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(600)]


def _script(*arguments: str, check: bool = True) -> None:
    environment = {**os.environ, "STILLHOUSE_RAY": str(Path(sys.executable).parent / "ray")}
    done = subprocess.run(
        [str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{arguments}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


@pytest.fixture(scope="module")
def nodes() -> Iterator[None]:
    reason = _why_not()
    if reason is not None:
        pytest.skip(reason)
    _script("down")
    _script("up", STUDENT, TEACHER)
    try:
        yield
    finally:
        _script("down")


class Runs:
    """Plays one job through the command line, here or inside the first node's namespace."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        teacher = tiny.save_teacher(folder / "teacher")
        text = tiny.save_text(folder / "text")
        spec = tiny.job(
            teacher,
            text,
            folder / "runs",
            roles={"teacher": {"path": str(teacher), "resources": {"cpus": 0.5}}},
        )
        # Long enough for a link to be cut for 20 s in the middle.
        training = spec.training.model_copy(update={"steps": 120})
        self.spec = spec.model_copy(update={"training": training})

    def play(
        self,
        name: str,
        across: bool,
        during: Callable[[], None] | None = None,
        cache: str | None = None,
    ) -> Any:
        spec = self.spec.model_copy(update={"storage": str(self._folder / name)})
        overrides: list[str] = []
        if across:
            overrides = [
                "--set", "roles.teacher.resources={cpus: 0.5, custom: {teacher: 0.5}}",
                "--set", "training.resources={cpus: 0.5, custom: {student: 0.5}}",
                "--set", "ray.address=198.18.0.1:6380",
            ]  # fmt: skip
        if cache is not None:  # on the disk that each node has of its own
            overrides += ["--set", f"cache={{path: {HOME}/local/{cache}}}"]
        file = self._folder / f"{name}.yaml"
        file.write_text(resolved_yaml([spec]))
        command = [
            sys.executable, "-c", "from orchestrator.cli import main; main()",
            "run", str(file), "--json", *overrides,
        ]  # fmt: skip
        if across:
            command = [str(SCRIPT), "exec", "a", *command]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token"}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        watcher = threading.Thread(target=self._strike, args=(name, during, process))
        watcher.start()
        out, err = process.communicate(timeout=500)
        watcher.join()
        assert process.returncode == 0, err[-4000:]
        return json.loads(out.splitlines()[-1])["jobs"][0]

    def _strike(
        self, name: str, during: Callable[[], None] | None, process: "subprocess.Popen[str]"
    ) -> None:
        """Once the second checkpoint is there, the job is well under way."""
        while during is not None and process.poll() is None:
            if list((self._folder / name).glob("*/checkpoints/step-00000008/manifest.json")):
                during()
                return
            time.sleep(0.05)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("nodes"))


@pytest.fixture(scope="module")
def on_one_node(runs: Runs) -> dict[str, Any]:
    return runs.play("one", across=False)


def _same(summary: dict[str, Any], reference: dict[str, Any]) -> None:
    assert summary["weights_sha256"] == reference["weights_sha256"]
    samples = summary["pool"]["samples"]
    assert samples["asked"] == samples["delivered"] == samples["consumed"] > 0


def test_two_nodes_give_the_same_weights_as_one(
    nodes: None, runs: Runs, on_one_node: dict[str, Any]
) -> None:
    _same(runs.play("across", across=True), on_one_node)


def test_a_link_cut_for_twenty_seconds_loses_nothing(
    nodes: None, runs: Runs, on_one_node: dict[str, Any]
) -> None:
    _same(runs.play("cut", across=True, during=lambda: _script("cut", "20")), on_one_node)


def test_a_dead_teacher_node_replaced_by_another_loses_nothing(
    nodes: None, runs: Runs, on_one_node: dict[str, Any]
) -> None:
    def replace_node() -> None:
        _script("kill", "b")
        _script("start", "b", TEACHER)

    _same(runs.play("dead", across=True, during=replace_node), on_one_node)


def _held(node: str, cache: str) -> int:
    """Segments on one node's own disk."""
    return len(list((HOME / node / "local" / cache / "segments").glob("*.arrow")))


def test_a_cache_over_two_nodes_is_read_by_the_second_run(
    nodes: None, runs: Runs, on_one_node: dict[str, Any]
) -> None:
    first = runs.play("filling", across=True, cache="both")
    _same(first, on_one_node)
    wanted = sum(first["cache"][name] for name in ("hits", "shared", "misses"))
    assert first["cache"]["misses"] > 0 and first["pool"]["asked"] > 0
    assert _held("a", "both") > 0 and _held("b", "both") > 0
    second = runs.play("reading", across=True, cache="both")
    _same(second, on_one_node)
    assert second["cache"]["misses"] == second["pool"]["asked"] == 0
    assert second["cache"]["hits"] == wanted
    assert second["cache"]["lost_owners"] == second["cache"]["damaged"] == 0


def test_what_the_cache_of_a_dead_node_held_is_computed_anew(
    nodes: None, runs: Runs, on_one_node: dict[str, Any]
) -> None:
    runs.play("before", across=True, cache="dying")

    def replace_node() -> None:
        _script("kill", "b")
        _script("start", "b", TEACHER)

    after = runs.play("after", across=True, during=replace_node, cache="dying")
    _same(after, on_one_node)
    assert after["cache"]["lost_owners"] == 1
    assert after["cache"]["misses"] > 0
    assert after["cache"]["hits"] > 0
