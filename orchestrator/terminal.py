"""How a run looks: a live line on a terminal, plain lines everywhere else.

Promises: drawing never changes what a run does; plain lines come at most every few seconds and
always at a job's first and last step. Imports rich; never torch, ray or mlflow.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from orchestrator.events import (
    CheckpointWritten,
    Evaluated,
    Event,
    JobEnded,
    JobStarted,
    Labelled,
    Phase,
    StepDone,
    Warned,
)

Clock = Callable[[], float]
OnEvent = Callable[[Event], None]

PLAIN_EVERY_S = 5.0
_RECENT = 20  # steps whose pace the time left is told from


class Pace:
    """Seconds that the rest of a job will take, told from its latest steps."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT)

    def left_s(self, step: int, steps: int) -> float | None:
        """Call once a step; None until two steps were seen."""
        if self._recent and step <= self._recent[-1][0]:
            self._recent.clear()  # the job went back to a checkpoint
        self._recent.append((step, self._clock()))
        (first, began), (last, ended) = self._recent[0], self._recent[-1]
        return None if last == first else (ended - began) / (last - first) * (steps - step)


def step_text(event: StepDone, left_s: float | None) -> str:
    """One step in a line: loss terms, tokens/s, student wait, pool busy, time left."""
    parts = [f"{name.removeprefix('loss/')} {value:.4f}" for name, value in _losses(event.metrics)]
    tokens = event.metrics.get("throughput/tokens_per_s")
    wait, busy = event.metrics.get("student/wait_share"), event.metrics.get("pool/busy_share")
    if tokens is not None:
        parts.append(f"{tokens:,.0f} tokens/s")
    if wait is not None:
        parts.append(f"wait {wait:.0%}")
    if busy is not None:
        parts.append(f"pool busy {busy:.0%}")
    if left_s is not None:
        parts.append(f"{duration(left_s)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`42 s`, `3:05 min`, `2:10 h`."""
    whole = max(0, math.ceil(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def event_text(event: Event) -> str | None:
    """What a line says of an event that is no step; None for steps."""
    match event:
        case JobStarted(job=job, run_id=run_id, steps=steps):
            return f"{job}: started, {steps} steps, run {run_id}"
        case Phase(job=job, text=text):
            return f"{job}: {text}"
        case Evaluated(job=job, step=step, evaluation=evaluation):
            return f"{job}: step {step}, {_measured(evaluation)}"
        case CheckpointWritten(job=job, step=step, path=path):
            return f"{job}: checkpoint of step {step} in {path}"
        case Warned(job=job, text=text):
            return f"{job}: warning: {text}"
        case JobEnded(job=job, status=status, summary=summary):
            cause = f": {summary['error']}" if "error" in summary else ""
            return f"{job}: {status}{cause}"
        case Labelled():
            return f"{event.job}: {label_text(event)}"
        case StepDone():
            return None


def label_text(event: Labelled) -> str:
    """How far a labelling is, and what it will take."""
    what = f"{event.role} ({event.encoding}): {event.done} of {event.missing} samples labelled"
    known = f"{event.samples - event.missing} known before"
    left = "" if event.seconds_left is None else f", {duration(event.seconds_left)} left"
    return f"{what}, {known}, {event.tokens} tokens, {size(event.nbytes)}{left}"


def size(nbytes: float) -> str:
    """`532 B`, `1.4 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


class PlainLines:
    """One line an event; steps at most every `every_s`, and always a job's first and last."""

    def __init__(
        self, stream: TextIO, every_s: float = PLAIN_EVERY_S, clock: Clock = time.monotonic
    ) -> None:
        self._stream, self._every_s, self._clock = stream, every_s, clock
        self._said_at = -math.inf
        self._paces: dict[str, Pace] = {}

    def __call__(self, event: Event) -> None:
        text = self._step_line(event) if isinstance(event, StepDone) else event_text(event)
        if isinstance(event, JobStarted):
            self._said_at = -math.inf
        if text is not None:
            print(text, file=self._stream, flush=True)

    def _step_line(self, event: StepDone) -> str | None:
        left_s = self._paces.setdefault(event.job, Pace(self._clock)).left_s(
            event.step, event.steps
        )
        now = self._clock()
        if event.step < event.steps and now - self._said_at < self._every_s:
            return None
        self._said_at = now
        return f"{event.job}: step {event.step}/{event.steps}  {step_text(event, left_s)}"


class LiveLines:
    """One moving line for the running job; everything that should stay is printed above it."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self.console = console
        self._clock = clock
        self._pace = Pace(clock)
        self._job, self._phase = "", ""
        self._step: StepDone | None = None
        self._left_s: float | None = None
        self.live = Live(get_renderable=self.draw, console=console, refresh_per_second=4)

    def __call__(self, event: Event) -> None:
        match event:
            case StepDone():
                self._step, self._phase = event, ""
                self._left_s = self._pace.left_s(event.step, event.steps)
            case Phase(job=job, text=text):
                self._job, self._phase = job, text
            case JobStarted(job=job):
                self._job, self._step, self._pace = job, None, Pace(self._clock)
                self._say(event)
            case JobEnded():
                self._job, self._phase, self._step = "", "", None
                self._say(event)
            case _:
                self._say(event)

    def draw(self) -> Table:
        """The moving line: job, bar, step, numbers; or what the job does between steps."""
        row = Table.grid(padding=(0, 1))
        if not self._job:
            return row
        if self._step is None:
            row.add_row(f"[bold]{escape(self._job)}[/]", f"{escape(self._phase)} ...")
            return row
        step = self._step
        row.add_row(
            f"[bold]{escape(step.job)}[/]",
            ProgressBar(total=step.steps, completed=step.step, width=20),
            f"{step.step}/{step.steps}",
            escape(f"{self._phase} ..." if self._phase else step_text(step, self._left_s)),
        )
        return row

    def _say(self, event: Event) -> None:
        text = event_text(event)
        if text is not None:
            style = "yellow" if isinstance(event, Warned) else None
            self.console.print(text, style=style, markup=False, highlight=False)


@contextmanager
def progress(stream: TextIO = sys.stdout) -> Iterator[OnEvent]:
    """What draws the events of a run on `stream`: live on a terminal, plain lines elsewhere."""
    console = Console(file=stream)
    if not console.is_terminal:
        yield PlainLines(stream)
        return
    lines = LiveLines(console)
    with lines.live:
        yield lines


def _losses(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    """The total first; a single term is the total, up to its weight, and is not repeated."""
    losses = [(name, value) for name, value in metrics.items() if name.startswith("loss/")]
    losses.sort(key=lambda pair: pair[0] != "loss/total")
    return losses[:1] if len(losses) == 2 else losses


def _measured(evaluation: Mapping[str, Any]) -> str:
    """Held-out numbers, and the names of diagnostics: theirs are too many for a line."""
    diagnosed = evaluation.get("diagnostics", {})
    plain = {name: value for name, value in evaluation.items() if name != "diagnostics"}
    parts = [f"held out: {', '.join(_numbers(plain))}"] if plain else []
    parts += [f"diagnostics: {', '.join(diagnosed)}"] if diagnosed else []
    return "; ".join(parts) or "nothing measured"


def _numbers(evaluation: Mapping[str, object], prefix: str = "") -> list[str]:
    """Nested numbers of an evaluation, flat; what was not measured is left out."""
    parts: list[str] = []
    for name, value in evaluation.items():
        if isinstance(value, Mapping):
            parts += _numbers(value, f"{prefix}{name} ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            parts.append(f"{prefix}{name} {value:.4g}")
    return parts
