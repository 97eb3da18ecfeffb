"""The best job of `docs/examples/search.yaml` against the quickstart's default, over seeds.

    stillhouse search docs/examples/search.yaml
    python tests/benchmarks/searched.py

The best was chosen on the job's own seed and on 64 held-out rows, so its number there is a little
too good: here are other seeds and more rows. Prints a study's table, with a paired test.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml
from workload import machine

from orchestrator.cli import exit_code

EXAMPLE = Path(__file__).parents[2] / "docs/examples/search.yaml"
BEST = Path("runs/quickstart-search/best.yaml")


def study(best: Path, seeds: list[int], rows: int) -> dict[str, Any]:
    """A study of two arms: what is varied by the search as the example has it, and as the best."""
    example = yaml.safe_load(EXAMPLE.read_text())
    search = example.pop("search")
    example["name"] = "trained"
    example["evaluation"] = {"before": False, "rows": rows, "generate": None}
    chosen = yaml.safe_load(best.read_text())
    names = {path.partition(".")[0] for path in search["space"]}
    return {
        "name": "searched",
        "jobs": [example],
        "vary": {"job": {"default": {}, "best": {name: chosen[name] for name in sorted(names)}}},
        "seeds": seeds,
        "metrics": [{"path": search["metric"], "name": "held-out loss", "better": "lower"}],
        "compare": {"axis": "job", "baseline": "default"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--best", type=Path, default=BEST, help="job file that the search wrote")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", type=int, default=256, help="held-out rows measured")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "searched.yaml"
        file.write_text(yaml.safe_dump(study(options.best, options.seeds, options.rows)))
        sys.exit(exit_code(["study", str(file)]))


if __name__ == "__main__":
    main()
