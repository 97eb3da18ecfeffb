"""The work of a distillation in plain loops: the teacher's forward, the student's step.

Each loop runs in a process with one core and one thread. T and S, medians of their seconds a batch,
are what the other benchmarks compare with.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from workload import WARM_STEPS

from strategies.contract import Batch, Head, HiddenSignal, Outputs
from strategies.objective import build_objective
from strategies.progress import Progress
from strategies.specs import ForwardKLSpec, ObjectiveSpec


def hidden_states(model: torch.nn.Module, batch: Batch) -> Tensor:
    """[R, T, d] before the head."""
    decoder = model.model
    return decoder(**batch.inputs, use_cache=False).last_hidden_state  # type: ignore[operator]


def teacher_loop(folder: Path, work: list[Batch]) -> Callable[[Batch], None]:
    """One forward, as the replica is asked for it."""
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher").eval()

    def forward(batch: Batch) -> None:
        with torch.inference_mode():
            hidden_states(teacher, batch)[batch.mask].numpy()

    return forward


def student_loop(folder: Path, work: list[Batch]) -> Callable[[Batch], None]:
    """One optimiser step, the teacher's hidden states being at hand."""
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher").eval()
    student = AutoModelForCausalLM.from_pretrained(folder / "student").train()
    objective = build_objective(ObjectiveSpec(terms=[ForwardKLSpec(kind="forward_kl")]))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, betas=(0.9, 0.95))
    with torch.no_grad():
        signals = {
            id(batch): HiddenSignal(
                hidden_states(teacher, batch)[batch.mask].clone(),
                Head(teacher.lm_head.weight.detach()),
            )
            for batch in work
        }

    def step(batch: Batch) -> None:
        mine = {"teacher": signals[id(batch)]}
        counts = objective.counts(batch, mine)
        scales = {term: 1.0 / float(count) for term, count in counts.items()}
        outputs = Outputs(hidden_states(student, batch)[batch.mask], Head(student.lm_head.weight))
        loss, _ = objective.loss(
            outputs, batch, mine, objective.numbers(Progress(0, 1), {}), scales
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


LOOPS = {"teacher": teacher_loop, "student": student_loop}


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of one batch: by the clock, and of the processor."""

    wall: float
    processor: float


def serve(side: str, core: int, folder: Path, work: list[Batch], pipe: Connection) -> None:
    """A process with one core: at each word from the pipe, one pass, seconds of each batch back."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    each = LOOPS[side](folder, work)
    pipe.send("ready")
    while pipe.recv() is not None:
        passed: list[Seconds] = []
        for batch in work:
            began, busy = time.perf_counter(), time.process_time()
            each(batch)
            passed.append(Seconds(time.perf_counter() - began, time.process_time() - busy))
        pipe.send(passed[WARM_STEPS:])


class Plain:
    """Teacher and student loops in two processes on two cores, until closed."""

    def __init__(self, folder: Path, work: list[Batch]) -> None:
        context = multiprocessing.get_context("spawn")
        first, second = sorted(os.sched_getaffinity(0))[:2]
        self._pipes: dict[str, Connection] = {}
        for side, core in (("teacher", first), ("student", second)):
            ours, theirs = context.Pipe()
            context.Process(
                target=serve, args=(side, core, folder, work, theirs), daemon=True
            ).start()
            ours.recv()
            self._pipes[side] = ours

    def measure(self, *sides: str) -> dict[str, Seconds]:
        """Medians of each side, all sides at once."""
        for side in sides:
            self._pipes[side].send("go")
        answers = {side: self._pipes[side].recv() for side in sides}
        return {
            side: Seconds(
                statistics.median(batch.wall for batch in batches),
                statistics.median(batch.processor for batch in batches),
            )
            for side, batches in answers.items()
        }

    def close(self) -> None:
        """End both processes."""
        for pipe in self._pipes.values():
            pipe.send(None)
