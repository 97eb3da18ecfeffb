"""Checkpoints: DeepSpeed's state, the position in the order, counts and random state.

A checkpoint is a folder `checkpoints/step-00000010` whose `manifest.json` is published last; one
without a manifest does not exist. Folders may lie at any fsspec URI; then each node writes to a
local folder first and uploads it. DeepSpeed's files are pickles: they are read only from folders
that this user owns.
"""

import base64
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch

from orchestrator.errors import CheckpointError

FORMAT = 3
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint says of itself."""

    run_id: str
    step: int  # optimiser steps done
    workers: int
    zero: int
    data_version: str
    seed: int
    files: dict[str, int]  # relative path -> bytes
    format: int = FORMAT


def random_state() -> dict[str, Any]:
    """Random state of this process, as JSON."""
    keys, position, gauss, cached = np.random.get_state()[1:]  # type: ignore[misc]
    version, internal, gauss_next = random.getstate()
    return {
        "torch": base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode(),
        "cuda": [
            base64.b64encode(state.cpu().numpy().tobytes()).decode()
            for state in (torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])
        ],
        "numpy": [np.asarray(keys).tolist(), int(position), int(gauss), float(cached)],
        "python": [version, list(internal), gauss_next],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`."""

    def tensor(text: str) -> torch.Tensor:
        return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)

    torch.set_rng_state(tensor(state["torch"]))
    if state["cuda"]:
        torch.cuda.set_rng_state_all([tensor(text) for text in state["cuda"]])
    keys, position, gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, gauss, cached))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


class Checkpoints:
    """The checkpoints of one run, as one rank sees them. `write` and `read` are collective."""

    def __init__(self, run_folder: str, run_id: str, keep: int, rank: int, local_rank: int) -> None:
        self._fs, root = fsspec.core.url_to_fs(run_folder)
        self._root = f"{root.rstrip('/')}/checkpoints"
        self._local = "file" in _protocols(self._fs)
        self._run_id, self._keep, self._rank, self._local_rank = run_id, keep, rank, local_rank
        self.spared: int | None = None
        """Step of a checkpoint that is kept however old it is."""

    def of(self, run_folder: str) -> "Checkpoints":
        """Those of another run, as this rank sees them; the folder has the run's name."""
        run_id = run_folder.rstrip("/").rpartition("/")[2]
        return Checkpoints(run_folder, run_id, self._keep, self._rank, self._local_rank)

    def folder(self, step: int) -> str:
        """Where the checkpoint of a step is, or would be."""
        return f"{self._root}/step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a published checkpoint, rising."""
        found = self._fs.glob(f"{self._root}/step-*/{MANIFEST}")
        return sorted(int(str(path).split("/")[-2].removeprefix("step-")) for path in found)

    def write(
        self,
        step: int,
        save_engine: Callable[[Path], None],
        state: dict[str, Any],
        *,
        workers: int,
        zero: int,
        data_version: str,
        seed: int,
    ) -> str:
        """Publish a checkpoint after `step` steps; its folder."""
        folder = self.folder(step)
        staging = self._staging(folder)
        save_engine(staging)
        (staging / f"rank-{self._rank}.json").write_text(
            json.dumps({**state, "random": random_state()})
        )
        _barrier()
        if not self._local and self._local_rank == 0:
            self._fs.put(f"{staging}/", folder, recursive=True)
        _barrier()
        if self._rank == 0:
            sizes = {
                str(path)[len(folder) + 1 :]: int(info["size"])
                for path, info in self._fs.find(folder, detail=True).items()
                if not str(path).endswith(MANIFEST)
            }
            manifest = Manifest(self._run_id, step, workers, zero, data_version, seed, sizes)
            self._publish(folder, json.dumps(asdict(manifest), indent=1))
            self._prune()
        if not self._local and self._local_rank == 0:
            shutil.rmtree(staging)
        _barrier()
        return folder

    def _scratch(self) -> Path:
        """A folder of this node that its ranks share and other users cannot change."""
        own = Path(tempfile.gettempdir()) / f"stillhouse-{os.getuid()}"
        own.mkdir(mode=0o700, exist_ok=True)
        if own.stat().st_uid != os.getuid() or own.stat().st_mode & 0o022:
            raise CheckpointError(
                f"{own} can be changed by others; remove it, or set TMPDIR to a folder of your own"
            )
        folder = own / self._run_id
        folder.mkdir(exist_ok=True)
        return folder

    def _staging(self, folder: str) -> Path:
        staging = Path(folder) if self._local else self._scratch() / Path(folder).name
        if self._local_rank == 0 and staging.exists():
            shutil.rmtree(staging)  # a torn attempt: it has no manifest
        _barrier()
        staging.mkdir(parents=True, exist_ok=True, mode=0o700)
        return staging

    def _publish(self, folder: str, text: str) -> None:
        target = f"{folder}/{MANIFEST}"
        if not self._local:
            self._fs.pipe_file(target, text.encode())
            return
        partial = Path(f"{target}.tmp")
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target)

    def _prune(self) -> None:
        old = self.steps()[: -self._keep]
        for step in [step for step in old if step != self.spared]:
            folder = self.folder(step)
            self._fs.rm_file(f"{folder}/{MANIFEST}")  # first: without it the folder is nothing
            self._fs.rm(folder, recursive=True)

    def latest(self, *, workers: int, zero: int, data_version: str, seed: int) -> Manifest | None:
        """The newest published checkpoint, checked against the job; None when there is none.

        Raises:
            CheckpointError: it is torn, or belongs to another run, data, seed or world size.
        """
        steps = self.steps()
        if not steps:
            return None
        return self.at(steps[-1], workers=workers, zero=zero, data_version=data_version, seed=seed)

    def at(self, step: int, *, workers: int, zero: int, data_version: str, seed: int) -> Manifest:
        """The published checkpoint of a step, checked against the job.

        Raises:
            CheckpointError: there is none, or as `latest`.
        """
        folder, steps = self.folder(step), self.steps()
        if step not in steps:
            known = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(
                f"{self._root} has no checkpoint of step {step} (there are: {known}); choose one "
                "of these, or run that job again with a larger training.checkpoint.keep"
            )
        manifest = _manifest(folder, self._fs.cat_file(f"{folder}/{MANIFEST}"))
        self._check(folder, manifest, "run_id", manifest.run_id, self._run_id)
        self._check(folder, manifest, "data version", manifest.data_version, data_version)
        self._check(folder, manifest, "seed", manifest.seed, seed)
        self._check(folder, manifest, "ZeRO stage (training.zero)", manifest.zero, zero)
        self._check(folder, manifest, "training.workers", manifest.workers, workers)
        for name, size in manifest.files.items():
            path = f"{folder}/{name}"
            if not self._fs.exists(path) or self._fs.size(path) != size:
                raise CheckpointError(
                    f"{path} is missing or not {size} bytes: the checkpoint is torn; remove "
                    f"{folder} to go on from the one before"
                )
        return manifest

    @staticmethod
    def _check(folder: str, manifest: Manifest, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            raise CheckpointError(
                f"{folder} was written with {what} {found!r}, the job has {wanted!r}; set it back, "
                f"or start a new run"
            )

    def read(self, step: int, load_engine: Callable[[Path], None]) -> dict[str, Any]:
        """Restore the engine and random state; the state given to `write` by this rank."""
        folder = self.folder(step)
        local = Path(folder)
        if not self._local:
            local = self._scratch() / "read"
            if self._local_rank == 0:
                shutil.rmtree(local, ignore_errors=True)
                self._fs.get(f"{folder}/", str(local), recursive=True)
            _barrier()
        _check_owner(local)
        load_engine(local)
        state = json.loads((local / f"rank-{self._rank}.json").read_text())
        restore_random_state(state.pop("random"))
        return state


def _manifest(folder: str, text: bytes) -> Manifest:
    try:
        raw = json.loads(text)
        if raw["format"] == FORMAT:
            return Manifest(**raw)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{folder}/{MANIFEST} cannot be read ({error}); remove {folder} to go on from the "
            "checkpoint before"
        ) from error
    raise CheckpointError(
        f"{folder} has format {raw['format']}, this version reads {FORMAT}; use the version that "
        "wrote it"
    )


def _check_owner(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        owner = path.stat().st_uid
        if owner != os.getuid():
            raise CheckpointError(
                f"{path} belongs to user {owner}, not to you ({os.getuid()}); DeepSpeed's files "
                f"are pickles, so only your own are read"
            )


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _barrier() -> None:
    torch.distributed.barrier()
