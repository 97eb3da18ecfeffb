"""What each encoding costs and how far its loss and gradient are from those of full logits.

    python tests/benchmarks/encoding_costs.py

The teacher is the shipped one, on Python source text; the student is the same model cut after its
second layer: worse, and related. The loss is forward KL at temperature 1 in float64; the gradient
is taken by the student's hidden state and seen along eight fixed random directions. `topk` coarsens
both sides to its kept entries and one for the rest, so its loss is lower by what it does not see:
that is its bias. Costs at a large vocabulary come from a random head of the same width.

Each figure is against `full` in float32 at the same positions:
    loss bias: mean over positions (and seeds) of the difference, nats; loss sd: its standard
    deviation about that, at one position. gradient bias: size of the mean gradient's error over
    the size of the mean gradient; gradient sd: the root mean square of a position's error over
    that of a position's gradient. The expected bias of `sampled` is 0; what is seen is noise.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from orchestrator.data.stdlib import documents
from orchestrator.data.tokenizer import load_tokenizer
from orchestrator.models.load import load_model
from orchestrator.pool.engine import ModelEngine
from orchestrator.signals.encodings import RoleOutputs, decode, encode
from orchestrator.signals.layouts import Sizes, position_bytes
from orchestrator.signals.records import (
    AttentionAsk,
    FullAsk,
    HiddenAsk,
    LayersAsk,
    Reply,
    Request,
    SampledAsk,
    SignalAsk,
    TopKAsk,
)
from orchestrator.spec.models import ModelSpec
from strategies.contract import DenseSignal, Head, HiddenSignal, SampledSignal, TopKSignal

TEACHER = Path(__file__).parents[2] / "docs/examples/teacher"
LARGE = 151_936
LENGTH = 256
BLOCK, ATTENTION = "model.layers.1", "model.layers.1.self_attn"
PROJECTED = 64

LOGITS: list[SignalAsk] = [
    FullAsk("float32"),
    FullAsk("float16"),
    FullAsk("bfloat16"),
    HiddenAsk("float32"),
    HiddenAsk("float16"),
    HiddenAsk("bfloat16"),
    TopKAsk(64, "float32", (1.0,)),
    TopKAsk(64, "float16", (1.0,)),
    TopKAsk(64, "int8", (1.0,)),
    TopKAsk(16, "float16", (1.0,)),
    SampledAsk(12, 1.0, "int8", 0),
    SampledAsk(12, 1.5, "float32", 0),
    SampledAsk(12, 1.5, "float16", 0),
    SampledAsk(12, 1.5, "int8", 0),
    SampledAsk(50, 1.0, "int8", 0),
]
INNER: list[SignalAsk] = [
    LayersAsk((BLOCK,), "float16"),
    LayersAsk((BLOCK,), "float16", project=PROJECTED),
    AttentionAsk((ATTENTION,), "float16"),
]


@dataclass(frozen=True, slots=True)
class Case:
    """A role's outputs, and a student to compare with."""

    outputs: RoleOutputs
    student: Tensor  # [N, d] float64 hidden states
    head: Head  # of both, float64

    @property
    def positions(self) -> int:
        """N."""
        return len(self.student)


def trained(samples: int) -> Case:
    """The shipped teacher on samples of Python source, each from another document."""
    loaded = load_model(ModelSpec(path=str(TEACHER), attention="eager"))
    head, module = loaded.head(), loaded.module
    assert head is not None
    tokenizer, found = load_tokenizer(TEACHER).backend, []
    for _, document in documents():
        ids = tokenizer.encode(document["text"][:8000]).ids
        if len(ids) >= 2 * LENGTH:
            found.append(ids[LENGTH : 2 * LENGTH])
        if len(found) == samples:
            break
    tokens = np.array(found, np.int32).reshape(-1)
    engine = ModelEngine("teacher", loaded)

    def ask(what: SignalAsk) -> dict[str, np.ndarray]:
        lengths = np.full(samples, LENGTH, np.int32)
        wanted = np.ones(len(tokens), bool)
        return engine.forward(Request("b", "teacher", "b", what, tokens, lengths, wanted))

    layers = ask(LayersAsk((BLOCK,), "float32"))[BLOCK]
    attention = ask(AttentionAsk((ATTENTION,), "float32"))[ATTENTION]
    norm: Any = module.get_submodule("model.norm")
    with torch.inference_mode():
        outputs = RoleOutputs(
            torch.from_numpy(ask(HiddenAsk("float32"))["hidden"]),
            Head(head.weight.detach()),
            captured={BLOCK: torch.from_numpy(layers), ATTENTION: torch.from_numpy(attention)},
            samples=np.repeat(np.arange(samples, dtype=np.uint64), LENGTH),
            positions=np.tile(np.arange(LENGTH), samples),
        )
        student = norm(torch.from_numpy(layers)).double()
    return Case(outputs, student.clone(), Head(head.weight.detach().double()))


def large(positions: int, width: int) -> RoleOutputs:
    """Random hidden states and a random head of a large vocabulary: for times alone."""
    generator = torch.Generator().manual_seed(0)
    return RoleOutputs(
        torch.randn(positions, width, generator=generator),
        Head(torch.randn(LARGE, width, generator=generator) * 0.2),
        samples=np.zeros(positions, np.uint64),
        positions=np.arange(positions),
    )


def forward_kl(signal: object, logits: Tensor) -> Tensor:
    """[N] float64, from the definitions; `logits` [N, V] float64 are the student's."""
    match signal:
        case DenseSignal() | HiddenSignal():
            if isinstance(signal, HiddenSignal):
                theirs = signal.hidden.double() @ signal.head.weight.double().T
            else:
                theirs = signal.logits.double()
            p, q = theirs.log_softmax(-1), logits.log_softmax(-1)
        case TopKSignal():
            rest = signal.rest[:, signal.ladder.index(1.0), None]
            p = torch.cat([signal.logprobs, rest], 1).double().log_softmax(-1)
            others = logits.scatter(1, signal.ids, -torch.inf).logsumexp(-1, keepdim=True)
            q = torch.cat([logits.gather(1, signal.ids), others], 1).log_softmax(-1)
        case SampledSignal():
            drawn = logits.log_softmax(-1).gather(1, signal.ids)
            return -(signal.weights.double() * drawn).sum(-1) - signal.entropy.double()
        case _:
            raise TypeError(f"no loss against {type(signal).__name__}")
    return (p.exp() * (p - q)).sum(-1)


def loss_and_gradient(case: Case, signal: object, directions: Tensor) -> tuple[Tensor, Tensor]:
    """([N] loss, [N, 8] gradient by the student's hidden state along the directions)."""
    student = case.student.clone().requires_grad_()
    loss = forward_kl(signal, student @ case.head.weight.T)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    return loss.detach(), gradient @ directions


def across(ask: SignalAsk, outputs: RoleOutputs) -> Any:
    """The signal that a student gets."""
    return decode(reply(ask, encode(ask, outputs), outputs), outputs.head)


def reply(ask: SignalAsk, arrays: dict[str, np.ndarray], outputs: RoleOutputs) -> Reply:
    """A role's answer."""
    return Reply("b", "teacher", ask, arrays, outputs.shape[1], "f")


def errors(case: Case, asks: Sequence[SignalAsk], seeds: int) -> list[list[str]]:
    """Four columns an ask; see the top of the file."""
    width = case.student.shape[1]
    directions = torch.randn(width, 8, generator=torch.Generator().manual_seed(1)).double()
    exact, slope = loss_and_gradient(case, across(FullAsk("float32"), case.outputs), directions)
    size, each = slope.mean(0).norm(), slope.norm(dim=1).square().mean().sqrt()
    print(
        f"full logits: KL {exact.mean():.3f} nats (sd over positions {exact.std():.3f}), "
        f"{case.positions} positions; mean gradient over a position's: {size / each:.3f}\n"
    )
    rows = []
    for ask in asks:
        drawn = isinstance(ask, SampledAsk)
        tries = [replace(ask, seed=s) for s in range(seeds)] if drawn else [ask]
        found = [loss_and_gradient(case, across(a, case.outputs), directions) for a in tries]
        off = torch.stack([loss - exact for loss, _ in found])
        bent = torch.stack([gradient - slope for _, gradient in found])
        noise = off.std() / off.numel() ** 0.5
        rows.append(
            [
                f"{off.mean():+.1e} ± {noise:.0e}",
                f"{off.std():.1e}",
                f"{bent.mean((0, 1)).norm() / size:.1e}",
                f"{bent.norm(dim=2).square().mean().sqrt() / each:.1e}",
            ]
        )
    return rows


def independent_draws(case: Case, draws: int) -> float:
    """Standard deviation of the loss at one position, were the draws independent."""
    with torch.no_grad():
        hidden = case.outputs.hidden
        assert hidden is not None
        p = (hidden.double() @ case.head.weight.T).softmax(-1)
        f = -(case.student @ case.head.weight.T).log_softmax(-1)
        variance = (p * f.square()).sum(-1) - (p * f).sum(-1).square()
    return float((variance.mean() / draws).sqrt())


def milliseconds(work: Callable[[], object], repeats: int, positions: int) -> str:
    """Median of a thousand positions, after one run that is not counted."""
    work()
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return f"{statistics.median(taken) * 1e6 / positions:.2g}"


def costs(ask: SignalAsk, outputs: RoleOutputs, repeats: int) -> list[str]:
    """[encode ms, decode ms] a thousand positions."""
    arrays = encode(ask, outputs)
    answer, positions = reply(ask, arrays, outputs), outputs.shape[0]
    return [
        milliseconds(lambda: encode(ask, outputs), repeats, positions),
        milliseconds(lambda: decode(answer, outputs.head), repeats, positions),
    ]


def name_of(ask: SignalAsk) -> str:
    """How the table calls an ask."""
    match ask:
        case TopKAsk():
            return f"topk {ask.k} {ask.dtype}"
        case SampledAsk():
            kind = "" if ask.temperature == 1.0 else f" T={ask.temperature:g} {ask.dtype}"
            return f"sampled {ask.draws}{kind}"
        case LayersAsk():
            return f"layers {ask.dtype}" + (f", {ask.project} columns" if ask.project else "")
    return f"{ask.kind} {ask.dtype}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """As Markdown."""
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=8, help=f"of {LENGTH} tokens")
    parser.add_argument("--large-positions", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=8, help="of the draws")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case = trained(options.samples)
    width, vocabulary = case.student.shape[1], len(case.head.weight)
    print(f"load of the machine: {os.getloadavg()[0]:.1f}; torch {torch.__version__}")
    distances = errors(case, LOGITS, options.seeds) + [["", "", "", ""]] * len(INNER)
    here = Sizes("teacher", vocabulary, width, {BLOCK: width}, {ATTENTION: 4})
    there = replace(here, vocabulary=LARGE)
    wide = large(options.large_positions, width)
    rows = []
    for ask, distance in zip(LOGITS + INNER, distances, strict=True):
        measured = costs(ask, case.outputs, options.repeats)
        inner = isinstance(ask, LayersAsk | AttentionAsk)
        large_ms = ["", ""] if inner else costs(ask, wide, options.repeats)
        size = position_bytes(ask, here, LENGTH)
        large_size = "" if inner else f"{position_bytes(ask, there, LENGTH):,}"
        rows.append([name_of(ask), f"{size:,}", *measured, *distance, large_size, *large_ms])
    head = ["encoding", f"bytes, V={vocabulary}", "encode ms", "decode ms", "loss bias", "loss sd"]
    head += ["gradient bias", "gradient sd", f"bytes, V={LARGE}", "encode ms", "decode ms"]
    table(head, rows)
    print("Times are for 1000 positions; with `topk`, `sampled` and `full` the head is included.")
    print(f"Independent draws, 12: loss sd {independent_draws(case, 12):.2g}.")


if __name__ == "__main__":
    main()
