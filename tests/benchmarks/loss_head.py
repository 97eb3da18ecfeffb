"""Time and memory of the loss head against plain torch, TRL and Liger.

    python tests/benchmarks/loss_head.py
    python tests/benchmarks/loss_head.py --rivals-python /path/to/venv/bin/python --compiled

Loss and gradients by hidden state and weight, the teacher as hidden states and a head, float32,
one thread. The ways of one case are timed in turn in one process, so that a slow moment of the
machine hits all alike; each way's peak memory comes from a process of its own: VmHWM, reset after
the inputs are made, less the resident set then (gradients count). `products` are the four matrix
products alone, on [N, V] buffers made before: the floor.

The rivals' interpreter needs torch, `trl` and `liger_kernel`; a way that cannot be imported, or
was not asked for, is left out and said so.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from strategies.contract import Head, HiddenSignal
from strategies.linear import vocabulary_loss
from strategies.parts import Part

OBJECTIVES = {"forward_kl": 0.0, "jensen_shannon": 0.5}
"""By name, the beta that TRL and Liger call it by."""
STUDENT_WIDTH, TEACHER_WIDTH = 256, 512
SHAPES = ((512, 32_000), (512, 151_936), (2048, 32_000))


@dataclass(frozen=True, slots=True)
class Inputs:
    """One case; N positions, V vocabulary."""

    hidden: Tensor  # [N, d_s], wants a gradient
    weight: Tensor  # [V, d_s], wants a gradient
    teacher_hidden: Tensor  # [N, d_t]
    teacher_weight: Tensor  # [V, d_t]
    targets: Tensor  # [N]


def make_inputs(positions: int, vocabulary: int) -> Inputs:
    torch.manual_seed(0)
    return Inputs(
        torch.randn(positions, STUDENT_WIDTH).requires_grad_(),
        torch.randn(vocabulary, STUDENT_WIDTH).mul_(0.05).requires_grad_(),
        torch.randn(positions, TEACHER_WIDTH),
        torch.randn(vocabulary, TEACHER_WIDTH).mul_(0.05),
        torch.randint(vocabulary, (positions,)),
    )


Way = Callable[[Inputs, str], Tensor]
"""The mean loss over positions of an objective."""


def ours(given: Inputs, objective: str) -> Tensor:
    part = Part(objective, 1 / len(given.hidden), "teacher")
    signal = HiddenSignal(given.teacher_hidden, Head(given.teacher_weight))
    head = Head(given.weight)
    return vocabulary_loss(given.hidden, head, given.targets, {"teacher": signal}, [part])[0]


def logits(given: Inputs) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        theirs = given.teacher_hidden @ given.teacher_weight.t()
    return given.hidden @ given.weight.t(), theirs


def plain(given: Inputs, objective: str) -> Tensor:
    return divergence(*logits(given), objective)


def divergence(mine: Tensor, theirs: Tensor, objective: str) -> Tensor:
    """Mean over positions, from [N, V] logits each."""
    log_q, log_p = mine.log_softmax(1), theirs.log_softmax(1)

    def kl(of: Tensor, to: Tensor) -> Tensor:
        return functional.kl_div(to, of, reduction="batchmean", log_target=True)

    if objective == "forward_kl":
        return kl(log_p, log_q)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * kl(log_p, log_m) + 0.5 * kl(log_q, log_m)


def trl_on_logits() -> Way:
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    def way(given: Inputs, objective: str) -> Tensor:
        mine, theirs = logits(given)
        return GKDTrainer.generalized_jsd_loss(mine, theirs, beta=OBJECTIVES[objective])

    return way


def trl_chunked() -> Way:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    def way(given: Inputs, objective: str) -> Tensor:
        return _chunked_divergence_loss(
            given.hidden.unsqueeze(0),
            given.teacher_hidden.unsqueeze(0),
            given.weight,
            given.teacher_weight,
            torch.ones(1, len(given.hidden)),
            OBJECTIVES[objective],
        )[0]

    return way


def liger(compiled: bool) -> Way:
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    def way(given: Inputs, objective: str) -> Tensor:
        beta = OBJECTIVES[objective]
        loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta=beta, compiled=compiled)
        student, teacher = (
            (given.hidden, given.weight),
            (given.teacher_hidden, given.teacher_weight),
        )
        return loss(*student, *teacher, given.targets)

    return way


WAYS: dict[str, Callable[[], Way]] = {
    "ours": lambda: ours,
    "plain": lambda: plain,
    "trl logits": trl_on_logits,
    "trl chunked": trl_chunked,
    "liger": lambda: liger(compiled=False),
    "liger compiled": lambda: liger(compiled=True),
}
RIVALS = tuple(WAYS)[2:]


def products(given: Inputs) -> Callable[[], object]:
    """The four matrix products, on buffers made here."""
    hidden, weight = given.hidden.detach(), given.weight.detach()
    mine = torch.ones(len(hidden), len(weight))
    theirs = torch.empty_like(mine)
    by_hidden, by_weight = torch.empty_like(hidden), torch.empty_like(weight)

    def run() -> None:
        torch.mm(given.teacher_hidden, given.teacher_weight.t(), out=theirs)
        torch.mm(hidden, weight.t(), out=mine)
        torch.mm(mine, weight, out=by_hidden)
        torch.mm(mine.t(), hidden, out=by_weight)

    return run


def step(way: Way, given: Inputs, objective: str) -> float:
    given.hidden.grad = given.weight.grad = None
    loss = way(given, objective)
    loss.backward()
    return loss.item()


def time_ways(names: list[str], objective: str, shape: tuple[int, int], repeats: int) -> dict:
    """Seconds of every repeat by way, in turn."""
    given = make_inputs(*shape)
    ways = {name: WAYS[name]() for name in names}
    floor = products(given)
    losses = {name: step(way, given, objective) for name, way in ways.items()}
    for name, loss in losses.items():
        if not math.isclose(loss, losses["ours"], rel_tol=1e-4):
            raise RuntimeError(f"{name} computes {loss}, ours {losses['ours']}: not one loss")
    runs = {name: (lambda way=way: step(way, given, objective)) for name, way in ways.items()}
    runs["products"] = floor
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def peak_mib(name: str, objective: str, shape: tuple[int, int]) -> float:
    """Growth of this process's resident peak over what it held once the inputs were there."""
    way = WAYS[name]()
    step(way, make_inputs(2, 64), objective)
    given = make_inputs(*shape)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status_mib("VmRSS")
    step(way, given, objective)
    return status_mib("VmHWM") - before


def status_mib(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**10


def available(python: str, asked: list[str]) -> list[str]:
    """The ways that `python` can import; says which it cannot."""
    found = []
    for name in asked:
        done = subprocess.run([python, __file__, "--probe", name], capture_output=True, text=True)
        if done.returncode == 0:
            found.append(name)
        else:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"left out: {name}: {reason}")
    return found


def child(python: str, *arguments: str) -> dict:
    done = subprocess.run([python, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def report(options: argparse.Namespace) -> None:
    python = options.rivals_python or sys.executable
    asked = [name for name in RIVALS if options.compiled or "compiled" not in name]
    names = ["ours", "plain", *(available(python, asked) if options.rivals_python else [])]
    if not options.rivals_python:
        print("left out: TRL and Liger; give --rivals-python")
    for positions, vocabulary in options.shapes:
        for objective in OBJECTIVES:
            print(f"\n{objective}, N = {positions}, V = {vocabulary:,}\n")
            print("| way | median s | min to max | time, ours = 1 | peak MiB | peak, ours = 1 |")
            print("|---|---|---|---|---|---|")
            case = ["--objective", objective, "--shape", f"{positions}x{vocabulary}"]
            repeats = ["--repeats", str(options.repeats)]
            seconds = child(python, *case, *repeats, "--time", ",".join(names))
            peaks = {name: child(python, *case, "--peak", name)["mib"] for name in names}
            mine = statistics.median(seconds["ours"])
            for name, each in seconds.items():
                middle = statistics.median(each)
                row = f"| {name} | {middle:.3f} | {min(each):.3f} to {max(each):.3f} "
                row += f"| {middle / mine:.2f} "
                peak = peaks.get(name)
                row += f"| {peak:.0f} | {peak / peaks['ours']:.2f} |" if peak else "| | |"
                print(row, flush=True)


def shape(text: str) -> tuple[int, int]:
    positions, vocabulary = text.split("x")
    return int(positions), int(vocabulary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rivals-python", help="interpreter that has trl and liger_kernel")
    parser.add_argument("--compiled", action="store_true", help="also Liger with torch.compile")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--shapes", type=shape, nargs="+", default=SHAPES, metavar="NxV")
    parser.add_argument("--objective", choices=list(OBJECTIVES), help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=shape, help=argparse.SUPPRESS)
    parser.add_argument("--time", help=argparse.SUPPRESS)
    parser.add_argument("--peak", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--probe", choices=list(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.probe:
        WAYS[options.probe]()
    elif options.time:
        names = options.time.split(",")
        print(json.dumps(time_ways(names, options.objective, options.shape, options.repeats)))
    elif options.peak:
        print(json.dumps({"mib": peak_mib(options.peak, options.objective, options.shape)}))
    else:
        report(options)


if __name__ == "__main__":
    main()
