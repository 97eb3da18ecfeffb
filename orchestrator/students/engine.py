"""DeepSpeed, behind five calls. Nothing above this file knows its types.

The job owns batch sizes, optimiser, clipping, precision and ZeRO stage; the user's own DeepSpeed
section is merged below those.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor, nn

from orchestrator.spec.job import JobSpec, LearningRateSpec, OptimizerSpec, TrainingSpec
from strategies.contract import Batch
from strategies.progress import Progress
from strategies.schedules import value
from strategies.specs import extremes

from .module import Consumer, Owe
from .operators import ADAM, COMMUNICATION, build_operators


def learning_rate(spec: LearningRateSpec, peak: float, step: int, total: int) -> float:
    """Rate of optimiser step `step` (0-based): linear warm-up, then decay to `end * peak`."""
    if step < spec.warmup_steps:
        return peak * (step + 1) / spec.warmup_steps
    if spec.decay == "constant":
        return peak
    span = max(1, total - 1 - spec.warmup_steps)
    done = min(1.0, (step - spec.warmup_steps) / span)
    share = 0.5 * (1 + math.cos(math.pi * done)) if spec.decay == "cosine" else 1 - done
    return peak * (spec.end + (1 - spec.end) * share)


def rate_at(training: TrainingSpec, at: Progress) -> float:
    """The rate of a step: its peak, which may be a schedule, in the shape of `learning_rate`."""
    peak = value(training.optimizer.lr, at)
    return learning_rate(training.learning_rate, peak, at.step, at.total_steps)


def parameter_groups(module: nn.Module, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """Matrices with weight decay, norms and biases without."""
    trained = _trained(module)
    matrices = [p for p in trained if _dimensions(p) >= 2]
    vectors = [p for p in trained if _dimensions(p) < 2]
    groups = [
        {"params": matrices, "weight_decay": spec.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _shape(parameter: nn.Parameter) -> torch.Size:
    # A parameter that ZeRO-3 has already partitioned keeps its true shape in ds_shape.
    return getattr(parameter, "ds_shape", parameter.shape)


def _dimensions(parameter: nn.Parameter) -> int:
    return len(_shape(parameter))


def _numbers(parameter: nn.Parameter) -> int:
    return _shape(parameter).numel()


def _optimizer(module: nn.Module, training: TrainingSpec) -> torch.optim.Optimizer:
    spec = training.optimizer
    groups, peak = parameter_groups(module, spec), extremes(spec.lr)[1]  # set anew at each step
    if training.offload == "cpu":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, lr=peak, betas=spec.betas, eps=spec.eps, adamw_mode=True)
    return torch.optim.AdamW(groups, lr=peak, betas=spec.betas, eps=spec.eps)


def stage(training: TrainingSpec) -> int:
    """The ZeRO stage that runs: stage 0 cannot add bf16 gradients in fp32, stage 1 can."""
    return max(training.zero, 1) if training.precision == "bf16" else training.zero


LARGEST_BUCKET = 500_000_000
"""Gradients that DeepSpeed sums at once, at most: its own default."""


def deepspeed_config(job: JobSpec, trained: int) -> dict[str, Any]:
    """The whole DeepSpeed configuration of a job whose student trains so many numbers.

    At each step a bucket is taken whole from memory, however little goes into it (and, where a job
    is deterministic, filled as well), so it is made no larger than the student.
    """
    training = job.training
    per_rank = training.global_batch // training.workers
    further = training.deepspeed
    zero: dict[str, Any] = {
        "stage": stage(training),
        "reduce_bucket_size": min(trained, LARGEST_BUCKET),
        **further.get("zero_optimization", {}),
    }
    if training.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
        if training.zero == 3:
            zero["offload_param"] = {"device": "cpu"}
    return {
        "wall_clock_breakdown": False,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        **{k: v for k, v in further.items() if k != "zero_optimization"},
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": per_rank // training.micro_batch,
        "train_batch_size": training.global_batch,
        "gradient_clipping": training.clip or 0.0,
        "bf16": {"enabled": training.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
    }


def _fill_gradients(module: nn.Module) -> None:
    """Zeros where there is no gradient, as the sum over ranks leaves them: weights decay alike."""
    for parameter in _trained(module):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _norm(module: nn.Module) -> float:
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


class Engine:
    """A DeepSpeed engine over one student module."""

    def __init__(self, module: nn.Module, job: JobSpec, leaves: Sequence[type[nn.Module]]) -> None:
        """`leaves` are modules that ZeRO-3 gathers whole (mixture-of-experts blocks)."""
        training = job.training
        config = deepspeed_config(job, sum(map(_numbers, _trained(module))))
        build_operators([COMMUNICATION, ADAM] if training.offload == "cpu" else [COMMUNICATION])
        if training.zero == 3 and leaves:
            deepspeed.utils.set_z3_leaf_modules(module, list(leaves))
        # DeepSpeed's own annotations are loose unions, hence Any.
        initialized: Any = deepspeed.initialize(
            model=module,
            model_parameters=_trained(module),  # type: ignore[arg-type]
            optimizer=_optimizer(module, training),
            config=config,
            dist_init_required=False,
        )
        self._engine: Any = initialized[0]
        self._optimizer: Any = initialized[1]
        self._accumulation: int = config["gradient_accumulation_steps"]
        self._world = training.workers
        self._zero = stage(training)
        self._alone = self._world == 1 and self._zero == 0
        if self._alone:
            self._engine.enable_backward_allreduce = False  # it would copy every gradient twice
        self._norm = 0.0

    @property
    def device(self) -> torch.device:
        """Where batches must be."""
        return self._engine.device

    @property
    def module(self) -> nn.Module:
        """The engine itself: call it as a module."""
        return self._engine

    @property
    def whole_module(self) -> nn.Module:
        """The wrapped module, whose gradients may be taken without the optimiser's knowing.

        Its weights are whole on each rank at ZeRO 0 to 2 only.
        """
        return self._engine.module

    @property
    def gradient_factor(self) -> float:
        """What DeepSpeed divides by: multiply a sum by this to get a plain sum over everything."""
        return float(self._accumulation * self._world)

    def set_learning_rate(self, rate: float) -> None:
        """For the next step."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def backward(
        self,
        batch: Batch,
        consume: Consumer,
        before_step: Callable[[], None] | None = None,
        owe: Owe | None = None,
    ) -> None:
        """Forward and backward of one micro-batch; `consume` and `owe` as `StudentModule` says.

        `before_step` is given with the last one: it runs after the gradients are there and before
        the optimiser moves, and may raise.
        """
        loss: Tensor = self._engine(batch, consume, owe)
        self._engine.backward(loss)
        if before_step is not None:
            if self._alone:
                _fill_gradients(self._engine.module)
            before_step()
            if self._zero == 0:
                self._norm = _norm(self._engine.module)
        self._engine.step()

    def gradient_norm(self) -> float:
        """Norm before clipping of the last step's gradient."""
        if self._zero == 0:
            return self._norm  # DeepSpeed clips there without telling the norm
        norm: Any = self._engine.get_global_grad_norm()
        return float(norm)

    def save(self, folder: Path) -> None:
        """Write this rank's part of weights and optimiser state. Collective."""
        self._engine.save_checkpoint(str(folder), tag="state", save_latest=False)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, with the same number of ranks. Collective."""
        loaded, _ = self._engine.load_checkpoint(str(folder), tag="state")
        if loaded is None:
            raise FileNotFoundError(folder / "state")

    def weights(self) -> dict[str, Tensor] | None:
        """Whole weights of the wrapped module by name, on the CPU, on rank 0; None elsewhere.

        Collective. Under ZeRO-3 one parameter at a time is gathered.
        """
        module: Any = self._engine.module
        rank = torch.distributed.get_rank()
        if self._zero < 3:
            if rank != 0:
                return None
            return {k: v.detach().cpu().clone() for k, v in module.state_dict().items()}
        gathered: dict[str, Tensor] = {}
        copies: dict[int, Tensor] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            with deepspeed.zero.GatheredParameters([parameter]):
                if rank == 0:
                    copy = copies.get(id(parameter))
                    if copy is None:
                        copy = copies[id(parameter)] = parameter.detach().cpu().clone()
                    gathered[name] = copy
        kept = module.state_dict().keys()  # buffers that are not saved are not in it
        for name, buffer in module.named_buffers():
            if name in kept:
                gathered[name] = buffer.detach().cpu().clone()
        return gathered if rank == 0 else None

    def close(self) -> None:
        """Let go of the engine's memory and hooks."""
        self._engine.destroy()
        accelerator: Any = get_accelerator()
        accelerator.empty_cache()
