"""Time and memory of the chunked loss head against plain torch on full logits.

    python tests/benchmarks/loss_head.py
    python tests/benchmarks/loss_head.py --positions 4096 --device cuda --dtype bfloat16

One process a case, so that peaks do not mix. Time is the best of `--repeats` forwards with
backward; memory is the growth of the peak over what the inputs and their gradients need.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from strategies import divergences
from strategies.comparison import Part
from strategies.contract import Head, HiddenSignal
from strategies.linear import vocabulary_loss

OBJECTIVES = {
    "cross_entropy": (Part("cross_entropy"),),
    "forward_kl": (Part("forward_kl", role="teacher"),),
    "forward_kl T=2 + cross_entropy": (
        Part("forward_kl", role="teacher", temperature=2.0),
        Part("cross_entropy"),
    ),
    "reverse_kl": (Part("reverse_kl", role="teacher"),),
    "jensen_shannon": (Part("jensen_shannon", role="teacher"),),
}


def chunked(
    hidden: Tensor, weight: Tensor, targets: Tensor, signal: HiddenSignal, parts: tuple[Part, ...]
) -> Tensor:
    return vocabulary_loss(hidden, Head(weight), targets, {"teacher": signal}, parts)[0]


def plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, signal: HiddenSignal, parts: tuple[Part, ...]
) -> Tensor:
    logits = hidden @ weight.t()
    loss = logits.new_zeros((), dtype=torch.float32)
    with torch.no_grad():
        needed = any(part.role for part in parts)
        theirs = signal.hidden @ signal.head.weight.t() if needed else logits
    for part in parts:
        match part.kind:
            case "cross_entropy":
                value = divergences.cross_entropy(logits, targets)
            case "forward_kl":
                value = divergences.forward_kl(logits, theirs, part.temperature)
            case "reverse_kl":
                value = divergences.reverse_kl(logits, theirs, part.temperature)
            case "jensen_shannon":
                value = divergences.jensen_shannon(logits, theirs, part.temperature, part.beta)
        loss = loss + value.sum()
    return loss


WAYS: dict[str, Callable[..., Tensor]] = {"plain": plain, "chunked": chunked}


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds and MiB of one case, in this process."""
    torch.manual_seed(0)
    make = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    hidden = torch.randn(options.positions, options.student_width, **make).requires_grad_()
    weight = torch.randn(options.vocabulary, options.student_width, **make).mul_(0.05)
    weight.requires_grad_()
    signal = HiddenSignal(
        torch.randn(options.positions, options.teacher_width, **make),
        Head(torch.randn(options.vocabulary, options.teacher_width, **make).mul_(0.05)),
    )
    targets = torch.randint(options.vocabulary, (options.positions,), device=options.device)
    for tensor in (hidden, weight):
        tensor.grad = torch.ones_like(tensor)
    parts = OBJECTIVES[options.objective]
    before = used_mib(options.device, peak=False)
    best = float("inf")
    for _ in range(options.repeats + 1):
        hidden.grad = weight.grad = None
        begin = now(options.device)
        WAYS[options.way](hidden, weight, targets, signal, parts).backward()
        best = min(best, now(options.device) - begin)
    return {"seconds": best, "mib": used_mib(options.device, peak=True) - before}


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def used_mib(device: str, *, peak: bool) -> float:
    """Memory in use now, or the most there was. Not ru_maxrss: a child inherits its parent's."""
    if device == "cuda":
        used = torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
        return used / 2**20
    found = re.search(
        rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", Path("/proc/self/status").read_text()
    )
    assert found is not None
    return int(found[1]) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--student-width", type=int, default=256)
    parser.add_argument("--teacher-width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--objective", choices=list(OBJECTIVES))
    parser.add_argument("--way", choices=list(WAYS))
    options = parser.parse_args()
    if options.way is not None:
        print(json.dumps(measure(options)))
        return
    chosen = [options.objective] if options.objective else list(OBJECTIVES)
    print(f"{'objective':<32}{'way':<10}{'ms':>8}{'peak MiB':>10}")
    for objective in chosen:
        for way in WAYS:
            case = [sys.executable, __file__, *sys.argv[1:], "--objective", objective, "--way", way]
            answer = json.loads(subprocess.run(case, check=True, capture_output=True).stdout)
            print(f"{objective:<32}{way:<10}{answer['seconds'] * 1e3:8.0f}{answer['mib']:10.0f}")


if __name__ == "__main__":
    main()
