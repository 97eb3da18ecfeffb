"""The table that ends a list of jobs: the teacher, then every job's student, on the same text.

Pure: evaluations in, text out. `rich` is imported only to draw the terminal's table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from .measure import Evaluation

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = ("model", "held-out loss", "perplexity", "agreement", "KL", "generated")
NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """One model. None: not measured."""

    model: str
    loss: float | None = None  # nats a token
    perplexity: float | None = None
    agreement: float | None = None  # with the teacher, 0 to 1
    kl: float | None = None  # nats a token
    generated: str | None = None


def teacher_row(name: str, evaluation: Evaluation, generated: str | None = None) -> Row:
    """The compared role itself, from any evaluation against it."""
    return Row(name, evaluation.teacher_loss, evaluation.teacher_perplexity, None, None, generated)


def student_row(name: str, evaluation: Evaluation, generated: str | None = None) -> Row:
    """A student after its job."""
    return Row(
        name,
        evaluation.student_loss,
        evaluation.student_perplexity,
        evaluation.top1_agreement,
        evaluation.kl,
        generated,
    )


def cells(row: Row, longest: int = 60) -> tuple[str, ...]:
    """A row as text, in the order of `HEADINGS`; generated text on one line, cut to `longest`."""
    line = " ".join((row.generated or "").split())
    return (
        row.model,
        _number(row.loss, ".4f"),
        _number(row.perplexity, ".2f"),
        _number(row.agreement, ".1%"),
        _number(row.kl, ".4f"),
        (line if len(line) <= longest else line[: longest - 1] + "…") or NOTHING,
    )


def as_text(rows: Sequence[Row]) -> str:
    """Columns of plain text, numbers to the right."""
    table = [HEADINGS, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEADINGS))]
    lines = []
    for line in table:
        aligned = [
            cell.rjust(width) if 0 < column < 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def as_markdown(rows: Sequence[Row]) -> str:
    """A GitHub table; pipes and markup in cells are escaped."""
    rule = [":--", "--:", "--:", "--:", "--:", ":--"]
    lines = [HEADINGS, rule, *([_plain(cell) for cell in cells(row)] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_html(rows: Sequence[Row]) -> str:
    """A `<table>`, everything escaped."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(row)) + "</tr>"
        for row in rows
    )
    return f"<table class='compared'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def as_rich(rows: Sequence[Row], title: str = "Held-out comparison") -> "Table":
    """A table for a `rich` console."""
    from rich.markup import escape as plain
    from rich.table import Table

    table = Table(title=title)
    for column, heading in enumerate(HEADINGS):
        right = 0 < column < 5
        table.add_column(
            heading,
            justify="right" if right else "left",
            no_wrap=column < 5,
            overflow="ellipsis" if column == 5 else "fold",
        )
    for row in rows:
        table.add_row(*(plain(cell) for cell in cells(row)))
    return table


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _plain(cell: str) -> str:
    for character in "\\`*_[]<>|":
        cell = cell.replace(character, "\\" + character)
    return cell
