"""Teacher passes that selection and a shrinking set save: counts of samples, whatever the machine.

    python tests/benchmarks/teacher_passes.py

Each job learns handwritten digits from the same role for as many epochs, with a cache of its own.
The role is asked about a sample each time it is wanted, and computes it once where a cache is kept.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from orchestrator.runner import run
from orchestrator.spec import JobSpec

BATCH = 50
MLP = {
    "import": "orchestrator.models.reference:mlp",
    "arguments": {"inputs": 64, "classes": 10, "width": 32},
    "task": "classifier",
}
SELECTION = {"kind": "dynamic_selection", "group": BATCH}


def recipes(epochs: int) -> dict[str, dict[str, Any]]:
    """By the name of the row."""
    return {
        "whole": {"kind": "forward_kl", "label_share": 0.1, "temperature": 4.0},
        "selection-30": {**SELECTION, "share": 0.3},
        "selection-10": {**SELECTION, "share": 0.1},
        "condensation": {"kind": "condensation", "every": max(1, epochs // 6), "stages": 6},
    }


def job(name: str, recipe: dict[str, Any], epochs: int, folder: Path) -> JobSpec:
    """A student of digits."""
    source = {
        "kind": "import",
        "target": "orchestrator.data.digits:documents",
        "format": {"kind": "features"},
    }
    return JobSpec.model_validate(
        {
            "name": name,
            "student": MLP,
            "roles": {"teacher": {**MLP, "resources": {"cpus": 0.5}}},
            "data": {"sources": [source], "held_out": 0.0},
            "objective": {"recipe": recipe},
            "training": {
                "epochs": epochs,
                "global_batch": BATCH,
                "micro_batch": BATCH,
                "resources": {"cpus": 0.5},
                "optimizer": {"lr": 5e-3},
                "checkpoint": {"every_steps": 20},
            },
            "evaluation": {"before": False},
            "tracking": {"every_steps": 50},
            "cache": {"path": str(folder / f"cache-{name}")},
            "storage": str(folder / "runs"),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        named = recipes(options.epochs)
        jobs = [job(row, one, options.epochs, Path(name)) for row, one in named.items()]
        summaries = run(jobs).jobs
    whole = summaries[0]["pool"]["samples"]["consumed"]
    print("| job | samples learned | asked | over whole | computed with a cache |")
    print("|---|---|---|---|---|")
    for row, summary in zip(named, summaries, strict=True):
        asked, computed = summary["pool"]["samples"]["consumed"], summary["cache"]["misses"]
        learned = summary["tokens"]
        print(f"| {row} | {learned:,} | {asked:,} | {asked / whole:.1%} | {computed:,} |")


if __name__ == "__main__":
    main()
