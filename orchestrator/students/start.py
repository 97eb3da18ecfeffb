"""What a worker does before a job's first step: settle the process, load the student."""

import os
import random
from typing import Any

import numpy as np
import torch

from orchestrator.errors import SpecError
from orchestrator.models.families import unknown_experts
from orchestrator.models.load import Loaded, load_model
from orchestrator.models.lora import apply_lora
from orchestrator.models.trainable import apply_trainable
from orchestrator.spec.job import JobSpec

from .records import StudentJob


def settle(spec: JobSpec, rank: int) -> None:
    """Threads, seeds and determinism of this process."""
    torch.set_num_threads(spec.training.threads)
    random.seed(spec.seed)
    np.random.seed(spec.seed % 2**32)
    torch.manual_seed(spec.seed + 1000003 * rank)
    if spec.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(spec.deterministic)


def in_float32(model: Any) -> Any:
    """A model's spec with master weights: the job's dtype is that of the export."""
    return model.model_copy(update={"dtype": "float32"})


def load_student(job: StudentJob) -> Loaded:
    """The student, equal on every rank, with its trainable part chosen."""
    spec = job.spec
    loaded = load_model(
        spec.student.with_models(in_float32),
        device="cuda" if spec.training.resources.gpus else "cpu",
        tokenizer=job.tokenizer,
        for_training=True,
        seed=spec.seed,
        packing=spec.data.packing,
        field="student",
    )
    unknown = unknown_experts(loaded.module)
    if unknown and spec.training.zero == 3:
        raise SpecError(
            "training.zero",
            f"is 3, and the student has {', '.join(unknown)}, experts of a family whose blocks are "
            "not known here: ranks would wait for each other for ever",
            "Set it to 2 or less",
        )
    if spec.student.lora is not None:
        loaded = apply_lora(loaded, spec.student.lora, seed=spec.seed)
    if spec.student.trainable is not None:
        apply_trainable(loaded.module, spec.student.trainable)
        _check_members_learn(spec, loaded)
    if spec.training.gradient_checkpointing:
        enable: Any = getattr(loaded.module, "gradient_checkpointing_enable", None)
        if enable is None:
            raise SpecError(
                "training.gradient_checkpointing",
                f"is true, and {type(loaded.module).__name__} is no transformers model",
                "Remove it",
            )
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return loaded


def _check_members_learn(spec: JobSpec, loaded: Loaded) -> None:
    for name, member in loaded.members.items():
        if not any(parameter.requires_grad for parameter in member.module.parameters()):
            raise SpecError(
                "student.trainable",
                f"names nothing of member {name}, and terms say that it learns",
                f"Add members.{name}, or make it a role, which is not trained",
            )
