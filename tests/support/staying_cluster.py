"""A Ray of one node in a process of its own, for commands that join a cluster and leave it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent


@contextmanager
def staying_cluster(cpus: int) -> Iterator[str]:
    """Its address while the block lasts."""
    program = (
        "import ray, sys\n"
        f"context = ray.init(num_cpus={cpus}, include_dashboard=False, log_to_driver=False)\n"
        "print(context.address_info['gcs_address'], flush=True)\n"
        "sys.stdin.read()\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    head = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert head.stdout is not None
    try:
        yield head.stdout.readline().strip()
    finally:
        head.communicate(input="", timeout=60)


def start(*arguments: str, cluster: str) -> "subprocess.Popen[str]":
    """One `stillhouse` command, in a process of its own as a user would give it."""
    return subprocess.Popen(
        [str(BIN / "stillhouse"), *arguments],
        env={**os.environ, "RAY_ADDRESS": cluster, "RAY_AUTH_MODE": "token"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stillhouse(*arguments: str, cluster: str) -> "subprocess.CompletedProcess[str]":
    """The same, waited for."""
    process = start(*arguments, cluster=cluster)
    out, error = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, error)
