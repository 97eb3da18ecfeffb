"""The files a search ends with: all trials, pictures of them, and the best one's job."""

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from orchestrator.series.folder import publish

from .board import Board, best_of
from .jobs import StateOf, whole_job
from .plan import Search
from .report import as_page
from .table import as_markdown, as_plain

TABLE, PAGE, PLAIN, BEST = "trials.md", "report.html", "trials.json", "best.yaml"


def write_results(
    folder: Path, search: Search, board: Board, importance: Mapping[str, float]
) -> list[Path]:
    """Write them, each replacing an older one as one act; their paths."""
    states = board.states
    best = best_of(states, search.spec.goals)
    files = {
        TABLE: as_markdown(search, states).encode(),
        PAGE: as_page(search, states, importance).encode(),
        PLAIN: json.dumps(as_plain(search, states, importance), indent=1).encode(),
    }
    if best is not None:
        files[BEST] = best_job(search, board.state, best.number).encode()
    return [publish(folder / name, content) for name, content in files.items()]


def best_job(search: Search, state_of: StateOf, best: int) -> str:
    """The job file of a trial, as an ordinary job under the search's name."""
    job = whole_job(search, state_of, best)
    written = job.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return yaml.safe_dump(written, sort_keys=False)
