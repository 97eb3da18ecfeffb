"""Jobs of classifiers learned step by step with the trainer's own pieces, without Ray or DeepSpeed.

Student, data, order, layers, objective, step and export are those of a run; in place of the engine
there is a plain optimiser, in place of the pool each role runs where it is asked. What a role says
of logits could carry a gradient here, so that a test sees whether one reaches it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.data import Order, collation, prepare, share
from orchestrator.models.capture import by_sample, first_of, inside_classifier, watching
from orchestrator.models.exported import Export, may_import
from orchestrator.models.forward import classify
from orchestrator.models.gradients import by_sample as of_samples
from orchestrator.models.gradients import confidence_gradients, placing
from orchestrator.models.load import Loaded, load_model
from orchestrator.models.trainable import frozen_parts
from orchestrator.planner.layer_maps import LayerMaps
from orchestrator.pool.inside import maps_of
from orchestrator.signals.records import INPUT
from orchestrator.spec import JobSpec
from orchestrator.students.batches import to_device
from orchestrator.students.engine import parameter_groups
from orchestrator.students.export import Exported, _write  # pyright: ignore[reportPrivateUsage]
from orchestrator.students.feed import Micro
from orchestrator.students.inside import Inside
from orchestrator.students.module import StudentModule
from orchestrator.students.records import StudentJob
from orchestrator.students.start import load_student
from orchestrator.students.step import Stepped, Stepper
from strategies.contract import Batch, DenseSignal, GradientsSignal, LayersSignal, Signal
from strategies.objective import build_objective
from strategies.progress import Progress

CPU = torch.device("cpu")


class PlainEngine:
    """The engine's port over AdamW: one process, gradients added over micro-batches."""

    device, gradient_factor = CPU, 1.0

    def __init__(self, module: nn.Module, job: JobSpec) -> None:
        self.module, self._clip = module, job.training.clip
        spec = job.training.optimizer
        groups = parameter_groups(module, spec)
        self._optimizer = torch.optim.AdamW(groups, lr=1.0, betas=spec.betas, eps=spec.eps)
        self._norm = 0.0

    def set_learning_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def backward(self, batch: Batch, consume: Any, before_step: Any = None, owe: Any = None):
        self.module(batch, consume, owe).backward()
        if before_step is None:
            return
        before_step()
        own = [p for p in self.module.parameters() if p.grad is not None]
        self._norm = float(nn.utils.clip_grad_norm_(own, self._clip or float("inf")))
        self._optimizer.step()
        self._optimizer.zero_grad()

    def gradient_norm(self) -> float:
        return self._norm


@dataclass
class Learned:
    """What a job has left."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    roles: Mapping[str, Loaded]
    steps: list[Stepped]
    job: StudentJob

    def export(self) -> Exported:
        """As the run's end would write it."""
        return _write(self.job, self.after)

    @property
    def changed(self) -> set[str]:
        """Names of the weights that are no longer what they were."""
        return {name for name, w in self.before.items() if not w.equal(self.after[name])}


def placed(job: JobSpec, exports: Mapping[str, Export]) -> JobSpec:
    """The job with students of earlier ones where they lie."""

    def model(found: Any) -> Any:
        if found.job is None:
            return found
        path = exports[found.job].of(found.member)
        code = may_import(path, found.job, exports, "student", found.member)
        update = {"job": None, "member": None, "path": path, "allow_remote_code": code}
        return found.model_copy(update=update)

    roles = {name: model(role) for name, role in job.roles.items()}
    return job.model_copy(update={"student": job.student.with_models(model), "roles": roles})


def learn(
    job: JobSpec, root: Path, exports: Mapping[str, Export] | None = None, steps: int = 1
) -> Learned:
    """The first steps of a job. Needs a process group of one."""
    spec = placed(job, exports or {})
    run = StudentJob(spec, job.name, str(root / job.name), None, str(root / "data"))
    data = prepare(spec.data, None, run.cache_folder)
    loaded = load_student(run)
    roles = {name: _role(spec, name) for name in spec.used_roles}
    probe = to_device(collation(spec.data)(data.train, [(0,), (1,)]), CPU)
    maps = LayerMaps()
    if spec.objective.looks_inside:
        describe: Any = lambda role: inside_classifier(roles[role].module, probe.inputs)  # noqa: E731
        maps = maps_of(spec, data, loaded, describe)
    inside = Inside(maps, spec.seed) if maps.pairs else None
    frozen = [] if spec.student.trainable is None else frozen_parts(loaded.module)
    module = StudentModule(loaded.module, None, None, inside, frozen, spec.student.main)
    before = _weights(loaded.module)
    engine: Any = PlainEngine(module, spec)
    stepper = Stepper(engine, build_objective(spec.objective, maps.pairs), spec.training)
    training, collate = spec.training, collation(spec.data)
    order = Order(
        data.train, spec.data.row_tokens, training.global_batch, spec.seed, spec.data.packing
    )
    done = []
    for step in range(steps):
        parts = share(order.rows(step), 0, 1, training.micro_batch)
        micros = [_micro(collate, data.train, rows, roles, maps) for rows in parts]
        done.append(stepper.step(Progress(step, training.steps or steps), micros))
    return Learned(before, _weights(loaded.module), roles, done, run)


def learn_all(jobs: Sequence[JobSpec], root: Path, steps: int = 1) -> list[Learned]:
    """A list of jobs, each exported for those after it."""
    exports: dict[str, Export] = {}
    found = []
    for job in jobs:
        found.append(learn(job, root, exports, steps))
        exports[job.name] = Export(found[-1].export().folder, job.student)
    return found


def _role(spec: JobSpec, name: str) -> Loaded:
    found = load_model(spec.roles[name], seed=101, field=f"roles.{name}")
    found.module.requires_grad_(True)
    return found


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in module.state_dict().items()}


def _micro(
    collate: Any, store: Any, rows: Any, roles: Mapping[str, Loaded], maps: LayerMaps
) -> Micro:
    batch = to_device(collate(store, rows), CPU)
    signals: dict[str, Signal] = {}
    for name, role in roles.items():
        ask: Any = maps.asks.get(f"{name}.layers")
        taken: dict[str, Tensor] = {}

        def see(path: str, output: Any, taken: dict[str, Tensor] = taken) -> None:
            found = first_of(output)
            assert found is not None
            taken[path] = by_sample(found, batch.inputs)[batch.mask[:, 0]].detach()

        by: Any = maps.asks.get(f"{name}.gradients")
        learned, paths = batch.mask[:, 0], () if by is None else by.layers
        with (
            watching(role.module, () if ask is None else ask.layers, see),
            placing(role.module, paths, INPUT, text=False) as places,
        ):
            logits = classify(role.module, batch.inputs)
        signals[name] = DenseSignal(logits[learned])
        signals[f"{name}.layers"] = LayersSignal(taken)
        if places:
            found = confidence_gradients(logits, places, create_graph=True)
            own = {path: of_samples(g.detach(), None)[learned] for path, g in found.items()}
            signals[f"{name}.gradients"] = GradientsSignal(own)
    return Micro(batch, signals, len(rows), len(rows), rows)
