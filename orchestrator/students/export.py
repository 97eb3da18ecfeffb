"""The trained student as a plain Hugging Face folder in the run directory."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import fsspec
import torch
from safetensors.torch import load, save

from orchestrator.models.export import export_folder, generate
from orchestrator.models.fingerprint import weights_sha256
from orchestrator.models.load import load_model
from orchestrator.models.lora import apply_lora
from orchestrator.spec.models import ModelSpec

from .engine import Engine
from .inside import Inside
from .records import PROJECTORS, StudentJob

PREFIX = "model."  # StudentModule's attribute
INSIDE = "inside."  # likewise


@dataclass(frozen=True, slots=True)
class Exported:
    """Where the student is and what it says."""

    folder: str
    weights_sha256: str
    generated: str | None


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
        spec.student.model_copy(update={"dtype": "float32"}),
        tokenizer=job.tokenizer,
        seed=spec.seed,
        field="student",
    )
    if lora is not None:
        loaded = apply_lora(loaded, lora, seed=spec.seed)
    module = loaded.module
    module.load_state_dict(weights, strict=True)
    sha = weights_sha256(module)
    module.to(getattr(torch, spec.student.dtype))
    fs, root = fsspec.core.url_to_fs(job.run_folder)
    target = f"{root.rstrip('/')}/export"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "export"
        export_folder(module, job.tokenizer, folder, lora, loaded.made)
        generated = _sample(job, folder)
        if fs.exists(target):
            fs.rm(target, recursive=True)
        fs.put(f"{folder}/", target, recursive=True)
    return Exported(f"{job.run_folder.rstrip('/')}/export", sha, generated)


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
