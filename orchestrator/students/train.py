"""One job in one worker: the training loop, readable aloud, and what surrounds it.

Every rank runs `train_student` alike. Collective calls are marked; a decision that ranks must share
(stop, checkpoint by the clock) is rank 0's, carried by the step's own all-reduce.
"""

import logging
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator.data import Order, TokenData, prepare
from orchestrator.errors import CheckpointError, CountsDiffer, Interrupted, NonFiniteLoss
from orchestrator.events import CheckpointWritten, Evaluated, JobStarted, StepDone
from orchestrator.models.families import zero3_leaves
from orchestrator.models.load import Loaded, load_model
from orchestrator.models.lora import apply_lora
from orchestrator.models.trainable import apply_trainable
from orchestrator.spec.job import JobSpec
from strategies.objective import Objective, build_objective

from .checkpoint import Checkpoints
from .engine import Engine, learning_rate
from .export import export_student
from .feed import Feed, Ledger, Micro
from .held_out import HeldOut
from .module import StudentModule
from .questions import Questions, open_questions
from .records import StudentJob
from .report import Reporter

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Clock:
    """Seconds by part, for the start-up figures of a run."""

    began: float = field(default_factory=time.monotonic)
    parts: dict[str, float] = field(default_factory=dict)

    def lap(self, part: str) -> None:
        """Charge the time since the last lap to a part."""
        now = time.monotonic()
        self.parts[part] = self.parts.get(part, 0.0) + now - self.began
        self.began = now


def train_student(job: StudentJob, rank: int, world: int, reporter: Reporter) -> dict[str, Any]:
    """Train, evaluate and export one student; the job's summary (meaningful on rank 0).

    Raises:
        NonFiniteLoss, Interrupted, CheckpointError, SpecError, CountsDiffer: on every rank.
    """
    clock = Clock()
    _settle(job.spec, rank)
    reporter.phase("reading data")
    data = prepare(job.spec.data, job.tokenizer, job.cache_folder)
    clock.lap("data")
    reporter.phase("loading student")
    loaded = load_student(job)
    clock.lap("model")
    questions = open_questions(job, rank, next(loaded.module.parameters()).device)
    clock.lap("pool")
    try:
        with Run(job, rank, world, reporter, data, loaded, questions, clock) as run:
            return run.whole()
    finally:
        if questions is not None:
            questions.client.close()


def _settle(spec: JobSpec, rank: int) -> None:
    """Threads, seeds and determinism of this process."""
    torch.set_num_threads(spec.training.threads)
    random.seed(spec.seed)
    np.random.seed(spec.seed % 2**32)
    torch.manual_seed(spec.seed + 1000003 * rank)
    if spec.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(spec.deterministic)


def load_student(job: StudentJob) -> Loaded:
    """The student, equal on every rank, with its trainable part chosen."""
    spec = job.spec
    loaded = load_model(
        spec.student.model_copy(
            update={"dtype": "float32"}
        ),  # master weights; dtype is the export's
        device="cuda" if spec.training.resources.gpus else "cpu",
        tokenizer=job.tokenizer,
        for_training=True,
        seed=spec.seed,
        packing=spec.data.packing,
        field="student",
    )
    if spec.student.lora is not None:
        adapted = apply_lora(loaded.module, spec.student.lora, seed=spec.seed)
        loaded = replace(loaded, module=adapted)
    if spec.student.trainable is not None:
        apply_trainable(loaded.module, spec.student.trainable)
    if spec.training.gradient_checkpointing:
        enable: Any = loaded.module.gradient_checkpointing_enable
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return loaded


class Run:
    """State of one job on one rank, from the first step to the export."""

    def __init__(
        self,
        job: StudentJob,
        rank: int,
        world: int,
        reporter: Reporter,
        data: TokenData,
        loaded: Loaded,
        questions: Questions | None,
        clock: Clock,
    ) -> None:
        spec = job.spec
        self.job, self.spec, self.rank, self.world = job, spec, rank, world
        self.reporter, self.data, self.loaded, self.clock = reporter, data, loaded, clock
        self.questions = questions
        self.order = Order(
            data.train, spec.data.context, spec.training.global_batch, spec.seed, spec.data.packing
        )
        self.steps = spec.training.steps or sum(
            self.order.steps_per_epoch(epoch) for epoch in range(spec.training.epochs or 0)
        )
        self.objective: Objective = build_objective(spec.objective)
        reporter.phase("starting DeepSpeed")
        self.engine = Engine(
            StudentModule(loaded.module, loaded.head()), spec, zero3_leaves(loaded.module)
        )
        clock.lap("deepspeed")
        local_rank = int(os.environ["LOCAL_RANK"])
        self.checkpoints = Checkpoints(
            job.run_folder, job.run_id, spec.training.checkpoint.keep, rank, local_rank
        )
        self.held_out = HeldOut(
            self.engine, data.held_out, spec, rank, world, questions, spec.compared_role
        )
        self.ledger = Ledger()
        self.replayed_steps = 0
        self.tokens = 0
        self.loop_s = 0.0
        self.wait_s = 0.0
        self._checkpointed_at = time.monotonic()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def whole(self) -> dict[str, Any]:
        """Restore, train, evaluate, export."""
        if self.job.evaluate_only:
            evaluation = self.evaluate(0)
            return {"status": "done", "run_id": self.job.run_id, "evaluation": evaluation}
        start = self._restore()
        self.reporter.event(JobStarted(self.spec.name, self.job.run_id, self.steps), start)
        if start == 0 and self.spec.evaluation.before:
            self.evaluate(0)
        self.clock.lap("evaluation")
        self._train(start)
        evaluation = self.evaluate(self.steps)
        self.reporter.phase("exporting")
        exported = export_student(self.job, self.engine, self.rank)
        return {
            "status": "done",
            "run_id": self.job.run_id,
            "steps": self.steps,
            "tokens": self.tokens,
            "tokens_per_s": self.tokens / self.loop_s if self.loop_s else 0.0,
            "student_wait_share": self.wait_s / self.loop_s if self.loop_s else 0.0,
            "pool": self._pool_counts(),
            "evaluation": evaluation,
            "export": exported.folder,
            "weights_sha256": exported.weights_sha256,
            "generated": exported.generated,
            "data_version": self.data.version,
            "seconds": self.clock.parts,
        }

    # --- the loop --------------------------------------------------------------------------------

    def _train(self, start: int) -> None:
        feed = Feed(
            self.data.train,
            self.order,
            self.spec.data.context,
            self.spec.training.micro_batch,
            self.rank,
            self.world,
            start,
            self.steps,
            self.engine.device,
            self.questions,
            self.ledger,
        )
        for step in range(start, self.steps):
            began = time.monotonic()
            waited = feed.wait_s
            micros = feed.step(step)
            stop, by_clock, metrics = self._update(step, micros, feed.wait_s - waited)
            feed.commit(step, micros)
            self._account(micros, time.monotonic() - began, metrics, feed.wait_s - waited)
            self.reporter.event(StepDone(self.spec.name, step + 1, self.steps, metrics), step + 1)
            if step == start:
                self.clock.lap("first_step")
            self._between_steps(step + 1, stop, by_clock)

    def _update(
        self, step: int, micros: list[Micro], waited_s: float
    ) -> tuple[bool, bool, dict[str, float]]:
        """One optimiser step over the global batch. Collective.

        Returns:
            Whether rank 0 wants to stop, whether its clock asks for a checkpoint, the metrics.
        """
        numbers = self.objective.numbers(step, self.steps)
        counts = self._global_counts(micros)
        scales = {
            term: numbers[f"{term}.weight"] * self.engine.gradient_factor / max(count, 1.0)
            for term, count in counts.items()
        }
        totals = dict.fromkeys(counts, 0.0)
        shared: dict[str, float] = {}

        def agree() -> None:
            shared.update(self._agree(step, totals, waited_s, sum(m.tokens for m in micros)))

        rate = learning_rate(
            self.spec.training.learning_rate, self.spec.training.optimizer.lr, step, self.steps
        )
        self.engine.set_learning_rate(rate)
        for index, micro in enumerate(micros):
            last = index == len(micros) - 1
            self._backward(micro, numbers, scales, totals, agree if last else None)
        norm = self.engine.gradient_norm()
        if not np.isfinite(norm):
            raise NonFiniteLoss(step, f"gradient norm is {norm}; resume from the last checkpoint")
        losses = {term: shared[f"total/{term}"] / max(counts[term], 1.0) for term in counts}
        metrics = {f"loss/{term}": loss for term, loss in losses.items()}
        metrics["loss/total"] = sum(numbers[f"{t}.weight"] * loss for t, loss in losses.items())
        metrics |= {f"schedule/{name}": value for name, value in numbers.items()}
        metrics |= {"train/learning_rate": rate, "train/gradient_norm": norm}
        metrics["_tokens"] = shared["tokens"]
        metrics["_waited_s"] = shared["waited_s"] / self.world
        return shared["stop"] > 0, shared["by_clock"] > 0, metrics

    def _backward(
        self,
        micro: Micro,
        numbers: Mapping[str, float],
        scales: Mapping[str, float],
        totals: dict[str, float],
        before_step: Any,
    ) -> None:
        def consume(outputs: Any) -> Tensor:
            loss, sums = self.objective.loss(outputs, micro.batch, micro.signals, numbers, scales)
            for term, total in sums.items():
                totals[term] += float(total)
            return loss

        self.engine.backward(micro.batch, consume, before_step)

    def _global_counts(self, micros: list[Micro]) -> dict[str, float]:
        """Per term, the count over all ranks and micro-batches of the step. Collective."""
        summed: dict[str, Tensor] = {}
        for micro in micros:
            for term, count in self.objective.counts(micro.batch, micro.signals).items():
                summed[term] = summed.get(term, torch.zeros((), device=count.device)) + count
        values = self._sum_over_ranks([float(count) for count in summed.values()])
        return dict(zip(summed, values, strict=True))

    def _agree(
        self, step: int, totals: dict[str, float], waited_s: float, tokens: int
    ) -> dict[str, float]:
        """Sum what ranks must share, and stop them all before the optimiser moves. Collective."""
        every = self.spec.training.checkpoint.every_minutes
        due = every is not None and time.monotonic() - self._checkpointed_at >= 60 * every
        mine = {
            **{f"total/{term}": total for term, total in totals.items()},
            "stop": float(self.reporter.stop_requested()),
            "by_clock": float(due and self.rank == 0),
            "waited_s": waited_s,
            "tokens": float(tokens),
        }
        summed = dict(zip(mine, self._sum_over_ranks(list(mine.values())), strict=True))
        bad = {name: v for name, v in summed.items() if not np.isfinite(v)}
        if bad:
            detail = ", ".join(f"{name.removeprefix('total/')} = {v}" for name, v in bad.items())
            raise NonFiniteLoss(step, f"{detail}; the weights are those of the step before")
        return summed

    def _sum_over_ranks(self, values: list[float]) -> list[float]:
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.engine.device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def _account(
        self, micros: list[Micro], took_s: float, metrics: dict[str, float], waited_s: float
    ) -> None:
        tokens = metrics.pop("_tokens")
        waited = metrics.pop("_waited_s")
        self.tokens += int(tokens)
        self.loop_s += took_s
        self.wait_s += waited
        metrics["throughput/tokens_per_s"] = tokens / took_s
        metrics["student/wait_share"] = min(1.0, waited / took_s)
        if self.questions is not None:
            metrics |= self.questions.metrics()

    def _between_steps(self, done: int, stop: bool, by_clock: bool) -> None:
        every = self.spec.training.checkpoint.every_steps
        epoch = self.order.locate(done - 1)[0]
        whole = self.order.locate(done)[0] != epoch
        if whole or done == self.steps:
            self._check_counts(epoch, whole)
        if stop or by_clock or done == self.steps or done % every == 0:
            self._write_checkpoint(done)
        if stop and done < self.steps:
            raise Interrupted(f"job {self.spec.name!r} stopped after step {done}")
        measured = self.spec.evaluation.every_steps
        if measured and done % measured == 0 and done < self.steps:
            self.evaluate(done)

    # --- promise 1 -------------------------------------------------------------------------------

    def _check_counts(self, epoch: int, whole: bool) -> None:
        """Samples asked = delivered = consumed in an epoch that is over. Collective."""
        if self.questions is None:
            return
        books = (self.ledger.asked, self.ledger.delivered, self.ledger.consumed)
        asked, delivered, consumed = self._sum_over_ranks(
            [float(book.get(epoch, 0)) for book in books]
        )
        expected = len(self.questions.asks) * len(self.data.train) if whole else consumed
        if not asked == delivered == consumed == expected:
            raise CountsDiffer(
                f"epoch {epoch} does not balance: {asked:.0f} samples asked, {delivered:.0f} "
                f"delivered, {consumed:.0f} consumed, {expected:.0f} expected"
            )
        logger.info("epoch %d: asked = delivered = consumed = %d samples", epoch, consumed)

    def _pool_counts(self) -> dict[str, Any]:
        if self.questions is None:
            return {}
        counts = self.questions.counts()
        summed = self._sum_over_ranks([float(v) for v in counts.values()])
        totals = {name: int(v) for name, v in zip(counts, summed, strict=True)}
        samples = self._sum_over_ranks(
            [
                float(sum(book.values()))
                for book in (self.ledger.asked, self.ledger.delivered, self.ledger.consumed)
            ]
        )
        return {
            **totals,
            "samples": dict(
                zip(("asked", "delivered", "consumed"), map(int, samples), strict=True)
            ),
            "replayed_steps": self.replayed_steps,
        }

    # --- checkpoints and evaluation --------------------------------------------------------------

    def _write_checkpoint(self, done: int) -> None:
        folder = self.checkpoints.write(
            done,
            self.engine.save,
            {
                "consumed": self.ledger.committed(),
                "tokens": self.tokens,
                "loop_s": self.loop_s,
                "wait_s": self.wait_s,
            },
            workers=self.world,
            zero=self.spec.training.zero,
            data_version=self.data.version,
            seed=self.spec.seed,
        )
        self._checkpointed_at = time.monotonic()
        self.reporter.event(CheckpointWritten(self.spec.name, done, folder), done)

    def _restore(self) -> int:
        """Go on from the newest checkpoint; the step to begin with. Collective."""
        manifest = self.checkpoints.latest(
            workers=self.world,
            zero=self.spec.training.zero,
            data_version=self.data.version,
            seed=self.spec.seed,
        )
        furthest = self.reporter.furthest()
        if manifest is None:
            if self.job.resume:
                raise CheckpointError(
                    f"{self.job.run_folder} has no checkpoint to go on from; start a new run"
                )
            self.replayed_steps = furthest
            return 0
        state = self.checkpoints.read(manifest.step, self.engine.load)
        self.ledger = Ledger.restored(state["consumed"])
        self.tokens, self.loop_s, self.wait_s = state["tokens"], state["loop_s"], state["wait_s"]
        self.replayed_steps = max(0, furthest - manifest.step)
        return manifest.step

    def evaluate(self, step: int) -> dict[str, Any]:
        """Measure on held-out data, and say so. Collective."""
        self.reporter.phase("evaluating")
        found = self.held_out.measure()
        if found is None:
            return {}
        evaluation = found.to_dict()
        self.reporter.event(Evaluated(self.spec.name, step, evaluation, found.metrics()), step)
        return evaluation
