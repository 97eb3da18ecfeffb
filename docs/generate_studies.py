"""Run every example study and write docs/studies.md from what came out.

    python docs/generate_studies.py            run or go on with them, then write
    python docs/generate_studies.py --tables   write from what is there

All studies share one Ray session and its workers. Exit code 1 if, of the studies asked for, an
assertion fails or a job has no result.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from orchestrator.cli_study import lines
from orchestrator.study.load import load_study
from orchestrator.study.run import run_study
from orchestrator.study.spec import StudySpec

HERE = Path(__file__).parent
STUDIES = HERE / "examples/studies"
TARGET = HERE / "studies.md"
STORAGE = Path("runs/studies")
HEAD = """# What the studies show

Written by `make studies` from the files of `docs/examples/studies/`. Each has assertions, at the
size that so small a task allows; where it does not show what the paper claims, it says so. See
[the guide](guide/studies.md) for how to read the tables.
"""


def main() -> int:
    """Run what is asked for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", action="store_true", help="write only")
    parser.add_argument("--only", nargs="*", help="names of studies; default: all")
    options = parser.parse_args()
    studies = [load_study(file, [f"storage={STORAGE}"]) for file in sorted(STUDIES.glob("*.yaml"))]
    chosen = [study for study in studies if options.only is None or study.name in options.only]
    if not options.tables:
        _run(chosen)
    parts = [_chapter(study) for study in studies if (_folder(study) / "table.md").is_file()]
    TARGET.write_text("\n".join([HEAD, *parts]), encoding="utf-8")
    return 0 if all(map(_holds, chosen)) else 1


def _run(studies: list[StudySpec]) -> None:
    import ray

    from orchestrator.series.kept import Kept
    from orchestrator.series.sessions import sessions
    from orchestrator.session import join_ray

    began = time.monotonic()
    join_ray(None)
    try:
        with Kept(sessions()) as drivers:
            for study in studies:
                begun = (_folder(study) / "study.yaml").is_file()
                with lines(sys.stdout) as draw:
                    run_study(
                        study, resume=begun, accept_changes=begun, on_event=draw, drivers=drivers
                    )
                took = time.monotonic() - began
                print(f"{study.name}: {took:.0f} s since the first", flush=True)
    finally:
        ray.shutdown()


def _folder(study: StudySpec) -> Path:
    return STORAGE / study.name


def _chapter(study: StudySpec) -> str:
    return (_folder(study) / "table.md").read_text(encoding="utf-8")


def _holds(study: StudySpec) -> bool:
    path = _folder(study) / "table.json"
    if not path.is_file():
        return False
    table = json.loads(path.read_text(encoding="utf-8"))
    checks = table["assertions"]  # a table of before has no `as_known`: nothing was refuted then
    return not table["missing"] and all(each.get("as_known", each["holds"]) for each in checks)


if __name__ == "__main__":
    sys.exit(main())
