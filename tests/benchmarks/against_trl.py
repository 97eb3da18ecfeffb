"""The same distillation here and with TRL, in turn on the same cores: tokens/s and peak memory.

    make bench-trl

or, with an environment that has TRL 1.16 beside this project's packages:

    python tests/benchmarks/against_trl.py --trl-python build/trl/bin/python

Same weights, same batches in the same order, same loss (forward KL) and AdamW; the losses of both
are compared step by step. First every TRL setting (trainer, threads) runs once; the fastest is the
rival. Then each round is: our job in a fresh session, the rival in a fresh process, the plain
loops T and S of `plain.py`. Tokens/s is over the steps after the first three.

With the teacher running, c = 2 cores allow max(T, S) a batch here, and (T + S) / 2 to one process
that splits every operation over both cores perfectly: `(T + S) / 2 / max(T, S)` is the ratio of
tokens/s that perfection on both sides would give. From the second epoch on, the teacher's signals
come from the cache here, and TRL pays the teacher again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from plain import Plain
from processes import TreeMemory
from safetensors.torch import save_file
from workload import (
    Workload,
    add_arguments,
    balanced,
    batches,
    chosen,
    job,
    machine,
    step_seconds,
    table,
    write_models,
    write_text,
)

DEFAULT = balanced(steps=18)
PLAIN_BATCHES = 12
CORES = 2
TRIAL_STEPS = 10
SETTINGS = (("gkd", 1), ("gkd", 2), ("liger", 2), ("chunked", 1), ("chunked", 2))


@dataclass(frozen=True, slots=True)
class Result:
    """One side's run."""

    tokens_per_s: float
    losses: list[float]
    peak_mib: float
    summed_peaks_mib: float
    at_peak: dict[str, float]  # MiB by kind of process


def measured(command: list[str], tokens_a_step: int) -> Result:
    """Run a side to its end, watching its memory.

    Raises:
        RuntimeError: it failed; the message ends with its last words.
    """
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        memory = TreeMemory(child.pid)
        output, _ = child.communicate()
        memory.stop()
        errors.seek(0)
        if child.returncode:
            raise RuntimeError("".join(errors.readlines()[-3:]).strip())
    answer = json.loads(output.splitlines()[-1])
    seconds = statistics.fmean(step_seconds(answer["ends"]))
    return Result(
        tokens_a_step / seconds,
        answer["losses"],
        memory.peak_mib,
        memory.summed_peaks_mib,
        memory.at_peak,
    )


def our_side(folder: Path, workload: Workload, cached: bool) -> None:
    """A whole run here; prints when steps ended and their losses."""
    from orchestrator.events import Event, StepDone
    from orchestrator.runner import label, run
    from orchestrator.spec.job import NoPool

    ends: list[float] = []
    losses: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            ends.append(time.perf_counter())
            losses.append(event.metrics["loss/total"])

    # From the cache the teacher's core is idle, so the student gets both.
    changes = {"cache": {"path": str(folder / "signals")}} if cached else {}
    spec = job("ours", folder, workload, **changes)
    if cached:
        label([spec])
        training = spec.training.model_copy(update={"threads": CORES})
        spec = spec.model_copy(update={"training": training, "pool": NoPool(kind="none")})
    run([spec], listen)
    print(json.dumps({"ends": ends, "losses": losses}))


def best_of_trl(command: list[str], tokens_a_step: int) -> list[str]:
    """The command line of the fastest setting; what each gave goes to standard output."""
    print("| TRL setting | threads | tokens/s | peak MiB |\n|---|---|---|---|")
    speeds: dict[tuple[str, int], float] = {}
    for name, threads in SETTINGS:
        setting = [*command, "--trainer", name, "--threads", str(threads)]
        try:
            result = measured([*setting, "--steps", str(TRIAL_STEPS)], tokens_a_step)
        except RuntimeError as error:
            print(f"| {name} | {threads} | does not run: {str(error).splitlines()[-1]} | |")
            continue
        speeds[name, threads] = result.tokens_per_s
        print(f"| {name} | {threads} | {result.tokens_per_s:.0f} | {result.peak_mib:.0f} |")
    name, threads = max(speeds, key=lambda setting: speeds[setting])
    print(f"\nrival: {name} with {threads} threads\n", flush=True)
    return [*command, "--trainer", name, "--threads", str(threads)]


def compare(options: argparse.Namespace, folder: Path, workload: Workload) -> dict[str, list[Any]]:
    """All rounds; figures by name."""
    work = batches(job("ours", folder, workload), folder / "cache")
    arrays = {
        "input_ids": torch.stack([b.inputs["input_ids"] for b in work]),
        "targets": torch.stack([b.targets for b in work]),
    }
    save_file(arrays, folder / "batches.safetensors")
    tokens = workload.tokens_a_step
    ours_command = [sys.executable, *sys.argv, "--folder", str(folder)]
    rival_command = best_of_trl(
        [options.trl_python, str(Path(__file__).with_name("trl_side.py")), str(folder)], tokens
    )
    plain = Plain(folder, work[:PLAIN_BATCHES])
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        ours, rival = measured(ours_command, tokens), measured(rival_command, tokens)
        again = measured([*ours_command, "--cached"], tokens)
        seconds = plain.measure("teacher") | plain.measure("student")
        t, s = seconds["teacher"].wall, seconds["student"].wall
        apart = max(abs(a - b) / b for a, b in zip(ours.losses, rival.losses, strict=True))
        figures = {
            "tokens/s here": ours.tokens_per_s,
            "tokens/s TRL": rival.tokens_per_s,
            "**ratio of tokens/s**": ours.tokens_per_s / rival.tokens_per_s,
            "ratio if both were perfect, (T + S) / 2 / max(T, S)": (t + s) / 2 / max(t, s),
            "tokens/s here, from the cache": again.tokens_per_s,
            "**ratio of tokens/s, from the cache**": again.tokens_per_s / rival.tokens_per_s,
            "tokens/s here over tokens / max(T, S)": ours.tokens_per_s * max(t, s) / tokens,
            "tokens/s TRL over tokens / ((T + S) / 2)": rival.tokens_per_s * (t + s) / 2 / tokens,
            "T (s)": t,
            "S (s)": s,
            "peak MiB here": ours.peak_mib,
            "peak MiB TRL": rival.peak_mib,
            "**ratio of peaks**": ours.peak_mib / rival.peak_mib,
            "summed peaks MiB here": ours.summed_peaks_mib,
            "summed peaks MiB TRL": rival.summed_peaks_mib,
            "largest relative difference of a step's loss": apart,
        }
        for name, value in figures.items():
            found.setdefault(name, []).append(value)
        for name, value in ours.at_peak.items():
            found.setdefault(f"peak MiB here, {name}", []).append(value)
        print(f"round: {figures}", file=sys.stderr)
    plain.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, DEFAULT)
    parser.add_argument("--trl-python", required=True, help="interpreter of a TRL environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # our side's own process
    parser.add_argument("--cached", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    workload = chosen(options)
    if options.folder is not None:
        our_side(options.folder, workload, options.cached)
        return
    os.environ.pop("OMP_NUM_THREADS", None)  # each side sets its own
    before = machine()
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as name:
        folder = Path(name)
        write_models(folder, workload)
        write_text(folder / "text", workload)
        found = compare(options, folder, workload)
    print(f"before: {before}\nafter: {machine()}\n{workload}\n")
    print(table([(name, values, 4) for name, values in found.items()]))


if __name__ == "__main__":
    main()
