"""Is a folder a model we are willing to load? Reads JSON and safetensors headers only.

Promises: nothing from the folder is run, no weights are read, no torch, transformers or ray is
imported, so a preflight costs milliseconds. `load.load_model` makes the same checks again.
"""

import difflib
import json
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec.models import ModelSpec

from .made import MADE_FILE, is_made, read_made

PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HEADER_LIMIT = 100 << 20  # safetensors' own limit on its header, bytes


def check_folder(path: str | Path, spec: ModelSpec, field: str) -> dict[str, Any]:
    """Refuse a folder that is not a complete, safe model in Hugging Face layout, or an imported
    module's export.

    Args:
        path: the folder.
        spec: supplies `allow_remote_code` and `allow_pickle`.
        field: dotted path of the field that named the folder, for messages.

    Returns:
        The folder's config.json, or adapter_config.json where it holds a LoRA adapter; nothing of
        an imported module.

    Raises:
        SpecError: missing folder or config, code that would run, missing, torn or pickled weights.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise SpecError(field, f"is {str(path)!r}, which is no folder", _near(folder))
    if is_made(folder):
        _check_made(folder, spec, field)
        return {}
    adapter = is_adapter(folder)
    name = "adapter_config.json" if adapter else "config.json"
    config = _read_json(folder / name, field)
    if not adapter and not isinstance(config.get("model_type"), str):
        raise SpecError(
            field,
            f"{folder / name} lacks model_type",
            "Use a folder written by save_pretrained or by stillhouse",
        )
    if "auto_map" in config and not spec.allow_remote_code:
        raise SpecError(
            field,
            f"{folder / name} names Python files to run (auto_map)",
            f"Read that code, then set {_sibling(field, 'allow_remote_code')}: true",
        )
    _check_weights(folder, "adapter_model" if adapter else "model", spec, field)
    return config


def _check_made(folder: Path, spec: ModelSpec, field: str) -> None:
    made = read_made(folder, field)
    if not spec.allow_remote_code:
        raise SpecError(
            field,
            f"{folder / MADE_FILE} names Python code to import ({made.target})",
            f"Read that code, then set {_sibling(field, 'allow_remote_code')}: true",
        )
    _check_weights(folder, "model", spec, field)


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds a LoRA adapter and not a whole model."""
    folder = Path(folder)
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a folder, in order of name; a sharded model's are all of its index.

    Raises:
        FileNotFoundError: there are none, or the index names one that is missing.
    """
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [folder / name for name in names]
    else:
        files = [folder / name for name in ("model.safetensors", "adapter_model.safetensors")]
        files = [file for file in files if file.is_file()] or sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise FileNotFoundError(f"{folder}: no safetensors weights ({', '.join(missing) or 'any'})")
    return files


def _check_weights(folder: Path, stem: str, spec: ModelSpec, field: str) -> None:
    try:
        files = weight_files(folder)
    except FileNotFoundError as error:
        pickled = sorted(file.name for glob in PICKLED_WEIGHTS for file in folder.glob(glob))
        if pickled and spec.allow_pickle:
            return
        if pickled:
            raise SpecError(
                field,
                f"{folder} has its weights only as pickles ({', '.join(pickled[:3])})",
                "Convert them to safetensors, or trust the file and set "
                f"{_sibling(field, 'allow_pickle')}: true",
            ) from error
        raise SpecError(
            field,
            f"{folder} lacks weights ({stem}.safetensors, or every shard of its index): {error}",
            "Copy the missing files, or point at another folder",
        ) from error
    for file in files:
        _check_whole(file, field)


def _check_whole(file: Path, field: str) -> None:
    """A safetensors file says in its header how long it must be."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            if not 0 < length <= min(size - 8, _HEADER_LIMIT):
                raise ValueError(f"header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
            ends = [t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise SpecError(
                field, f"{file} is not a safetensors file ({error})", "Copy it again"
            ) from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise SpecError(
            field, f"{file} has {size} bytes where its header says {expected}", "Copy it again"
        )


def _read_json(file: Path, field: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError(
            field, f"{file.parent} lacks {file.name}", "Point at a folder in Hugging Face layout"
        ) from error
    except (ValueError, OSError) as error:
        raise SpecError(field, f"{file} cannot be read ({error})", "Copy it again") from error
    if not isinstance(value, dict):
        raise SpecError(field, f"{file} is no JSON object", "Copy it again")
    return value


def _near(folder: Path) -> str:
    if folder.parent.is_dir():
        siblings = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()]
        close = difflib.get_close_matches(folder.name, siblings, n=1)
        if close:
            return f"Did you mean {str(folder.parent / close[0])!r}?"
    return "Give a folder that exists on this machine"


def _sibling(field: str, name: str) -> str:
    parent, dot, _ = field.rpartition(".")
    return f"{parent}{dot}{name}"
