"""The trained student as a plain Hugging Face folder in the run directory."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import torch
from safetensors.torch import load, save

from orchestrator.models.export import export_folder, generate
from orchestrator.models.exported import Export
from orchestrator.models.fingerprint import weights_sha256
from orchestrator.models.load import Loaded, load_model
from orchestrator.models.lora import apply_lora
from orchestrator.spec import JobSpec
from orchestrator.spec.models import ModelSpec

from .engine import Engine
from .inside import Inside
from .records import PROJECTORS, StudentJob
from .start import in_float32

PREFIX = "model."  # StudentModule's attribute
INSIDE = "inside."  # likewise


@dataclass(frozen=True, slots=True)
class Exported:
    """Where the student is and what it says."""

    folder: str
    weights_sha256: str
    generated: str | None
    members: dict[str, str] = field(default_factory=dict)  # where the others are, by name


def export_student(job: StudentJob, engine: Engine, inside: Inside | None) -> Exported:
    """Gather the weights and write the folder on rank 0. Collective."""
    weights = engine.weights()
    exported = Exported("", "", None)
    if weights is not None:
        own = {k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)}
        exported = _write(job, own)
        others = {k.removeprefix(INSIDE): v for k, v in weights.items() if k.startswith(INSIDE)}
        if inside is not None and others:
            _write_projectors(job, inside.kept(others))
    torch.distributed.barrier()
    return exported


def read_projectors(uri: str | None) -> dict[str, torch.Tensor]:
    """What `export_student` left of a stage's projectors; nothing where there were none."""
    if uri is None:
        return {}
    fs, path = fsspec.core.url_to_fs(uri)
    return load(fs.cat_file(path)) if fs.exists(path) else {}


def _write_projectors(job: StudentJob, kept: dict[str, torch.Tensor]) -> None:
    fs, root = fsspec.core.url_to_fs(job.run_folder)
    whole = {name: tensor.contiguous() for name, tensor in kept.items()}
    fs.pipe_file(f"{root.rstrip('/')}/{PROJECTORS}", save(whole))


def _write(job: StudentJob, weights: dict[str, torch.Tensor]) -> Exported:
    spec = job.spec
    lora = spec.student.lora
    loaded = load_model(
        spec.student.with_models(in_float32),
        tokenizer=job.tokenizer,
        seed=spec.seed,
        field="student",
    )
    if lora is not None:
        loaded = apply_lora(loaded, lora, seed=spec.seed)
    module = loaded.module
    module.load_state_dict(weights, strict=True)
    sha = weights_sha256(module)
    for name, part in (loaded.members or {None: loaded}).items():
        part.module.to(getattr(torch, spec.student.model_of(name).dtype))
    places = Export(f"{job.run_folder.rstrip('/')}/export", spec.student)
    generated, others = None, dict[str, str]()
    for name, part in _parts(spec, loaded).items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "export"
            export_folder(part.module, job.tokenizer, folder, lora, part.made)
            if places.of(name) == places.uri:
                generated = _sample(job, folder)
            else:
                others[str(name)] = places.of(name)
            _put(folder, places.of(name))
    return Exported(places.uri, sha, generated, others)


def _parts(spec: JobSpec, loaded: Loaded) -> Mapping[str | None, Loaded]:
    """What is exported, each in a folder of its own: by member, or the student itself."""
    alone, made = spec.student.alone, loaded.made
    if alone is None or made is None:
        return {**loaded.members} or {None: loaded}
    only = made.only(alone)
    chosen = ModelSpec.model_validate(
        {"import": only.target, "arguments": only.arguments, "task": spec.student.task}
    )
    found = load_model(chosen, field="student.export")
    whole = loaded.module.state_dict()
    found.module.load_state_dict({name: whole[name] for name in found.module.state_dict()})
    found.module.to(getattr(torch, spec.student.dtype))
    return {None: found}


def _put(folder: Path, uri: str) -> None:
    """A folder of this machine to its place, in which nothing else remains."""
    fs, target = fsspec.core.url_to_fs(uri)
    if fs.exists(target):
        fs.rm(target, recursive=True)
    fs.makedirs(target.rpartition("/")[0], exist_ok=True)
    fs.put(f"{folder}/", target, recursive=True)


def _sample(job: StudentJob, folder: Path) -> str | None:
    """Text from the folder just written, so that a bad export is seen at once."""
    wanted, lora = job.spec.evaluation.generate, job.spec.student.lora
    readable = job.spec.student.task == "causal_lm" and not (lora and lora.export == "adapter")
    if wanted is None or not readable:
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer, local_files_only=True)
    module = load_model(ModelSpec(path=str(folder), dtype="float32"), field="export").module
    return generate(module, tokenizer, wanted.prompt, wanted.tokens)
