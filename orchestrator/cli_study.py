"""The `stillhouse study` command: many jobs as one, drawn as they go, and the table in the end.

Heavy imports wait until the study has been checked. A study whose table is written and in which
an assertion fails, or a job has no result, ends with exit code 1.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from orchestrator.errors import StillhouseError
from orchestrator.events import Event, JobEnded, Warned
from orchestrator.study.progress import OnEvent, StudyProgress
from orchestrator.terminal import duration, event_text

if TYPE_CHECKING:
    from orchestrator.study.findings import Checked

Say = Callable[[str], None]


def run_file(
    file: Path,
    overrides: Sequence[str],
    defaults: dict[str, str],
    *,
    resume: bool,
    parallel: int | None,
    accept_changes: bool,
    as_json: bool,
) -> None:
    """Run a study file and print its tables.

    Raises:
        SpecError: the file is wrong; nothing was started.
        StillhouseError: the study ended, and not all of it holds.
    """
    from orchestrator.study.load import load_study
    from orchestrator.study.run import StudyResult, run_study
    from orchestrator.study.table import as_text, grids

    study = load_study(file, overrides, defaults)
    out = sys.stderr if as_json else sys.stdout
    with lines(out) as draw:
        result: StudyResult = run_study(
            study,
            parallel=parallel,
            resume=resume,
            accept_changes=accept_changes,
            on_event=draw,
        )
    print(as_text(grids(study, result.results, result.checks, result.failed)), file=out, flush=True)
    print(f"\n{result.folder / 'table.html'}", file=out, flush=True)
    if as_json:
        print(json.dumps(json.loads((result.folder / "table.json").read_text())), flush=True)
    if not result.holds:
        broken = [check for check in result.checks if not check.as_known]
        raise StillhouseError(_verdict(study.name, result.failed, broken))


def _verdict(study: str, failed: Mapping[str, str], broken: Sequence["Checked"]) -> str:
    parts = [f"{name} has no result ({why})" for name, why in failed.items()]
    for check in broken:
        said = "holds, though refuted before" if check.holds else "does not hold"
        parts.append(f"{check.what} {said}")
    return f"study {study!r}: " + "; ".join(parts)


@contextmanager
def lines(stream: TextIO) -> Iterator[OnEvent]:
    """What draws a study on `stream`: lines as things happen, on a terminal over a moving one."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=stream)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if not console.is_terminal:
        yield lambda event: _said(event, say)
        return
    standing = Text("starting")
    with Live(get_renderable=lambda: standing, console=console, refresh_per_second=4):

        def draw(event: Event | StudyProgress) -> None:
            nonlocal standing
            if isinstance(event, StudyProgress):
                standing = Text(progress_text(event), style="bold")
            else:
                _said(event, say)

        yield draw


def _said(event: Event | StudyProgress, say: Say) -> None:
    text = progress_text(event) if isinstance(event, StudyProgress) else job_text(event)
    if text is not None:
        say(text)


def progress_text(progress: StudyProgress) -> str:
    """`12 of 45 done, 2 running (a, b), 1 failed, 4:10 min left`."""
    parts = [f"{progress.done} of {progress.total} done"]
    if progress.running:
        parts.append(f"{len(progress.running)} running ({', '.join(progress.running)})")
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    if progress.left_s is not None and progress.done + progress.failed < progress.total:
        parts.append(f"{duration(progress.left_s)} left")
    return ", ".join(parts)


def job_text(event: Event) -> str | None:
    """What a line says of one job: how it ended, and what went wrong; of many, no more."""
    match event:
        case JobEnded(job=job, status="done", summary=summary):
            return f"{job}: done in {duration(summary['wall_s'])}"
        case JobEnded() | Warned():
            return event_text(event)
        case _:
            return None
