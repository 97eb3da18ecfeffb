"""The TRL half of `against_trl.py`: run by the interpreter of an environment that has TRL.

    python trl_side.py FOLDER --trainer gkd|liger|chunked --threads N

FOLDER holds teacher, student and `batches.safetensors`. Prints one JSON line: when steps ended,
their losses. Three settings:

gkd      the experimental GKDTrainer, off-policy (lmbda 0), forward KL (beta 0), full logits.
liger    the same with `use_liger_kernel`; Liger's kernels are Triton's.
chunked  the stable DistillationTrainer, whose loss never holds full logits. It has no off-policy
         mode, so its generation is replaced by the given tokens: less work than any user's run.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

Work = list[dict[str, torch.Tensor]]


def read(folder: Path) -> Work:
    """One dict of [R, T] tensors a step. `labels[t]` is the token at t, as in transformers."""
    arrays = load_file(folder / "batches.safetensors")
    labels = torch.full_like(arrays["targets"], -100)
    labels[..., 1:] = arrays["targets"][..., :-1]
    steps = zip(arrays["input_ids"], labels, strict=True)
    return [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": label}
        for ids, label in steps
    ]


class Stopwatch(TrainerCallback):
    """When each optimiser step ended, and the loss logged for it."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def settings(work: Work, output: str) -> dict[str, Any]:
    """What every trainer is given: our optimiser, no reporting, no saving."""
    return {
        "output_dir": output,
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": work[0]["input_ids"].shape[0],
        "max_steps": len(work),
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "beta": 0.0,
        "temperature": 1.0,
    }


def gkd(folder: Path, work: Work, watch: Stopwatch, output: str, liger: bool) -> Any:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class OnGivenBatches(GKDTrainer):
        def get_train_dataloader(self) -> DataLoader:
            return DataLoader(work, batch_size=None)  # type: ignore[arg-type]

    return OnGivenBatches(
        model=load(folder / "student"),
        teacher_model=load(folder / "teacher"),
        args=GKDConfig(lmbda=0.0, use_liger_kernel=liger, **settings(work, output)),
        data_collator=lambda rows: rows,  # batches come ready
        train_dataset=unused(len(work)),
        processing_class=AutoTokenizer.from_pretrained(folder / "teacher"),
        callbacks=[watch],
    )


def chunked(folder: Path, work: Work, watch: Stopwatch, output: str) -> Any:
    from trl import DistillationConfig, DistillationTrainer

    class OnGivenTokens(DistillationTrainer):
        def get_train_dataloader(self) -> DataLoader:
            return DataLoader(work, batch_size=None)  # type: ignore[arg-type]

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            ids, mask = generation_batch["input_ids"], generation_batch["attention_mask"]
            learned = (generation_batch["labels"][:, 1:] != -100).long()
            return {
                "prompt_ids": ids[:, :1],
                "prompt_mask": mask[:, :1],
                "completion_ids": ids[:, 1:],
                "completion_mask": learned,
                "num_items_in_batch": learned.sum(),
            }

    return OnGivenTokens(
        model=load(folder / "student"),
        teacher_model=load(folder / "teacher"),
        args=DistillationConfig(**settings(work, output)),
        train_dataset=unused(len(work)),
        processing_class=AutoTokenizer.from_pretrained(folder / "teacher"),
        callbacks=[watch],
    )


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def unused(length: int) -> Any:
    """The trainers insist on a data set; ours never reads it."""
    from datasets import Dataset

    return Dataset.from_dict({"prompt": ["x"] * length})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trainer", choices=["gkd", "liger", "chunked"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    work, watch = read(options.folder)[: options.steps], Stopwatch()
    with tempfile.TemporaryDirectory() as output:
        if options.trainer == "chunked":
            trainer = chunked(options.folder, work, watch, output)
        else:
            trainer = gkd(options.folder, work, watch, output, options.trainer == "liger")
        trainer.train()
    json.dump({"ends": watch.ends, "losses": watch.losses}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
