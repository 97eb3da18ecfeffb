"""The trained student as a plain Hugging Face folder in the run directory."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import fsspec
import torch

from orchestrator.models.export import export_folder, generate
from orchestrator.models.fingerprint import weights_sha256
from orchestrator.models.load import load_model
from orchestrator.models.lora import apply_lora
from orchestrator.spec.models import ModelSpec

from .engine import Engine
from .records import StudentJob

PREFIX = "model."  # StudentModule's attribute


@dataclass(frozen=True, slots=True)
class Exported:
    """Where the student is and what it says."""

    folder: str
    weights_sha256: str
    generated: str | None


def export_student(job: StudentJob, engine: Engine, rank: int) -> Exported:
    """Gather the weights and write the folder on rank 0. Collective."""
    weights = engine.weights()
    exported = Exported("", "", None)
    if weights is not None:
        own = {k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)}
        exported = _write(job, own)
    torch.distributed.barrier()
    return exported


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
