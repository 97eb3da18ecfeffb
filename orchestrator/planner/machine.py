"""What this machine could offer a job at most, told before Ray starts.

Promises: never less than Ray will count, so what is refused here would be refused by any Ray on
this machine; what cannot be counted is taken as unlimited.
"""

import math
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from .capacity import Inventory, Node

OTHER_ACCELERATORS = ("/dev/kfd", "/dev/accel*", "/dev/vfio/*", "/dev/dri/renderD*")
RAY_CLUSTER_FILE = Path("/tmp/ray/ray_current_cluster")
"""Written by `ray start`; a job without an address joins that cluster."""


def this_machine(
    address: str | None,
    cluster_file: Path = RAY_CLUSTER_FILE,
    which: Callable[[str], str | None] = shutil.which,
) -> Inventory | None:
    """The local cluster that a job would start.

    Args:
        address: the job's `ray.address`.
        cluster_file: says whether a cluster already runs here.
        which: finds a program.

    Returns:
        None if the job joins a cluster that exists: what that holds is known once it is joined.
    """
    if (address is not None and address != "local") or cluster_file.exists():
        return None
    resources: Mapping[str, float] = {"CPU": float(os.cpu_count() or 1), "GPU": _gpus(which)}
    return Inventory((Node(socket.gethostname(), resources),))


def _gpus(which: Callable[[str], str | None]) -> float:
    if which("nvidia-smi") is not None:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False
        )
        return float(listed.stdout.count("GPU ")) if listed.returncode == 0 else 0.0
    root = Path("/")
    others = any(next(root.glob(pattern[1:]), None) for pattern in OTHER_ACCELERATORS)
    return math.inf if others else 0.0
