"""Time and memory of the loss head on a GPU against plain torch, TRL and Liger.

    python tests/benchmarks/loss_head_gpu.py [--compiled] [--profile]

Loss and gradients by hidden state and weight in bfloat16, student width 2,048, teacher 4,096,
V = 128,256. The ways of one case are timed in turn with CUDA events; peak memory is
`max_memory_allocated` of one step less what was allocated before (gradients count). `products`
are the four matrix products alone with float32 results, on buffers made before. The floor is
2 N V (3 d_s + d_t) operations at the rate of an 8,192^3 bfloat16 product measured in the same run.
Errors are those of the gradient by hidden state against plain torch in float32.

`trl` and `liger_kernel` are needed for the rivals; a way that cannot be imported, or that runs out
of memory, is left out and said so.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from loss_head import OBJECTIVES, WAYS, Inputs, divergence, logits, plain

STUDENT_WIDTH, TEACHER_WIDTH, VOCABULARY = 2048, 4096, 128_256
POSITIONS = (1024, 8192)


def make_inputs(count: int, seed: int = 0) -> Inputs:
    """bfloat16 on the GPU."""
    make = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape: int, size: float = 1.0) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, generator=make).mul_(size)

    return Inputs(
        normal(count, STUDENT_WIDTH).requires_grad_(),
        normal(VOCABULARY, STUDENT_WIDTH, size=0.03).requires_grad_(),
        normal(count, TEACHER_WIDTH),
        normal(VOCABULARY, TEACHER_WIDTH, size=0.03),
        torch.randint(VOCABULARY, (count,), device="cuda", generator=make),
    )


def in_float32(given: Inputs) -> Inputs:
    """The same numbers in float32."""
    hidden, weight = (
        side.detach().float().requires_grad_() for side in (given.hidden, given.weight)
    )
    return Inputs(
        hidden, weight, given.teacher_hidden.float(), given.teacher_weight.float(), given.targets
    )


def plain_upcast(given: Inputs, objective: str) -> Tensor:
    """Plain torch: products in bfloat16, all else in float32."""
    mine, theirs = logits(given)
    return divergence(mine.float(), theirs.float(), objective)


def step(way: Callable[[Inputs, str], Tensor], given: Inputs, objective: str) -> Tensor:
    given.hidden.grad = given.weight.grad = None
    loss = way(given, objective)
    loss.backward()
    return loss.detach()


def milliseconds(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def products(given: Inputs) -> Callable[[], object]:
    """The four matrix products on ready buffers, float32 results."""
    hidden, weight = given.hidden.detach(), given.weight.detach()
    mine = torch.empty(len(hidden), len(weight), device="cuda")
    theirs, low = torch.empty_like(mine), torch.randn_like(mine, dtype=torch.bfloat16)
    by_hidden = torch.empty_like(hidden, dtype=torch.float32)
    by_weight = torch.empty_like(weight, dtype=torch.float32)

    def run() -> None:
        kind = torch.float32
        torch.mm(given.teacher_hidden, given.teacher_weight.t(), out_dtype=kind, out=theirs)
        torch.mm(hidden, weight.t(), out_dtype=kind, out=mine)
        torch.mm(low, weight, out_dtype=kind, out=by_hidden)
        torch.mm(low.t(), hidden, out_dtype=kind, out=by_weight)

    return run


def rate() -> float:
    """TFLOP/s of an 8,192^3 bfloat16 product on random data, median of 20."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(left)
    times = [milliseconds(lambda: torch.mm(left, right, out=out)) for _ in range(25)][5:]
    return 2 * 8192**3 / statistics.median(times) / 1e9


def ways(compiled: bool) -> dict[str, Callable[[Inputs, str], Tensor]]:
    """Those that can be imported."""
    found: dict[str, Callable[[Inputs, str], Tensor]] = {}
    for name, make in WAYS.items():
        if "compiled" in name and not compiled:
            continue
        try:
            found[name] = plain_upcast if name == "plain" else make()
        except ImportError as error:
            print(f"left out: {name}: {error}")
    return found


def peak_gib(way: Callable[[Inputs, str], Tensor], given: Inputs, objective: str) -> float:
    given.hidden.grad = given.weight.grad = None
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(way, given, objective)
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def true_gradient(given: Inputs, objective: str) -> Tensor:
    """[N, d_s] by plain torch in float32."""
    exact = in_float32(given)
    step(plain, exact, objective)
    assert exact.hidden.grad is not None
    return exact.hidden.grad


def relative_error(found: Tensor, true: Tensor) -> float:
    return float((found.float() - true).norm() / true.norm())


def case(count: int, objective: str, compiled: bool, repeats: int, tera: float) -> None:
    given = make_inputs(count)
    exact = true_gradient(given, objective) if count <= 1024 else None
    torch.cuda.empty_cache()
    runs: dict[str, Callable[[], object]] = {}
    peaks: dict[str, float] = {}
    errors: dict[str, float] = {}
    for name, way in ways(compiled).items():
        try:
            step(way, given, objective)
            loss = step(way, given, objective)
            if exact is not None:
                errors[name] = relative_error(given.hidden.grad, exact)  # type: ignore[arg-type]
            peaks[name] = peak_gib(way, given, objective)
        except torch.OutOfMemoryError:
            print(f"left out: {name}: out of memory")
            given.hidden.grad = given.weight.grad = None
            torch.cuda.empty_cache()
            continue
        print(f"{name}: loss {loss.item():.6f}")
        runs[name] = lambda way=way: step(way, given, objective)
    runs["products"] = products(given)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 2):
        for name, run in runs.items():
            taken = milliseconds(run)
            if turn > 1:
                times[name].append(taken)
    floor = 2 * count * VOCABULARY * (3 * STUDENT_WIDTH + TEACHER_WIDTH) / tera / 1e9
    print(f"\n{objective}, N = {count}: floor {floor:.2f} ms\n")
    print("| way | median ms | min to max | over the floor | peak GiB | error of gradient |")
    print("|---|---|---|---|---|---|")
    for name, each in times.items():
        middle = statistics.median(each)
        peak = f"{peaks[name]:.2f}" if name in peaks else ""
        wrong = f"{errors[name]:.1e}" if name in errors else ""
        print(
            f"| {name} | {middle:.2f} | {min(each):.2f} to {max(each):.2f} "
            f"| {middle / floor:.2f} | {peak} | {wrong} |",
            flush=True,
        )


def profile(objective: str) -> None:
    """Where the time of our own step goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    given = make_inputs(POSITIONS[-1])
    step(WAYS["ours"](), given, objective)
    with profiler(activities=[ProfilerActivity.CUDA]) as seen:
        step(WAYS["ours"](), given, objective)
        torch.cuda.synchronize()
    kernels = sorted(seen.key_averages(), key=lambda one: -one.self_device_time_total)
    print(f"\n{objective}, N = {POSITIONS[-1]}")
    for one in kernels[:12]:
        print(f"{one.self_device_time_total / 1000:8.2f} ms {one.count:5d} x {one.key[:90]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiled", action="store_true", help="also Liger with torch.compile")
    parser.add_argument("--profile", action="store_true", help="show where our time goes, too")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--positions", type=int, nargs="+", default=POSITIONS)
    options = parser.parse_args()
    tera = rate()
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}: {tera:.0f} TFLOP/s in bfloat16")
    for count in options.positions:
        for objective in OBJECTIVES:
            case(count, objective, options.compiled, options.repeats, tera)
    if options.profile:
        for objective in OBJECTIVES:
            profile(objective)


if __name__ == "__main__":
    main()
