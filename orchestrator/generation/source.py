"""From a source that a role writes to the shelf of its texts. No ray but through `writing`."""

from collections.abc import Callable
from pathlib import Path

from orchestrator.data.sources import open_source
from orchestrator.errors import SpecError
from orchestrator.models.source import source_digest
from orchestrator.models.tokenizer import own_tokenizer, tokenizer_fingerprint
from orchestrator.spec import JobSpec
from orchestrator.spec.data import GeneratedSource, JsonlSource, PlainText, format_of

from .records import Task, Written
from .shelf import Shelf, shelf_key
from .writing import fingerprint_of


def task_of(job: JobSpec, source: GeneratedSource, tokenizer: str) -> Task:
    """What is to be written.

    Args:
        job: its `registry` and `job` sources made folders.
        source: one of its data.
        tokenizer: the job's, for a role that brings none.
    """
    spec = job.roles[source.role]
    own = own_tokenizer(spec, f"roles.{source.role}")
    return Task(source.role, spec, own or tokenizer, source, job.deterministic, job.seed)


def open_shelf(task: Task, field: str, root: Path, before_loading: Callable[[], None]) -> Shelf:
    """The shelf of a source, filled or not.

    Args:
        task: what is to be written.
        field: dotted path of the source in the job.
        root: folder of all shelves.
        before_loading: called where the role has to be loaded to know whose texts these are.

    Raises:
        SpecError: the prompts cannot be read, or there are none.
    """
    prompts = prompts_of(task.source, f"{field}.prompts")
    role = source_digest(task.spec, deterministic=task.deterministic)
    if role is None:
        before_loading()
        role = fingerprint_of(task)
    key = shelf_key(
        role,
        tokenizer_fingerprint(task.tokenizer),
        task.source,
        prompts,
        alone=task.deterministic,
    )
    return Shelf(root / key, task.source.count, prompts)


def as_read(source: GeneratedSource, shelf: Shelf) -> JsonlSource:
    """The source of the file in which its texts are."""
    return JsonlSource(
        kind="jsonl", path=str(shelf.texts), format=source.format, held_out=source.held_out
    )


def prompts_of(source: GeneratedSource, field: str) -> list[str]:
    """The beginnings, no more than there are texts.

    Raises:
        SpecError: they cannot be read, or one is empty.
    """
    if source.prompts.text is not None:
        return source.prompts.text[: source.count]
    nested = source.prompts.source
    assert nested is not None  # validated: one of the two
    format = format_of(nested)
    assert isinstance(format, PlainText)  # validated
    found: list[str] = []
    for name, record in open_source(nested, f"{field}.source"):
        text = record[format.field]
        if not isinstance(text, str) or not text:
            raise SpecError(
                f"{field}.source", f"document {name!r} is no text, or empty", "Correct or drop it"
            )
        found.append(text)
        if len(found) == source.count:
            break
    if not found:
        raise SpecError(f"{field}.source", "gives no prompt", "Fill it, or write prompts.text")
    return found


def progress(task: Task, told: Written) -> str:
    """How far the texts are, in a few words."""
    left = "" if told.seconds_left is None else f", about {told.seconds_left:.0f} s"
    return (
        f"{task.role} writes texts: {told.done} of {told.count}, "
        f"at most {told.tokens_left} tokens left{left}"
    )
