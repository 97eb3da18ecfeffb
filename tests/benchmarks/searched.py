"""The best that `docs/examples/search.yaml` drew against the quickstart's default, over seeds.

    stillhouse search docs/examples/search.yaml
    python tests/benchmarks/searched.py

It was chosen on the job's own seed and on 64 held-out rows, so its number there is a little too
good: here are other seeds and more rows. The default is a trial of the search itself, so the best
of all may be it; compared is the best of the others. Prints a study's table, with a paired test.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml
from workload import machine

from orchestrator.cli import exit_code

EXAMPLE = Path(__file__).parents[2] / "docs/examples/search.yaml"
TRIALS = Path("runs/quickstart-search/trials.json")


def best_drawn(trials: Path) -> dict[str, Any]:
    """The settings, by path, of the best finished trial that the file did not fix."""
    fixed = len(yaml.safe_load(EXAMPLE.read_text())["search"]["fixed"])
    found = json.loads(trials.read_text())
    (goal,) = found["goals"]
    done = [one for one in found["trials"][fixed:] if one["goals"][goal["metric"]] is not None]
    best = min(done, key=lambda one: one["goals"][goal["metric"]])
    print(f"trial {best['trial']}: {best['settings']}")
    return best["settings"]


def study(chosen: dict[str, Any], seeds: list[int], rows: int) -> dict[str, Any]:
    """A study of two arms: what is varied by the search as the example has it, and as chosen."""
    example = yaml.safe_load(EXAMPLE.read_text())
    search = example.pop("search")
    example["name"] = "trained"
    example["evaluation"] = {"before": False, "rows": rows, "generate": None}
    example["training"]["resources"] = {"cpus": 0.5}  # so that two jobs fit on two cores
    example["roles"]["teacher"]["resources"] = {"cpus": 0.25}
    objective = json.loads(json.dumps(example["objective"]))
    for path, value in chosen.items():
        _, _, index, field = path.split(".")  # objective.terms.N.field
        objective["terms"][int(index)][field] = value
    return {
        "name": "searched",
        "jobs": [example],
        "vary": {"job": {"default": {}, "drawn": {"objective": objective}}},
        "seeds": seeds,
        "metrics": [{"path": search["metric"], "name": "held-out loss", "better": "lower"}],
        "compare": {"axis": "job", "baseline": "default"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=Path, default=TRIALS, help="what the search wrote")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", type=int, default=256, help="held-out rows measured")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "searched.yaml"
        file.write_text(
            yaml.safe_dump(study(best_drawn(options.trials), options.seeds, options.rows))
        )
        sys.exit(exit_code(["study", str(file)]))


if __name__ == "__main__":
    main()
