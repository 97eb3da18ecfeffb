"""The quickstart's student through each encoding, three seeds: held-out loss beside bytes.

    python tests/benchmarks/encodings_quickstart.py

All jobs run in one session with one cache: an encoding pays the teacher for its first seed only.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workload import machine

from orchestrator.events import Event, JobEnded
from orchestrator.runner import run
from orchestrator.signals.asks import ask_of
from orchestrator.signals.layouts import position_bytes
from orchestrator.signals.records import RoleDescription
from orchestrator.spec import JobSpec, load_jobs

ROOT = Path(__file__).resolve().parents[2]
ENCODINGS: dict[str, dict[str, Any]] = {
    "full fp16": {"kind": "full", "dtype": "float16"},
    "hidden fp32": {"kind": "hidden", "dtype": "float32"},
    "hidden bf16": {"kind": "hidden", "dtype": "bfloat16"},
    "topk 64 fp16": {"kind": "topk", "k": 64, "dtype": "float16"},
    "topk 64 int8": {"kind": "topk", "k": 64, "dtype": "int8"},
    "sampled 12": {"kind": "sampled", "draws": 12},
}


def job(name: str, encoding: dict[str, Any], seed: int, folder: Path) -> JobSpec:
    """The quickstart's distillation with another encoding and seed."""
    spec = load_jobs(ROOT / "docs/examples/quickstart.yaml")[0]
    raw = spec.model_dump(mode="json", by_alias=True)
    raw |= {"name": f"{name.replace(' ', '-')}-seed-{seed}", "seed": seed}
    raw |= {"storage": str(folder / "runs"), "cache": {"path": str(folder / "cache")}}
    raw["roles"]["teacher"]["encoding"] = encoding
    raw["evaluation"]["generate"] = None
    return JobSpec.model_validate(raw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--encodings", nargs="+", choices=list(ENCODINGS), default=list(ENCODINGS))
    options = parser.parse_args()
    before = machine()
    summaries: dict[str, dict[str, Any]] = {}

    def listen(event: Event) -> None:
        if isinstance(event, JobEnded):
            summaries[event.job] = dict(event.summary)
            student = event.summary["evaluation"]["student"]["loss"]
            print(f"{event.job}: {student:.4f}, cache {event.summary['cache']}", file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as name:
        jobs = [
            job(encoding, ENCODINGS[encoding], seed, Path(name))
            for encoding in options.encodings
            for seed in range(options.seeds)
        ]
        run(jobs, listen)
    role = RoleDescription("teacher", "", 4096, 256, 0)
    wide = RoleDescription("teacher", "", 151_936, 256, 0)
    print(f"before: {before}\nafter: {machine()}\n")
    print("| encoding | bytes a position | at V = 151,936 | held-out loss | sd | seeds |")
    print("|---|---|---|---|---|---|")
    for index, encoding in enumerate(options.encodings):
        mine = jobs[index * options.seeds : (index + 1) * options.seeds]
        losses = [summaries[spec.name]["evaluation"]["student"]["loss"] for spec in mine]
        ask = ask_of(mine[0].roles["teacher"].encoding)
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        print(
            f"| {encoding} | {position_bytes(ask, role)} | {position_bytes(ask, wide)} "
            f"| {statistics.fmean(losses):.4f} | {spread:.4f} "
            f"| {', '.join(f'{loss:.4f}' for loss in losses)} |"
        )


if __name__ == "__main__":
    main()
