"""DeepSpeed's compiled operators: built by one process of a node at a time, whoever dies meanwhile.

torch marks a build under way by a file. A builder that is killed leaves it behind, and all who come
later wait for it for ever. Here a lock comes first that the system lets go with its process: who
holds it knows that any such file is a dead builder's. Each environment builds into a folder of its
own, since two that shared one would build anew in turn.
"""

import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch.utils.cpp_extension import get_default_build_root

COMMUNICATION, ADAM = "ShareMemCommBuilder", "CPUAdamBuilder"


def build_operators(names: Sequence[str]) -> None:
    """Compile, or load, what this machine can have of these before DeepSpeed asks for them."""
    root, accelerator = _folder(), cast(Any, get_accelerator())
    os.environ["TORCH_EXTENSIONS_DIR"] = str(root)
    with one_builder(root):
        for name in names:
            builder = accelerator.create_op_builder(name)
            if builder is not None and deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
                builder.load(verbose=False)


@contextmanager
def one_builder(root: Path) -> Iterator[None]:
    """Wait until no living process builds below `root`; marks of dead ones are removed.

    Args:
        root: a folder that only we build into; made if need be.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / "builder").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for mark in root.glob("*/lock"):
            mark.unlink()
        yield


def _folder() -> Path:
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given is not None and Path(given).parent.name == "stillhouse":
        return Path(given)  # an earlier job of this process
    versions = f"{sys.prefix} {torch.__version__} {deepspeed.__version__}"
    environment = hashlib.sha256(versions.encode()).hexdigest()[:12]
    return Path(given or get_default_build_root()) / "stillhouse" / environment
