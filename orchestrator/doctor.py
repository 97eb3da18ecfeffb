"""`stillhouse doctor`: what of this machine a job would trip over, and what to do about it.

Promises: changes nothing, takes seconds, imports neither torch nor ray.
"""

import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

Status = Literal["ok", "warn", "bad"]
PACKAGES = ("torch", "ray", "deepspeed", "mlflow", "transformers", "datasets", "peft", "pyarrow")
PORTS = {6379: "Ray's head node", 8265: "Ray's dashboard", 5000: "stillhouse ui"}
GiB = 1 << 30
_SHARED_MEMORY = 1 * GiB  # below it Ray puts its object store on disk
_DISK = 10 * GiB
_MEMORY = 4 * GiB


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `remedy` is empty where the status is ok."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def examine(folder: str | Path = ".", cxx: str | None = None) -> list[Finding]:
    """Look at everything.

    Args:
        folder: where runs would be written.
        cxx: the compiler that the environment asks for (CXX); None: the usual names.
    """
    return [
        Finding("Python", "ok", ".".join(map(str, sys.version_info[:3]))),
        *_packages(),
        _compiler(shutil.which, cxx),
        _headers(Path(sysconfig.get_path("include"))),
        _ninja(shutil.which),
        _accelerators(shutil.which),
        _memory(psutil.virtual_memory().total),
        _shared_memory(Path("/dev/shm")),
        _disk(Path(folder)),
        *(_port(number, user) for number, user in PORTS.items()),
    ]


def _packages() -> list[Finding]:
    findings = []
    for name in PACKAGES:
        try:
            findings.append(Finding(name, "ok", metadata.version(name)))
        except metadata.PackageNotFoundError:
            findings.append(
                Finding(name, "bad", "not installed", "pip install -c constraints.txt stillhouse")
            )
    return findings


def _compiler(which: Callable[[str], str | None], cxx: str | None) -> Finding:
    for name in [cxx] if cxx else ["c++", "g++", "clang++"]:
        path = which(name)
        if path is not None:
            return Finding("C++ compiler", "ok", path)
    return Finding(
        "C++ compiler",
        "bad",
        f"{cxx} (from CXX) is not there" if cxx else "none on PATH",
        "Install one (Debian: apt-get install g++); DeepSpeed compiles a small operator with it",
    )


def _headers(include: Path) -> Finding:
    if (include / "Python.h").is_file():
        return Finding("Python headers", "ok", str(include))
    return Finding(
        "Python headers",
        "bad",
        f"no Python.h in {include}",
        "Install them (Debian: apt-get install python3-dev)",
    )


def _ninja(which: Callable[[str], str | None]) -> Finding:
    path = which("ninja") or which(str(Path(sys.executable).parent / "ninja"))
    if path is not None:
        return Finding("ninja", "ok", path)
    return Finding("ninja", "bad", "not found", "pip install ninja")


def _accelerators(which: Callable[[str], str | None]) -> Finding:
    if which("nvidia-smi") is None:
        return Finding("accelerators", "ok", "none; jobs run on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return Finding(
            "accelerators", "bad", "nvidia-smi does not answer", "Restart the driver or the machine"
        )
    if answer.returncode != 0:
        detail = (answer.stderr or answer.stdout).strip().splitlines()
        return Finding(
            "accelerators",
            "warn",
            f"nvidia-smi fails: {detail[-1] if detail else 'no message'}",
            "Mend the driver, or ignore this on a machine without a GPU",
        )
    return Finding("accelerators", "ok", "; ".join(answer.stdout.strip().splitlines()) or "none")


def _memory(total: int) -> Finding:
    if total >= _MEMORY:
        return Finding("memory", "ok", _gib(total))
    return Finding(
        "memory", "warn", _gib(total), f"{_gib(_MEMORY)} or more are needed for the quickstart"
    )


def _shared_memory(folder: Path) -> Finding:
    if not folder.is_dir():
        return Finding("shared memory", "ok", f"no {folder} on this system")
    free = shutil.disk_usage(folder).free
    if free >= _SHARED_MEMORY:
        return Finding("shared memory", "ok", f"{_gib(free)} free in {folder}")
    return Finding(
        "shared memory",
        "warn",
        f"{_gib(free)} free in {folder}",
        "Give more (docker run --shm-size=4g): Ray falls back to disk, which is slow",
    )


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    if free >= _DISK:
        return Finding("disk", "ok", f"{_gib(free)} free in {folder.absolute()}")
    return Finding(
        "disk",
        "warn",
        f"{_gib(free)} free in {folder.absolute()}",
        f"Free some, or set storage elsewhere; {_gib(_DISK)} are comfortable",
    )


def _port(number: int, user: str) -> Finding:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError as error:
            return Finding(
                f"port {number}",
                "warn",
                f"not free ({error.strerror})",
                f"{user} uses it by default: end what holds it, or choose another port",
            )
    return Finding(f"port {number}", "ok", f"free, for {user}")


def _gib(count: int) -> str:
    return f"{count / GiB:.1f} GiB"
