"""What the benchmarks share: a teacher, a student and full rows of real text, and how to report.

Weights are random: speed does not depend on them. The text is the source of Python's standard
library in one document, cut into samples of the context, so that rows are full (but for the last
piece) and any trainer can be given the very same batches.
"""

import argparse
import datetime
import os
import re
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orchestrator.data import Order, collate, prepare, share
from orchestrator.data.stdlib import documents
from orchestrator.spec import JobSpec
from orchestrator.students.batches import to_device
from strategies.contract import Batch

TOKENIZER = Path(__file__).parents[2] / "docs/examples/teacher"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
VOCABULARY = 4096
BYTES_A_TOKEN = 6
"""More than a token of this text takes, so that enough text is written."""

WARM_STEPS = 3
"""Steps of each job left out of every figure: allocators, first kernels, a window that fills."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Widths and depths of both models, and the batches."""

    teacher_width: int
    teacher_layers: int
    student_width: int
    student_layers: int
    context: int
    rows: int  # of a micro-batch, which is also the global batch
    steps: int

    @property
    def tokens_a_step(self) -> int:
        """Rows are full."""
        return self.rows * self.context


def balanced(steps: int) -> Workload:
    """Teacher and student that take about as long, each over half a second a batch on one core."""
    return Workload(
        teacher_width=352,
        teacher_layers=7,
        student_width=192,
        student_layers=4,
        context=256,
        rows=8,
        steps=steps,
    )


def add_arguments(parser: argparse.ArgumentParser, default: Workload) -> None:
    """One option a field of the workload."""
    for name in Workload.__dataclass_fields__:
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=getattr(default, name), metavar="N"
        )


def chosen(options: argparse.Namespace) -> Workload:
    """The workload of the command line."""
    return Workload(**{name: getattr(options, name) for name in Workload.__dataclass_fields__})


def write_models(folder: Path, workload: Workload) -> tuple[Path, Path]:
    """Teacher and student in Hugging Face layout; their folders."""
    torch.manual_seed(0)
    teacher = _save(folder / "teacher", workload.teacher_width, workload.teacher_layers, workload)
    student = _save(folder / "student", workload.student_width, workload.student_layers, workload)
    return teacher, student


def _save(folder: Path, width: int, layers: int, workload: Workload) -> Path:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=-(-8 * width // 3 // 8) * 8,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=workload.context,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(TOKENIZER / name, folder / name)
    return folder


def write_text(folder: Path, workload: Workload) -> Path:
    """One document with more than one epoch's tokens, none of which is used twice."""
    wanted = (workload.steps + 1) * workload.tokens_a_step * BYTES_A_TOKEN
    parts: list[str] = []
    for _, record in documents():
        parts.append(record["text"])
        wanted -= len(record["text"])
        if wanted < 0:
            break
    folder.mkdir()
    (folder / "text.txt").write_text("\n".join(parts), encoding="utf-8")
    return folder


def job(name: str, folder: Path, workload: Workload, **changes: Any) -> JobSpec:
    """The distillation over the models and the text in `folder`, without side work."""
    raw: dict[str, Any] = {
        "name": name,
        "student": {"path": str(folder / "student")},
        "roles": {"teacher": {"path": str(folder / "teacher"), "encoding": {"kind": "hidden"}}},
        "data": {
            "sources": [{"kind": "text", "path": str(folder / "text")}],
            "context": workload.context,
            "held_out": 0.0,
        },
        "objective": {"terms": [{"kind": "forward_kl"}]},
        "training": {
            "steps": workload.steps,
            "global_batch": workload.rows,
            "micro_batch": workload.rows,
            "optimizer": {"lr": 1e-3, "weight_decay": 0.1},
            "learning_rate": {"decay": "constant"},
            "checkpoint": {"every_steps": workload.steps},
        },
        "evaluation": {"before": False, "generate": None},
        "cache": {"enabled": False},  # else a second round would ask nobody
        "storage": str(folder / "runs"),
    }
    raw.update(changes)
    return JobSpec.model_validate(raw)


def batches(spec: JobSpec, cache: Path) -> list[Batch]:
    """The micro-batches of a job in order, as its worker sees them."""
    training, data = spec.training, spec.data
    store = prepare(data, str(TOKENIZER), str(cache)).train
    order = Order(store, data.context, training.global_batch, spec.seed, data.packing)
    return [
        to_device(collate(store, rows, data.context), torch.device("cpu"))
        for step in range(training.steps or 0)
        for rows in share(order.rows(step), 0, 1, training.micro_batch)
    ]


# --- reporting -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def row(self, name: str, digits: int = 3) -> str:
        """One line of a Markdown table: name, median, least, most."""
        shown = (self.median, min(self.values), max(self.values))
        return f"| {name} | " + " | ".join(f"{value:.{digits}f}" for value in shown) + " |"


def table(rows: Sequence[tuple[str, Sequence[float], int]]) -> str:
    """Rows of (name, values, digits) as a Markdown table."""
    lines = ["| | median | min | max |", "|---|---|---|---|"]
    return "\n".join(lines + [Spread(tuple(values)).row(name, n) for name, values, n in rows])


def machine() -> str:
    """Processor, cores, memory, load and date, in one line."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{cpu[1] if cpu else 'unknown processor'}, {len(os.sched_getaffinity(0))} cores, "
        f"{memory:.0f} GiB, load {load}, {datetime.date.today()}"
    )


def step_seconds(ends: Sequence[float]) -> list[float]:
    """Seconds of each step after the warm ones, from the times at which steps ended."""
    return [later - earlier for earlier, later in pairwise(ends[WARM_STEPS - 1 :])]
