"""The `stillhouse` command: parse, load the spec, call the public function, draw.

Promises: `validate` and every refusal import neither torch nor ray; environment variables are read
here and nowhere else (RAY_ADDRESS, MLFLOW_TRACKING_URI, STILLHOUSE_LOG). Results go to standard
output; with --json the last line there is one JSON object and everything else goes to standard
error.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

import dataclasses
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli_cache import cache_app
from orchestrator.cli_recipes import recipes
from orchestrator.cli_search import run_file as run_search_file
from orchestrator.cli_study import run_file as run_study_file
from orchestrator.errors import Interrupted, SpecError, StillhouseError
from orchestrator.events import Event, JobEnded
from orchestrator.planner import Plan, plan, preflight
from orchestrator.planner.machine import this_machine
from orchestrator.spec import JobSpec, load_jobs, resolved_yaml

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

ENVIRONMENT_DEFAULTS = {"RAY_ADDRESS": "ray.address", "MLFLOW_TRACKING_URI": "tracking.uri"}
"""Environment variable -> field of a job it sets where neither the file nor --set does."""

app = typer.Typer(
    name="stillhouse",
    help="Distil language models from a pool of teachers on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
pool_app = typer.Typer(help="Standing pools: teachers shared by many jobs.", no_args_is_help=True)
app.add_typer(pool_app, name="pool")
app.add_typer(cache_app, name="cache")
app.command()(recipes)

JobFile = Annotated[Path, typer.Argument(help="Job file (YAML).", metavar="FILE")]
RunFolder = Annotated[str, typer.Argument(help="Run folder, e.g. runs/<run id>.", metavar="RUN")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Set a field: a.b.c=value, or JOB:a.b.c=value for one job of a list. Repeatable.",
        metavar="PATH=VALUE",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Last line of output: one JSON object.")]


@app.command()
def run(file: JobFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Run the jobs of a file, in order."""
    jobs = _load(file, overrides)
    _plans(jobs)  # before the heavy imports of the runner, so a refusal is quick

    def call(on_event: Callable[[Event], None]) -> dict[str, Any]:
        from orchestrator.runner import run as run_jobs

        return run_jobs(jobs, on_event).to_dict()

    _watch(call, as_json, jobs)


@app.command()
def label(file: JobFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Put all that the jobs of a file ask of their roles into the cache; train nothing."""
    jobs = _load(file, overrides)
    _plans(jobs)

    def call(on_event: Callable[[Event], None]) -> dict[str, Any]:
        from orchestrator.runner import label as label_jobs

        return label_jobs(jobs, on_event).to_dict()

    _watch(call, as_json, jobs)


@app.command()
def resume(folder: RunFolder, as_json: Json = False) -> None:
    """Go on with an interrupted or failed run, and with the jobs after it."""
    jobs = _jobs_of_run(folder)

    def call(on_event: Callable[[Event], None]) -> dict[str, Any]:
        from orchestrator.runner import resume as resume_run

        return resume_run(folder, on_event).to_dict()

    _watch(call, as_json, jobs)


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="Study file (YAML).", metavar="FILE")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with one begun before.")] = False,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Jobs side by side; default: as many as fit.")
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on though the file has changed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a study: jobs x arms x seeds, ending in a table."""
    run_study_file(
        file,
        overrides or (),
        environment_defaults(os.environ),
        resume=resume,
        parallel=parallel,
        accept_changes=accept_changes,
        as_json=as_json,
    )


@app.command()
def search(
    file: Annotated[
        Path | None, typer.Argument(help="Search file (YAML); left out with --resume.")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with a search begun before.", metavar="NAME")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Trials side by side; default: as many as fit.")
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on though the file has changed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a search: trials of one job over one pool, chosen and stopped by Ray Tune."""
    run_search_file(
        file,
        overrides or (),
        environment_defaults(os.environ),
        resume=resume,
        parallel=parallel,
        accept_changes=accept_changes,
        as_json=as_json,
    )


@app.command()
def validate(file: JobFile, overrides: Overrides = None) -> None:
    """Check a job file and print it resolved, with its plan for this machine."""
    jobs = _load(file, overrides)
    plans = _plans(jobs)
    sys.stdout.write(resolved_yaml(jobs))
    for planned in plans:
        sys.stdout.write("".join(f"# {line}\n" for line in _plan_lines(planned)))


@app.command(name="eval")
def evaluate(folder: RunFolder, as_json: Json = False) -> None:
    """Measure a run's student again on its held-out data."""
    jobs = _jobs_of_run(folder)

    def call(on_event: Callable[[Event], None]) -> dict[str, Any]:
        from orchestrator.runner import evaluate as evaluate_run

        return evaluate_run(folder, on_event).to_dict()

    _watch(call, as_json, jobs)


@app.command()
def track(
    folder: RunFolder, uri: Annotated[str | None, typer.Option(help="Store.")] = None
) -> None:
    """Send what a run recorded and its tracking server has not got yet."""
    if not Path(folder).is_dir():
        raise SpecError(folder, "is not a folder", "Give a run folder, e.g. runs/<run id>")
    from orchestrator.tracking import address_of, upload

    report = upload(folder, None if uri is None else address_of(uri, Path(folder).parent))
    print(report)
    if not report.complete:
        raise StillhouseError(
            f"{report.waiting} records still wait; start the server and try again"
        )


@app.command()
def ui(
    storage: Annotated[str, typer.Option(help="Folder of run directories.")] = "runs",
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow's pages on the runs of a storage folder."""
    from orchestrator.tracking import open_ui

    server = open_ui(storage, port)
    print(f"http://127.0.0.1:{port} (up to a minute until it answers; Ctrl-C ends it)", flush=True)
    try:
        if server.wait() != 0:
            raise StillhouseError(f"the MLflow server ended with code {server.returncode}")
    except KeyboardInterrupt:
        server.terminate()
        server.wait(timeout=30)


@app.command()
def doctor(
    signals: Annotated[
        Path | None,
        typer.Option(help="Job file: check what its roles say instead.", metavar="FILE"),
    ] = None,
    layers: Annotated[
        Path | None,
        typer.Option(help="Job file: list the layers of its models instead.", metavar="FILE"),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Look at this machine, or at the signals or layers of a job's own models."""
    if signals is not None and layers is not None:
        raise typer.BadParameter("--signals and --layers are two commands; give one of them")
    if signals is not None:
        _check_signals(signals, overrides, as_json)
        return
    if layers is not None:
        _list_layers(layers, overrides, as_json)
        return
    if overrides or as_json:
        raise typer.BadParameter("--set and --json go with --signals FILE or --layers FILE only")
    from rich.console import Console
    from rich.table import Table

    from orchestrator.doctor import examine

    findings = examine(cxx=os.environ.get("CXX"))
    marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "bad": "[red]bad[/]"}
    table = Table("what", "status", "found", "what to do", box=None, pad_edge=False)
    for finding in findings:
        table.add_row(finding.name, marks[finding.status], finding.found, finding.remedy)
    Console().print(table)
    if any(finding.status == "bad" for finding in findings):
        raise typer.Exit(FAILED)


def _list_layers(file: Path, overrides: list[str] | None, as_json: bool) -> None:
    """Modules of student and roles that terms may name, those of one size in one line."""
    jobs = _load(file, overrides)
    _plans(jobs)
    from rich.console import Console
    from rich.table import Table

    from orchestrator.layers_doctor import look

    found = list(look(jobs))
    if as_json:
        print(json.dumps([modules.to_dict() for modules in found]), flush=True)
        return
    table = Table("job", "model", "layer", "modules", "output", "heads", box=None, pad_edge=False)
    for each in found:
        heads = "" if each.heads is None else str(each.heads)
        table.add_row(each.job, each.model, each.pattern, str(each.count), each.size, heads)
    out = Console()
    if not out.is_terminal:
        out.width = 160  # nobody's lines to fit
    out.print(table)


def _check_signals(file: Path, overrides: list[str] | None, as_json: bool) -> None:
    """Draw what was found, the faults once more at the end; exit code 1 if there are any."""
    jobs = _load(file, overrides)
    _plans(jobs)
    from rich.console import Console

    from orchestrator.signals_doctor.examine import examine
    from orchestrator.signals_doctor.table import as_table

    out = Console(file=sys.stderr if as_json else sys.stdout)
    if not out.is_terminal:
        out.width = 180  # nobody's lines to fit
    with Console(file=sys.stderr).status("signals") as status:
        findings = list(examine(jobs, status.update))
    out.print(as_table(findings))
    faults = [finding for finding in findings if not finding.ok]
    for fault in faults:
        out.print(f"[red]OFF[/] {fault.sentence()}", soft_wrap=True)
    if as_json:
        result = {"ok": not faults, "findings": [finding.to_dict() for finding in findings]}
        print(json.dumps(result), flush=True)
    if faults:
        raise typer.Exit(FAILED)


@pool_app.command("up")
def pool_up(file: JobFile, overrides: Overrides = None) -> None:
    """Start the standing pool that a job file names, and leave it running."""
    jobs = _load(file, overrides)
    _plans(jobs)
    from orchestrator.standing import pool_up as start

    _print_json(start(jobs))


@pool_app.command("status")
def pool_status(name: Annotated[str, typer.Argument(help="Name of the pool.")]) -> None:
    """Say what a standing pool serves, and how it fares."""
    from orchestrator.standing import pool_status as ask

    _print_json(ask(name, os.environ.get("RAY_ADDRESS")))


@pool_app.command("down")
def pool_down(name: Annotated[str, typer.Argument(help="Name of the pool.")]) -> None:
    """End a standing pool."""
    from orchestrator.standing import pool_down as end

    end(name, os.environ.get("RAY_ADDRESS"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `stillhouse` command; ends the process with an exit code."""
    sys.exit(exit_code(arguments))


def exit_code(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code, with the reason on standard error."""
    logging.basicConfig(
        stream=sys.stderr,
        level=os.environ.get("STILLHOUSE_LOG", "WARNING").upper(),
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # import paths of job files, as with `python -m`
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        app(args=None if arguments is None else list(arguments), prog_name="stillhouse")
    except SystemExit as ended:  # typer's own: usage errors, --help, and the end of a command
        return ended.code if isinstance(ended.code, int) else DONE
    except SpecError as error:
        return _say(f"stillhouse: {error}", BAD_INPUT)
    except Interrupted as error:
        return _say(f"stillhouse: interrupted: {error}", INTERRUPTED)
    except StillhouseError as error:
        return _say(f"stillhouse: {type(error).__name__}: {error}", FAILED)
    return DONE


def _as_interrupt(_signal: int, _frame: object) -> None:
    """A polite kill stops like Ctrl-C: with a checkpoint."""
    raise KeyboardInterrupt


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


def _load(file: Path, overrides: list[str] | None) -> list[JobSpec]:
    return load_jobs(file, overrides or (), environment_defaults(os.environ))


def environment_defaults(environment: Mapping[str, str]) -> dict[str, str]:
    """Fields that the environment sets where a job says nothing."""
    return {
        field: environment[name]
        for name, field in ENVIRONMENT_DEFAULTS.items()
        if environment.get(name)
    }


def _jobs_of_run(folder: str) -> list[JobSpec]:
    """The jobs of a run on this machine; none for a remote one, which the runner reads."""
    if "://" in folder:
        return []
    record = Path(folder) / "job.yaml"
    if not record.is_file():
        raise SpecError(folder, "is not a run folder (no job.yaml in it)", "Give runs/<run id>")
    return load_jobs(record)


def _watch(
    call: Callable[[Callable[[Event], None]], dict[str, Any]],
    as_json: bool,
    jobs: Sequence[JobSpec],
) -> None:
    """Draw a run while it runs, then its result, also of the jobs before a failure."""
    from orchestrator.terminal import progress

    ended: list[dict[str, Any]] = []
    out = sys.stderr if as_json else sys.stdout
    try:
        with progress(out) as draw:

            def on_event(event: Event) -> None:
                if isinstance(event, JobEnded):
                    ended.append(dict(event.summary))
                draw(event)

            result = call(on_event)
    except (StillhouseError, KeyboardInterrupt) as error:
        if as_json:
            print(json.dumps({"jobs": ended, "error": str(error) or "interrupted"}), flush=True)
        raise
    _print_table(result["jobs"], jobs, out)
    if as_json:
        print(json.dumps(result), flush=True)


def _print_table(summaries: Sequence[Mapping[str, Any]], jobs: Sequence[JobSpec], out: Any) -> None:
    from rich.console import Console

    from orchestrator.evaluation.comparison import as_rich, as_text

    rows = comparison_rows(summaries, jobs)
    if not rows:
        return
    console = Console(file=out)
    if console.is_terminal:
        console.print(as_rich(rows))
    else:
        print(as_text(rows), file=out, flush=True)


def comparison_rows(summaries: Sequence[Mapping[str, Any]], jobs: Sequence[JobSpec]) -> list[Any]:
    """The compared role once, then each student, in order."""
    from orchestrator.evaluation.comparison import Row

    rows: list[Row] = []
    by_run = {summary["run_id"]: summary for summary in summaries if "run_id" in summary}
    named = {run_id: _name_of(run_id, jobs) for run_id in by_run}
    for run_id, summary in by_run.items():
        measured = summary.get("evaluation") or {}
        job = named[run_id]
        teacher, student = measured.get("teacher"), measured.get("student", {})
        role = summary.get("compared_role", job.compared_role if job is not None else None)
        if teacher and role and all(row.model != role for row in rows):
            rows.insert(0, Row(role, teacher["loss"], teacher["perplexity"]))
        if student or "kl" in measured:
            rows.append(
                Row(
                    job.name if job is not None else run_id,
                    student.get("loss"),
                    student.get("perplexity"),
                    measured.get("top1_agreement"),
                    measured.get("kl"),
                    summary.get("generated"),
                )
            )
        main = None if job is None else job.student.main
        for member, own in measured.get("members", {}).items():
            if member != main:
                numbers = (own.get(n) for n in ("loss", "perplexity", "top1_agreement", "kl"))
                rows.append(Row(f"{run_id if job is None else job.name}.{member}", *numbers))
    return rows


def _name_of(run_id: str, jobs: Sequence[JobSpec]) -> JobSpec | None:
    """The job of a run: run ids begin with the job's name; the longest name that fits."""
    fitting = [job for job in jobs if run_id.startswith(f"{job.name}-")]
    return max(fitting, key=lambda job: len(job.name), default=None)


def _plans(jobs: Sequence[JobSpec]) -> list[Plan]:
    """All that can be checked without Ray: files, models, tokenizers, disk, this machine's room."""
    preflight(jobs)
    return [
        plan(job, this_machine(job.ray.address), jobs[:index]) for index, job in enumerate(jobs)
    ]


def _plan_lines(plan_of_job: Plan) -> list[str]:
    """A plan as indented text."""
    planned = dataclasses.asdict(plan_of_job)
    lines = [f"plan of {planned['job']}:"]
    for name, value in planned.items():
        if name in ("job", "roles", "warnings"):
            continue
        lines.append(f"  {name}: {value}")
    for role in planned["roles"]:
        lines.append(f"  role {role['role']}: " + ", ".join(f"{k} {v}" for k, v in role.items()))
    return lines + [f"  warning: {text}" for text in planned["warnings"]]


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))
