"""Promise 3: on any number of ranks and any micro-batch the step is the same.

Each way of cutting runs through the engine in processes of its own and is compared with the step
computed here: one process, the whole batch at once, full softmax, autograd, float64, plain AdamW.
"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cutting
import pytest
import torch
from cutting import BETA, T_FORWARD, T_JS, T_REVERSE, WEIGHTS, Way
from feature_oracle import oracle
from safetensors.torch import load_file, save_file
from tiny_models import tiny
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from orchestrator.students.inside import Inside

pytestmark = pytest.mark.timeout(600)

FAMILIES = ("llama", "llama_tied", "mixtral")
WAYS = [way for workers in (1, 2) for way in cutting.ways(workers)]


@dataclass(frozen=True)
class Expected:
    """The step as it should be, float64."""

    losses: dict[str, float]
    loss: float
    norm: float
    gradients: dict[str, Tensor]
    before: dict[str, Tensor]
    after: dict[str, Tensor]


def _teacher(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Last hidden states [ROWS, LENGTH, d] and head [V, d] of a fixed teacher."""
    module: Any = tiny("llama", seed=11).module
    with torch.no_grad():
        found = module.model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        )
    make = torch.Generator().manual_seed(12)
    return {
        "hidden": found.last_hidden_state,
        "weight": 2 * module.lm_head.weight.detach(),
        "theirs": torch.randn(*batch["targets"].shape, cutting.ROLE_WIDTH, generator=make),
    }


def _expected(family: str, batch: dict[str, Tensor], teacher: dict[str, Tensor]) -> Expected:
    module: Any = cutting.student(family).module.double()
    if family == "mixtral":
        module.set_experts_implementation("eager")  # the grouped one has no float64
    projectors: Any = Inside(cutting.maps(), 0).double()
    parameters = dict(module.named_parameters())
    parameters |= {f"inside.{name}": p for name, p in projectors.named_parameters()}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    layers: list[Tensor] = []
    watched = module.get_submodule(cutting.LAYER)
    watched.register_forward_hook(lambda _module, _inputs, output: layers.append(output))
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    student = module(**inputs, use_cache=False).logits
    mask = batch["targets"] != -100
    z, y = student[mask], batch["targets"][mask]
    t = (teacher["hidden"].double() @ teacher["weight"].double().T)[mask]

    def log_p(logits: Tensor, temperature: float) -> Tensor:
        return torch.log_softmax(logits / temperature, dim=-1)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum(-1)

    p, q = log_p(t, T_JS), log_p(z, T_JS)
    m = (BETA * p.exp() + (1 - BETA) * q.exp()).log()
    per_position = {
        "cross_entropy": -log_p(z, 1.0).gather(1, y[:, None])[:, 0],
        "forward_kl": T_FORWARD**2 * kl(log_p(t, T_FORWARD), log_p(z, T_FORWARD)),
        "reverse_kl": T_REVERSE**2 * kl(log_p(z, T_REVERSE), log_p(t, T_REVERSE)),
        "jensen_shannon": T_JS**2 * (BETA * kl(p, m) + (1 - BETA) * kl(q, m)),
    }
    losses = {term: value.mean() for term, value in per_position.items()}
    losses |= _features(batch, layers[0], projectors.projectors["map"], teacher["theirs"])
    weights = WEIGHTS | {term["kind"]: term["weight"] for term in cutting.FEATURES}
    loss = torch.stack([weights[term] * value for term, value in losses.items()]).sum()
    if family == "mixtral":
        loss = loss + cutting.COEFFICIENT * _balance(module, batch)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in parameters.items()}
    norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), cutting.CLIP))
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    torch.optim.AdamW(
        [{"params": matrices, "weight_decay": cutting.DECAY}, {"params": vectors}],
        lr=cutting.LR,
        betas=cutting.BETAS,
        eps=cutting.EPS,
        weight_decay=0.0,
    ).step()
    after = {name: p.detach().clone() for name, p in parameters.items()}
    plain = {term: float(value.detach()) for term, value in losses.items()}
    return Expected(plain, float(loss.detach()), norm, gradients, before, after)


def _features(
    batch: dict[str, Tensor], layer: Tensor, projector: Any, theirs: Tensor
) -> dict[str, Tensor]:
    """What the terms on the layer in the middle are, by the oracle."""
    places = [tuple(place) for place in (batch["targets"] != -100).nonzero().tolist()]
    index = [int(batch["sample_index"][place]) for place in places]
    samples = list(dict.fromkeys(index))
    row = {sample: place[0] for sample, place in zip(index, places, strict=True)}
    groups = [row[sample] // 2 for sample in samples]

    def cut(features: Tensor) -> list[list[Tensor]]:
        by_place = zip(index, places, strict=True)
        found: dict[int, list[Tensor]] = {}
        for sample, place in by_place:
            found.setdefault(sample, []).append(features[place])
        return list(found.values())

    role, plain, mapped = cut(theirs.double()), cut(layer), cut(projector(layer))
    found = {}
    for term in cutting.FEATURES:
        ours = mapped if term["kind"] == "hidden_states" else plain
        whole = {"distance": "mse", **term}
        found[term["kind"]] = oracle(whole, [(ours, role)], groups, maps=False)
    return found


def _balance(module: Any, batch: dict[str, Tensor]) -> Tensor:
    """The family's own balance loss, as the mean of the two halves that are its micro-batches."""
    halves = []
    for rows in (slice(0, 8), slice(8, 16)):
        routers = module.model(
            input_ids=batch["input_ids"][rows],
            position_ids=batch["position_ids"][rows],
            use_cache=False,
            output_router_logits=True,
        ).router_logits
        holds_text = (batch["sample_index"][rows] >= 0).long()
        halves.append(load_balancing_loss_func(routers, 4, 2, holds_text))
    return torch.stack(halves).mean()


def _start(folder: Path, workers: int) -> list[subprocess.Popen[bytes]]:
    root = Path(__file__).parents[2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests/support")]),
    }
    program = [sys.executable, str(root / "tests/support/cutting.py"), str(folder)]
    return [
        subprocess.Popen(
            program,
            env={**os.environ, **shared, "RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"{workers}-{rank}.err").open("wb"),
        )
        for rank in range(workers)
    ]


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the outcome of every way."""
    folder = tmp_path_factory.mktemp("cutting")
    save_file(_teacher(cutting.global_batch(97)), folder / "teacher.safetensors")
    started = [process for workers in (1, 2) for process in _start(folder, workers)]
    try:
        codes = [process.wait(timeout=500) for process in started]
    finally:
        for process in started:
            process.kill()
    errors = [file.read_text()[-3000:] for file in sorted(folder.glob("*.err"))]
    assert codes == [0, 0, 0], "\n".join(errors)
    return folder


@pytest.fixture(scope="module")
def references() -> dict[str, Expected]:
    """By family."""
    batch = cutting.global_batch(97)
    teacher = _teacher(batch)
    return {family: _expected(family, batch, teacher) for family in FAMILIES}


def test_the_batch_is_as_ragged_as_it_claims() -> None:
    targets = cutting.global_batch(97)["targets"]
    counts = (targets != -100).sum(1)
    assert not counts[list(cutting.SILENT_ROWS)].any() and not counts[-cutting.EMPTY_ROWS :].any()
    assert counts[:8].sum() != counts[8:].sum()
    assert len(set(counts.tolist())) > 6


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_cutting_changes_nothing(way: Way, taken: Path, references: dict[str, Expected]) -> None:
    expected = references[way.family]
    for rank in range(way.workers):
        told = json.loads((taken / f"{way.name}.{rank}.json").read_text())
        assert told["ranks"] == way.workers
        assert told["losses"] == pytest.approx(expected.losses, rel=1e-5)
        assert told["loss"] == pytest.approx(expected.loss, rel=1e-5)
        assert told["norm"] == pytest.approx(expected.norm, rel=1e-4)
    arrays = load_file(taken / f"{way.name}.safetensors")
    for name, gradient in expected.gradients.items():
        assert _apart(arrays[f"gradient/{name}"], gradient) < 1e-4, name
        moved = arrays[f"weight/{name}"] - expected.before[name]
        assert _apart(moved, expected.after[name] - expected.before[name]) < 1e-3, name
    idle = torch.full((4, 4), 1 - cutting.LR * cutting.DECAY)
    torch.testing.assert_close(arrays[f"weight/{cutting.IDLE}"], idle, rtol=1e-6, atol=0)


def test_a_loss_that_is_not_a_number_on_one_rank_stops_all_before_the_optimiser_moves(
    taken: Path,
) -> None:
    told = [json.loads((taken / f"poisoned.{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    raised, unmoved = told[0]
    assert raised.startswith("loss at step 3 is not finite: forward_kl = nan")
    assert unmoved


def _apart(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted."""
    return float((found.double() - wanted).norm() / wanted.norm())
