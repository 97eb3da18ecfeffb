"""One optimiser step of a small student, cut over ranks and micro-batches in many ways.

Run as a program by `test_cutting_changes_nothing`: `cutting.py FOLDER`, once per rank, with RANK,
WORLD_SIZE, MASTER_ADDR and MASTER_PORT set. The test imports `global_batch` and `ways` as well, and
computes what the step should give without any of our code below them.
"""

import itertools
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROWS, LENGTH, EMPTY_ROWS, SILENT_ROWS = 16, 24, 4, (4, 5)
CLIP, LR, DECAY, BETAS, EPS = 0.5, 1e-2, 0.1, (0.9, 0.95), 1e-3
"""A large eps keeps Adam's first step smooth, so that rounding stays rounding."""
COEFFICIENT = 0.5
IDLE = "idle"
"""A matrix of ones that no loss reaches."""
LAYER, LAYER_WIDTH, ROLE_WIDTH = "model.layers.0", 32, 24
WEIGHTS = {"cross_entropy": 0.7, "forward_kl": 1.3, "reverse_kl": 0.4, "jensen_shannon": 0.6}
T_FORWARD, T_REVERSE, T_JS, BETA = 2.0, 1.5, 1.25, 0.3
LAYERS = {"layers": [{"student": LAYER, "role": "theirs"}]}
FEATURES: list[dict[str, Any]] = [
    {"kind": "hidden_states", "projector": "linear", "weight": 0.2, **LAYERS},
    {"kind": "attention_transfer", "weight": 0.5, **LAYERS},
    {"kind": "similarity_preserving", "group": 2, "weight": 2.0, **LAYERS},
]
"""Of one layer in the middle of the student; no cut splits two rows that are compared."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to cut and hold the same step."""

    workers: int
    micro_batch: int
    zero: int
    family: str
    gradient_checkpointing: bool

    @property
    def name(self) -> str:
        """Distinct, and fit for a file."""
        return "-".join(f"{key}={value}" for key, value in asdict(self).items())


def ways(workers: int) -> list[Way]:
    """All cuts, stages and heads, with and without gradient checkpointing.

    A mixture of experts is balanced in each micro-batch, so it is cut in one way only.
    """
    cuts = itertools.product((2, 8), range(4), ("llama", "llama_tied"), (False, True))
    dense = [Way(workers, *cut) for cut in cuts]
    return [*dense, *(Way(workers, 8, zero, "mixtral", zero == 2) for zero in (0, 2, 3))]


def student(family: str) -> Any:
    """A `Loaded`, equal on every call; experts are balanced with a weight that shows."""
    from tiny_models import tiny

    loaded = tiny(family, for_training=True)
    if family == "mixtral":
        loaded.config.router_aux_loss_coef = COEFFICIENT
    return loaded


def global_batch(vocabulary: int) -> dict[str, Tensor]:
    """[ROWS, LENGTH] int64 arrays of a batch with ragged loss masks.

    Two samples a row; each row bears loss at another share of its positions; two rows that make one
    micro-batch bear none; the last rows are empty, as at the end of an epoch.
    """
    generator = torch.Generator().manual_seed(3)
    shape = (ROWS, LENGTH)
    input_ids = torch.randint(1, vocabulary, shape, generator=generator)
    split = torch.randint(4, LENGTH - 4, (ROWS, 1), generator=generator)
    position = torch.arange(LENGTH).expand(shape)
    second = position >= split
    position_ids = torch.where(second, position - split, position)
    targets = input_ids.roll(-1, 1)
    bears = torch.rand(shape, generator=generator) < torch.linspace(0.2, 1.0, ROWS)[:, None]
    bears &= position != split - 1
    bears[:, -1] = False
    bears[list(SILENT_ROWS)] = False
    sample_index = 2 * torch.arange(ROWS)[:, None] + second
    empty = torch.arange(ROWS)[:, None] >= ROWS - EMPTY_ROWS
    return {
        "input_ids": input_ids.masked_fill(empty, 0),
        "position_ids": position_ids,
        "targets": targets.masked_fill(~bears | empty, -100),
        "sample_index": sample_index.masked_fill(empty, -1),
    }


def job(way: Way) -> Any:
    """The job of a way to cut; data and student are placeholders."""
    from orchestrator.spec import JobSpec

    term = {kind: {"kind": kind, "weight": weight} for kind, weight in WEIGHTS.items()}
    term["forward_kl"] |= {"temperature": T_FORWARD}
    term["reverse_kl"] |= {"temperature": T_REVERSE}
    term["jensen_shannon"] |= {"temperature": T_JS, "beta": BETA}
    return JobSpec.model_validate(
        {
            "name": "cut",
            "student": {"path": "unused"},
            "roles": {"teacher": {"path": "unused"}},
            "data": {"sources": [{"kind": "text", "path": "unused"}]},
            "objective": {"terms": [*term.values(), *FEATURES]},
            "training": {
                "steps": 10,
                "global_batch": ROWS,
                "micro_batch": way.micro_batch,
                "workers": way.workers,
                "zero": way.zero,
                "clip": CLIP,
                "optimizer": {"lr": LR, "weight_decay": DECAY, "betas": BETAS, "eps": EPS},
                "checkpoint": {"every_steps": 5},
            },
        }
    )


def maps() -> Any:
    """What the terms look at."""
    from orchestrator.planner.layer_maps import LayerMaps, Projector
    from strategies.pairs import Pair

    names = [term["kind"] for term in FEATURES]
    pairs = {name: (Pair(LAYER, "theirs"),) for name in names}
    pairs["hidden_states"] = (Pair(LAYER, "theirs", "map"),)
    projector = Projector("map", "linear", LAYER, LAYER_WIDTH, ROLE_WIDTH)
    return LayerMaps(pairs, layers=(LAYER,), projectors=(projector,))


def take_step(way: Way, folder: Path, rank: int) -> None:
    """One step through the engine; what it gave, as files."""
    from safetensors.torch import load_file, save_file

    from orchestrator.models.families import owed_loss, zero3_leaves
    from orchestrator.students.engine import Engine
    from orchestrator.students.inside import Inside
    from orchestrator.students.module import StudentModule
    from orchestrator.students.step import Stepper
    from strategies.objective import build_objective
    from strategies.progress import Progress

    spec = job(way)
    loaded = student(way.family)
    owed = owed_loss(loaded.module)
    if way.gradient_checkpointing:
        enable: Any = loaded.module.gradient_checkpointing_enable
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    micros = _micros(way, rank, loaded.vocabulary, load_file(folder / "teacher.safetensors"))
    module = StudentModule(loaded.module, loaded.head(), owed, Inside(maps(), spec.seed))
    read = dict(module.named_parameters())
    module.register_parameter(IDLE, torch.nn.Parameter(torch.ones(4, 4)))
    engine = Engine(module, spec, zero3_leaves(loaded.module))
    gradients: dict[str, Tensor] = {}

    def read_gradients() -> dict[str, float]:
        for name, parameter in read.items():
            gradients[name.removeprefix("model.")] = _whole_gradient(parameter)
        return {"ranks": 1.0}

    objective = build_objective(spec.objective, pairs=maps().pairs)
    stepper = Stepper(engine, objective, spec.training, owed)
    stepped = stepper.step(Progress(0, 10), micros, read_gradients)
    weights = engine.weights()
    engine.close()
    told = {"losses": stepped.losses, "loss": stepped.loss, "norm": stepped.gradient_norm}
    told["ranks"] = stepped.told["ranks"]
    (folder / f"{way.name}.{rank}.json").write_text(json.dumps(told))
    if weights is not None:
        gone = {name.removeprefix("model."): weight for name, weight in weights.items()}
        arrays = {f"gradient/{name}": value for name, value in gradients.items()}
        arrays |= {f"weight/{name}": gone[name].clone() for name in (*gradients, IDLE)}
        save_file(arrays, folder / f"{way.name}.safetensors")


def take_poisoned_step(folder: Path, rank: int) -> None:
    """A step in which the last rank's teacher says NaN: what each rank raised, and whether its
    weights stayed."""
    from safetensors.torch import load_file

    from orchestrator.errors import NonFiniteLoss
    from orchestrator.students.engine import Engine
    from orchestrator.students.inside import Inside
    from orchestrator.students.module import StudentModule
    from orchestrator.students.step import Stepper
    from strategies.objective import build_objective
    from strategies.progress import Progress

    way = Way(2, 2, 0, "llama", False)
    spec = job(way)
    loaded = student(way.family)
    student_module = StudentModule(loaded.module, loaded.head(), None, Inside(maps(), 0))
    engine = Engine(student_module, spec, [])
    before = [p.detach().clone() for p in loaded.module.parameters()]
    teacher = load_file(folder / "teacher.safetensors")
    if rank == 1:
        teacher["hidden"].fill_(float("nan"))
    objective = build_objective(spec.objective, pairs=maps().pairs)
    stepper = Stepper(engine, objective, spec.training)
    raised = ""
    try:
        stepper.step(Progress(3, 10), _micros(way, rank, loaded.vocabulary, teacher))
    except NonFiniteLoss as error:
        raised = str(error)
    same = [torch.equal(a, b) for a, b in zip(before, loaded.module.parameters(), strict=True)]
    (folder / f"poisoned.{rank}.json").write_text(json.dumps([raised, all(same)]))
    engine.close()


def _whole_gradient(parameter: torch.nn.Parameter) -> Tensor:
    from deepspeed.utils import safe_get_full_grad

    gradient = safe_get_full_grad(parameter)
    assert gradient is not None
    return gradient.detach().float().clone()


def _micros(way: Way, rank: int, vocabulary: int, teacher: dict[str, Tensor]) -> list[Any]:
    from orchestrator.students.feed import Micro
    from strategies.contract import Batch, Head, HiddenSignal, LayersSignal

    whole = global_batch(vocabulary)
    share = ROWS // way.workers
    micros = []
    for first in range(rank * share, (rank + 1) * share, way.micro_batch):
        rows = slice(first, first + way.micro_batch)
        arrays = {name: array[rows] for name, array in whole.items()}
        batch = Batch(
            {name: arrays[name] for name in ("input_ids", "position_ids")},
            arrays["targets"],
            arrays["sample_index"],
        )
        hidden = teacher["hidden"][rows][batch.mask]
        signal = HiddenSignal(hidden, Head(teacher["weight"]))
        layers = LayersSignal({"theirs": teacher["theirs"][rows][batch.mask]})
        signals = {"teacher": signal, "teacher.layers": layers}
        tokens = int((batch.sample_index >= 0).sum())
        micros.append(Micro(batch, signals, 2 * way.micro_batch, tokens))
    return micros


def main() -> None:
    """All ways for this number of ranks, in one process group."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    os.environ["LOCAL_RANK"] = str(rank)
    for way in ways(world):
        take_step(way, Path(sys.argv[1]), rank)
    if world == 2:
        take_poisoned_step(Path(sys.argv[1]), rank)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
