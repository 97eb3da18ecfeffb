"""One job in one worker: the training loop, readable aloud, and what surrounds it.

Every rank runs `train_student` alike. Collective calls are marked; a decision that ranks must share
(stop, checkpoint by the clock) is rank 0's, carried by the step's own all-reduce.
"""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from orchestrator.data import Order, TokenData, collation, prepare
from orchestrator.errors import CheckpointError, Interrupted
from orchestrator.evaluation.diagnostics.report import metrics as diagnostic_metrics
from orchestrator.events import CheckpointWritten, Evaluated, JobStarted, StepDone, Used
from orchestrator.models.families import owed_loss, zero3_leaves
from orchestrator.models.forward import input_device
from orchestrator.models.load import Loaded
from orchestrator.models.trainable import frozen_parts
from orchestrator.planner.layer_maps import LayerMaps
from orchestrator.pool.inside import maps_of
from orchestrator.pool.source import SourceCounts
from orchestrator.signals.records import RoleDescription
from strategies.objective import build_objective
from strategies.progress import Progress

from .asked import Asker
from .best import Best, better
from .changing import changing_data, kept, take_up
from .checkpoint import Checkpoints
from .collective import sum_over_ranks
from .diagnostics import Site, check_diagnostics, diagnose, end_token
from .engine import Engine
from .export import export_student, read_projectors
from .feed import Feed
from .fit import check_classifier
from .held_out import HeldOut
from .inside import Inside
from .ledger import Ledger, check
from .module import StudentModule
from .questions import Questions, open_questions
from .records import StudentJob
from .report import Reporter
from .residents import Residents, find_mean_gradients, open_residents
from .selecting import Selector
from .start import load_student, settle
from .step import Stepped, Stepper

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
    settle(job.spec, rank)
    reporter.phase("reading data")
    data = prepare(job.spec.data, job.tokenizer, job.cache_folder)
    clock.lap("data")
    reporter.phase("loading student")
    loaded = load_student(job)
    clock.lap("model")
    questions = open_questions(job, rank, next(loaded.module.parameters()).device)
    clock.lap("pool")
    try:
        check_classifier(job.spec, data, loaded, questions)
        check_diagnostics(job.spec, data, job.crossings)
        maps = _maps(job, data, loaded, questions)
        residents = open_residents(job, data, loaded, maps)
        clock.lap("residents")
        with Run(
            job, rank, world, reporter, data, loaded, questions, maps, residents, clock
        ) as run:
            return run.whole()
    finally:
        if questions is not None:
            questions.source.close()


def _maps(
    job: StudentJob, data: TokenData, loaded: Loaded, questions: Questions | None
) -> LayerMaps:
    """What terms look at inside student and roles, about which the questions then ask too."""
    if not job.spec.objective.looks_inside:
        return LayerMaps()

    def describe(role: str) -> RoleDescription:
        assert questions is not None  # a role is served
        return questions.source.describe(role)

    maps = maps_of(job.spec, data, loaded, describe)
    if questions is not None:
        questions.asks |= maps.asks
    return maps


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
        maps: LayerMaps,
        residents: Residents,
        clock: Clock,
    ) -> None:
        spec = job.spec
        self.job, self.spec, self.rank, self.world = job, spec, rank, world
        self.reporter, self.data, self.loaded, self.clock = reporter, data, loaded, clock
        self.questions = questions
        reporter.phase("starting DeepSpeed")
        owed = owed_loss(loaded.module)
        self.inside = None
        if maps.pairs or residents:
            whole = bool(residents) and spec.training.zero < 3
            projectors = read_projectors(job.projectors)
            self.inside = Inside(maps, spec.seed, projectors, parameters=whole)
            self.inside.to(input_device(loaded.module))
        frozen = [] if spec.student.trainable is None else frozen_parts(loaded.module)
        # Before ZeRO cuts them.
        self.parameters = sum(each.numel() for each in loaded.module.parameters())
        main = spec.student.main
        module = StudentModule(loaded.module, loaded.head(), owed, self.inside, frozen, main)
        self.engine = Engine(module, spec, zero3_leaves(loaded.module))
        clock.lap("deepspeed")
        self.changing = changing_data(spec, data, self.engine, questions, rank, world)
        self.order = Order(
            data.train if self.changing is None else self.changing.store,
            spec.data.row_tokens,
            spec.training.global_batch,
            spec.seed,
            spec.data.packing,
            None if self.changing is None else self.changing.membership,
        )
        self.steps = spec.training.steps or sum(
            self.order.steps_per_epoch(epoch) for epoch in range(spec.training.epochs or 0)
        )
        self.until = min(self.steps, job.pause_at or self.steps)
        watch = None if self.changing is None else self.changing.watch
        popularity = None
        if spec.data.ranks_items:
            popularity = torch.from_numpy(data.popularity).to(self.engine.device)
        if spec.objective.whole_gradient_roles and not job.evaluate_only:
            reporter.phase("roles' gradients over all data")
            find_mean_gradients(spec, data, residents, rank, world)
            clock.lap("residents")
        self.objective = build_objective(spec.objective, maps.pairs, popularity, residents)
        self.stepper = Stepper(self.engine, self.objective, spec.training, owed, watch)
        local_rank = int(os.environ["LOCAL_RANK"])
        self.checkpoints = Checkpoints(
            job.run_folder, job.run_id, spec.training.checkpoint.keep, rank, local_rank
        )
        asker = Asker(collation(spec.data), questions, self.engine.device)
        compared = spec.compared_with(job.crossings)
        self.held_out = HeldOut(self.engine, data.held_out, spec, rank, world, asker, compared)
        self.site = Site(
            self.engine,
            data,
            spec,
            rank,
            world,
            asker,
            self.held_out,
            compared,
            loaded.vocabulary,
            end_token(spec, job.tokenizer),
            residents,
        )
        self.best: Best | None = None
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
        """Restore, train, evaluate, export; a job that pauses on the way exports nothing."""
        if self.job.evaluate_only:
            evaluation = self.evaluate(0, last=True)
            return {"status": "done", "run_id": self.job.run_id, "evaluation": evaluation}
        start = self._restore()
        began = JobStarted(self.spec.name, self.job.run_id, self.steps, self._used())
        self.reporter.event(began, start)
        if start == 0 and self.spec.evaluation.before:
            self.evaluate(0)
        self.clock.lap("evaluation")
        self._train(start)
        paused = self.until < self.steps
        evaluation = self.evaluate(self.until) if paused else self._final_evaluation()
        summary = self._summary(evaluation)
        if paused:
            return {**summary, "status": "paused"}
        self.reporter.phase("exporting")
        exported = export_student(self.job, self.engine, self.inside)
        return {
            **summary,
            "export": exported.folder,
            **({"members": exported.members} if exported.members else {}),
            "weights_sha256": exported.weights_sha256,
            "generated": exported.generated,
        }

    def _summary(self, evaluation: dict[str, Any]) -> dict[str, Any]:
        """What can be said once the steps are done. Collective."""
        return {
            "status": "done",
            "run_id": self.job.run_id,
            "steps": self.until,
            "parameters": self.parameters,
            "tokens": self.tokens,
            "tokens_per_s": self.tokens / self.loop_s if self.loop_s else 0.0,
            "student_wait_share": self.wait_s / self.loop_s if self.loop_s else 0.0,
            "used": asdict(self._used()),
            "pool": self._pool_counts(),
            "cache": self._summed(self.questions.cache_counts() if self.questions else {}),
            "evaluation": evaluation,
            **({} if self.best is None else {"best": asdict(self.best)}),
            "data_version": self.data.version,
            "seconds": self.clock.parts,
        }

    # --- the loop --------------------------------------------------------------------------------

    def _train(self, start: int) -> None:
        feed = Feed(
            self.data.train,
            self.order,
            collation(self.spec.data),
            self.spec.training.micro_batch,
            self.rank,
            self.world,
            start,
            self.until,
            self.engine.device,
            self.questions,
            self.ledger,
            asks_ahead=self.spec.objective.select is None,
        )
        if self.changing is not None:
            feed.store = self.changing.store
        selector = self._selector()
        for step in range(start, self.until):
            began = time.monotonic()
            waited = feed.wait_s
            micros = feed.step(step)
            waited = feed.wait_s - waited
            if selector is not None:
                waited -= selector.wait_s
                micros = selector.choose(step, self.order.locate(step)[0], micros)
                waited += selector.wait_s
            tokens = sum(micro.tokens for micro in micros)
            tell = partial(self._tell, waited, tokens)
            done = self.stepper.step(self._progress(step), micros, tell)
            feed.commit(step, micros)
            metrics = self._account(done, time.monotonic() - began)
            used = self._used(done.told)
            told = StepDone(self.spec.name, step + 1, self.steps, metrics, used)
            self.reporter.event(told, step + 1)
            if step == start:
                self.clock.lap("first_step")
            self._between_steps(step + 1, done.told["stop"] > 0, done.told["by_clock"] > 0)
            if self.changing is not None:
                feed.store = self.changing.store

    def _selector(self) -> Selector | None:
        """Who asks roles about a part of each batch, where the objective says so."""
        select = self.spec.objective.select
        if select is None or self.questions is None:
            return None
        return Selector(select, self.engine, self.data.train, self.questions, self.ledger)

    def _progress(self, step: int) -> Progress:
        epoch, _ = self.order.locate(step)
        return Progress(step, self.steps, epoch, self.spec.training.epochs)

    def _tell(self, waited_s: float, tokens: int) -> dict[str, float]:
        """What this rank adds to the step's sum over ranks; rank 0 decides what all must do."""
        every = self.spec.training.checkpoint.every_minutes
        due = every is not None and time.monotonic() - self._checkpointed_at >= 60 * every
        return {
            "stop": float(self.reporter.stop_requested()),
            "by_clock": float(due and self.rank == 0),
            "waited_s": waited_s,
            "tokens": float(tokens),
            **self._asked(),
        }

    def _asked(self) -> dict[str, float]:
        """What roles have done for this rank."""
        if self.questions is None:
            return {"worked_s": 0.0, "computed": 0.0}
        counts = self.questions.source.counts
        return {"worked_s": counts.worked_s, "computed": float(counts.misses)}

    def _used(self, asked: Mapping[str, float] | None = None) -> Used:
        """What the run has used. Collective, but where all ranks' `_asked` are given."""
        asked = sum_over_ranks(self._asked(), self.engine.device) if asked is None else asked
        student_s = self.world * self.loop_s
        return Used(self.tokens, student_s, asked["worked_s"], int(asked["computed"]))

    def _account(self, done: Stepped, took_s: float) -> dict[str, float]:
        """Add a step to the run's sums; its metrics."""
        tokens, waited_s = done.told["tokens"], done.told["waited_s"] / self.world
        self.tokens += int(tokens)
        self.loop_s += took_s
        self.wait_s += waited_s
        return {
            **done.metrics(),
            "throughput/tokens_per_s": tokens / took_s,
            "student/wait_share": min(1.0, waited_s / took_s),
            **(self.questions.metrics() if self.questions is not None else {}),
        }

    def _between_steps(self, done: int, stop: bool, by_clock: bool) -> None:
        every = self.spec.training.checkpoint.every_steps
        epoch = self.order.locate(done - 1)[0]
        whole = self.order.ends_epoch(done - 1)
        if whole or done == self.until:
            self._check_counts(epoch, whole)
        if whole and self.changing is not None and done < self.steps:
            self.changing.epoch_over(epoch + 1, self.engine.device)
        best = self._evaluate_during(done)
        if stop and done < self.until and self.questions is not None:
            self.questions.source.close()  # so that the checkpoint knows all that was computed
        if best or stop or by_clock or done == self.until or done % every == 0:
            self._write_checkpoint(done)
        if stop and done < self.until:
            raise Interrupted(f"job {self.spec.name!r} stopped after step {done}")

    def _evaluate_during(self, done: int) -> bool:
        """Measure what is due before the end; whether the state is the best so far."""
        every = self.spec.evaluation.every_steps
        held_out = every is not None and done % every == 0
        if done == self.until or not (held_out or self.spec.evaluation.diagnostics):
            return False
        return self._note_best(done, self.evaluate(done, held_out=held_out))

    def _final_evaluation(self) -> dict[str, Any]:
        """Of the state that is exported, which is the engine's from here on."""
        evaluation = self.evaluate(self.steps, last=True)
        self._note_best(self.steps, evaluation)
        if self.best is None or self.best.step == self.steps:
            return evaluation
        self.reporter.phase(f"back to step {self.best.step}, the best")
        self.checkpoints.read(self.best.step, self.engine.load)
        return self.evaluate(self.steps, last=True)

    def _note_best(self, step: int, evaluation: dict[str, Any]) -> bool:
        """Whether the state after `step` is the best that was evaluated."""
        spec = self.spec.training.checkpoint.best
        if spec is None or not evaluation:
            return False
        self.best = better(spec, self.best, step, evaluation)
        if self.best is None or self.best.step != step:
            return False
        self.checkpoints.spared = step
        return True

    # --- promise 1 -------------------------------------------------------------------------------

    def _check_counts(self, epoch: int, whole: bool) -> None:
        """Samples asked = delivered = consumed in an epoch that is over. Collective."""
        if self.questions is None:
            return
        found = self.ledger.of_epoch(epoch, self.engine.device)
        known = whole and self.spec.objective.select is None
        expected = len(self.questions.asks) * self.order.samples_of_epoch(epoch)
        check(epoch, found, expected if known else None)
        logger.info("epoch %d: asked = delivered = consumed = %d", epoch, found["consumed"])

    def _pool_counts(self) -> dict[str, Any]:
        if self.questions is None:
            return {}
        return {
            **self._summed(self.questions.pool_counts()),
            "samples": self.ledger.whole(self.engine.device),
            "replayed_steps": self.replayed_steps,
        }

    def _summed(self, mine: dict[str, int]) -> dict[str, int]:
        """Counts of all ranks. Collective."""
        totals = sum_over_ranks({k: float(v) for k, v in mine.items()}, self.engine.device)
        return {name: int(value) for name, value in totals.items()}

    # --- checkpoints and evaluation --------------------------------------------------------------

    def _write_checkpoint(self, done: int) -> None:
        self.reporter.settle()
        folder = self.checkpoints.write(
            done,
            self.engine.save,
            {
                "consumed": self.ledger.committed(),
                "tokens": self.tokens,
                "loop_s": self.loop_s,
                "wait_s": self.wait_s,
                "schedules": self.stepper.schedules,
                "changing": kept(self.changing, self.spec),
                "best": None if self.best is None else asdict(self.best),
                "asked": None if self.questions is None else asdict(self.questions.source.counts),
            },
            workers=self.world,
            zero=self.spec.training.zero,
            data_version=self.data.version,
            seed=self.spec.seed,
        )
        self._checkpointed_at = time.monotonic()
        written = CheckpointWritten(self.spec.name, done, folder, self._used())
        self.reporter.event(written, done)

    def _restore(self) -> int:
        """Go on from the newest checkpoint; the step to begin with. Collective."""
        facts: Any = {
            "workers": self.world,
            "zero": self.spec.training.zero,
            "data_version": self.data.version,
            "seed": self.spec.seed,
        }
        source, manifest = self.checkpoints, self.checkpoints.latest(**facts)
        furthest, start = self.reporter.furthest(), self.spec.training.start
        if manifest is None and self.job.resume:
            raise CheckpointError(
                f"{self.job.run_folder} has no checkpoint to go on from; start a new run"
            )
        if manifest is None and start is not None:
            source = self.checkpoints.of(start.run)
            manifest = source.at(start.step, **facts)
        if manifest is None:
            self.replayed_steps = furthest
            return 0
        state = source.read(manifest.step, self.engine.load)
        self.ledger = Ledger.restored(state["consumed"])
        self.tokens, self.loop_s, self.wait_s = state["tokens"], state["loop_s"], state["wait_s"]
        if self.questions is not None and (asked := state.get("asked")) is not None:
            self.questions.source.counts = SourceCounts(**asked)
        take_up(self.changing, self.spec, state["changing"], source.folder(manifest.step))
        if source is self.checkpoints and (best := state.get("best")) is not None:
            self.best = Best(**best)
            self.checkpoints.spared = self.best.step
        self.stepper.schedules |= {
            key: kept for key, kept in state["schedules"].items() if key in self.stepper.schedules
        }
        self.replayed_steps = max(0, furthest - manifest.step)
        return manifest.step

    def evaluate(self, step: int, *, held_out: bool = True, last: bool = False) -> dict[str, Any]:
        """Measure what is due, and say so. Collective.

        Args:
            step: optimiser steps done.
            held_out: whether the usual held-out numbers are due.
            last: whether training is over, when every diagnostic is due.
        """
        evaluation: dict[str, Any] = {}
        metrics: dict[str, float] = {}
        if held_out:
            self.reporter.phase("evaluating")
            found = self.held_out.measure()
            if found is not None:
                evaluation, metrics = found.to_dict(), found.metrics()
        numbers = self.objective.numbers(self._progress(max(0, step - 1)), self.stepper.schedules)
        if diagnosed := diagnose(self.site, step, self.objective, numbers, last=last):
            evaluation["diagnostics"] = diagnosed
            metrics |= diagnostic_metrics(diagnosed)
        if evaluation:
            self.reporter.event(Evaluated(self.spec.name, step, evaluation, metrics), step)
        return evaluation
