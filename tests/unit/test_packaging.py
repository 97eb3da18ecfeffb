"""What is installed: two packages, one command, public names that load on use."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import orchestrator
import strategies

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy: setuptools leaves its build folder beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    tracked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(tracked, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if name.endswith(".py") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    subprocess.run(command, cwd=source, capture_output=True, check=True, timeout=240)
    (path,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_exactly_the_two_packages(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    info = {name for name in top if name.endswith(".dist-info")}
    assert top - info == {"orchestrator", "strategies"}
    assert len(info) == 1


def test_the_wheel_holds_every_module_of_the_packages(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if name.endswith(".py")}
    there = {
        path.relative_to(ROOT).as_posix()
        for package in ("orchestrator", "strategies")
        for path in (ROOT / package).rglob("*.py")
    }
    assert packed == there


def test_the_wheel_names_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    files = {name.rpartition("/")[2]: name for name in wheel.namelist() if ".dist-info" in name}
    assert "stillhouse = orchestrator.cli:main" in wheel.read(files["entry_points.txt"]).decode()
    assert "License-Expression: Apache-2.0" in wheel.read(files["METADATA"]).decode()
    assert "LICENSE" in files


def test_the_packages_under_test_are_those_of_this_tree() -> None:
    for package in (orchestrator, strategies):
        assert package.__file__ is not None
        assert Path(package.__file__).is_relative_to(ROOT)


def test_every_public_name_is_there() -> None:
    assert sorted(orchestrator.__all__) == list(orchestrator.__all__)
    for name in orchestrator.__all__:
        found = getattr(orchestrator, name)
        assert found.__name__ in (name, f"orchestrator.{name}") and callable(found)
    with pytest.raises(AttributeError, match="distill"):
        _ = orchestrator.distill  # pyright: ignore[reportAttributeAccessIssue]


LIGHT = ["orchestrator", "orchestrator.spec", "orchestrator.planner", "orchestrator.cli"]
LIGHT += [
    "orchestrator.search",
    "orchestrator.terminal",
    "orchestrator.doctor",
    "orchestrator.events",
    "strategies.specs",
]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_without_the_heavy_ones(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set(sys.argv[1:])))"
    heavy = ["torch", "ray", "deepspeed", "mlflow", "transformers", "datasets"]
    done = subprocess.run(
        [sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


def test_every_dependency_has_a_tested_version_in_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {
        re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower(): line.partition("==")[2]
        for line in lines
        if line and not line.startswith("#")
    }
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pinned.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    wanted += project["optional-dependencies"]["docs"]
    names = {re.split(r"[\[<>=!~ ]", each)[0].lower().replace("_", "-") for each in wanted}
    assert names - set(pinned) == set()


def test_the_tested_versions_are_the_installed_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    for requirement in project["dependencies"]:
        name = re.split(r"[\[<>=!~ ]", requirement)[0]
        installed = importlib.metadata.version(name).partition("+")[0]
        matching = [v for n, v in pinned.items() if n.lower() == name.lower()]
        assert matching == [installed], name
