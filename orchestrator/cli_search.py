"""The `stillhouse search` command: trials of one job, drawn as they go, and a table in the end.

Heavy imports wait until the search has been checked.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from orchestrator.errors import SpecError, StillhouseError
from orchestrator.events import Event, JobEnded, Warned
from orchestrator.search.progress import OnEvent, SearchProgress, TrialLine
from orchestrator.terminal import duration, event_text

Say = Callable[[str], None]


def run_file(
    file: Path | None,
    overrides: Sequence[str],
    defaults: dict[str, str],
    *,
    resume: str | None,
    parallel: int | None,
    accept_changes: bool,
    as_json: bool,
) -> None:
    """Run a search file and print its trials.

    Args:
        file: None: that of the search to go on with.
        resume: a search to go on with: its name below `runs`, or its folder.

    Raises:
        SpecError: the file is wrong; nothing was started.
        StillhouseError: no trial has a result.
    """
    from orchestrator.search.load import load_search
    from orchestrator.search.run import SearchResult, run_search
    from orchestrator.search.write import PLAIN, TABLE

    source = recorded(resume) if file is None else file
    search = load_search(source, overrides, defaults)
    if resume is not None and Path(resume).name != search.name:
        raise SpecError(
            "--resume",
            f"is {resume!r}, and {source} is search {search.name!r}",
            f"Give {search.name}, or leave the file out",
        )
    out = sys.stderr if as_json else sys.stdout
    with lines(out) as draw:
        result: SearchResult = run_search(
            search,
            parallel=parallel,
            resume=resume is not None,
            accept_changes=accept_changes,
            on_event=draw,
        )
    print((result.folder / TABLE).read_text(), file=out, flush=True)
    if as_json:
        print(json.dumps(json.loads((result.folder / PLAIN).read_text())), flush=True)
    if result.best is None:
        raise StillhouseError(f"search {search.name!r}: no trial has a result")


def recorded(resume: str | None) -> Path:
    """The file of a search that was begun.

    Raises:
        SpecError: neither a file nor such a search is given.
    """
    if resume is None:
        raise SpecError("FILE", "is missing", "Give a search file, or --resume NAME")
    for folder in (Path(resume), Path("runs") / resume):
        if (folder / "search.yaml").is_file():
            return folder / "search.yaml"
    raise SpecError(
        "--resume",
        f"is {resume!r}, and neither it nor runs/{resume} is the folder of a search",
        "Give the folder, or the search's file beside --resume NAME",
    )


@contextmanager
def lines(stream: TextIO) -> Iterator[OnEvent]:
    """What draws a search on `stream`: lines as things happen, on a terminal over a live table."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=stream)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    talk = Talk(say)
    if not console.is_terminal:
        yield talk
        return
    standing: object = Text("starting")
    with Live(get_renderable=lambda: standing, console=console, refresh_per_second=4):  # type: ignore[arg-type, return-value]

        def draw(event: Event | SearchProgress) -> None:
            nonlocal standing
            if isinstance(event, SearchProgress):
                standing = table_of(event)
            else:
                talk(event)

        yield draw


class Talk:
    """A line when a trial changes its status, and for what the user should know."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._said: dict[int, str] = {}

    def __call__(self, event: Event | SearchProgress) -> None:
        if isinstance(event, SearchProgress):
            for trial in event.trials:
                if trial.status != self._said.get(trial.number) and trial.status != "waiting":
                    self._said[trial.number] = trial.status
                    self._say(trial_text(trial, event))
        elif isinstance(event, Warned) or (
            isinstance(event, JobEnded) and event.status == "failed"
        ):
            self._say(event_text(event) or "")


def trial_text(trial: TrialLine, progress: SearchProgress) -> str:
    """`trial 3: stopped at step 40, student.loss 5.31 (lr 0.01); best trial 1, 2 of 8 over`."""
    parts = [f"trial {trial.number}: {trial.status}"]
    if trial.step:
        parts.append(f"at step {trial.step}")
    if trial.metric is not None:
        parts.append(f"{progress.metric} {trial.metric:.5g}")
    shown = ", ".join(f"{name} {text}" for name, text in trial.values)
    error = "" if trial.error is None else f": {trial.error}"
    return f"{' '.join(parts)} ({shown}){error}; {standing_text(progress)}"


def standing_text(progress: SearchProgress) -> str:
    """`best trial 1 (5.12), 3 of 8 over, 4:10 min, tokens 12000 of 50000`."""
    over = sum(trial.status in ("done", "stopped", "failed") for trial in progress.trials)
    best = next((each for each in progress.trials if each.number == progress.best), None)
    parts = []
    if best is not None and best.metric is not None:
        parts.append(f"best trial {best.number} ({best.metric:.5g})")
    total = "" if progress.total is None else f" of {progress.total}"
    parts += [f"{over}{total} over", duration(progress.life_s)]
    parts += [f"{name} {used:g} of {limit:g}" for name, used, limit in progress.spent]
    return ", ".join(parts)


def table_of(progress: SearchProgress) -> object:
    """The trials as a table, the newest last, with where the whole stands below."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, caption=standing_text(progress), caption_justify="left")
    named = list(dict.fromkeys(name for trial in progress.trials for name, _ in trial.values))
    for head in ("trial", "status", "steps", *(_short(name) for name in named)):
        table.add_column(head)
    table.add_column(progress.metric)
    table.add_column("computed")
    for trial in progress.trials:
        values = dict(trial.values)
        steps = f"{trial.step}" + ("" if trial.steps is None else f"/{trial.steps}")
        table.add_row(
            str(trial.number),
            trial.status,
            steps,
            *(values.get(name, "") for name in named),
            "" if trial.metric is None else f"{trial.metric:.5g}",
            str(trial.computed),
            style="bold" if trial.number == progress.best else None,
        )
    return table


def _short(name: str) -> str:
    """The end of a dotted path: columns are narrow."""
    return ".".join(name.split(".")[-2:])
