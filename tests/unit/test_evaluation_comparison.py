"""The closing table."""

import io

from rich.console import Console

from orchestrator.evaluation.comparison import (
    Row,
    as_html,
    as_markdown,
    as_rich,
    as_text,
    student_row,
    teacher_row,
)
from orchestrator.evaluation.measure import Evaluation

EVALUATION = Evaluation(10, 3.5, 33.1, 0.2, 0.01, 3.1, 22.2, 0.3, 0.456, 0.789)
ROWS = [
    teacher_row("teacher", EVALUATION, "def f():\n    return 1"),
    student_row("hard", EVALUATION, "x" * 99),
    Row("never|measured"),
]


def test_plain_text_has_a_line_a_model_and_numbers_end_in_one_column() -> None:
    lines = as_text(ROWS).splitlines()
    assert len(lines) == 5
    assert "def f(): return 1" in lines[2]
    assert lines[3].split()[:5] == ["hard", "3.5000", "33.10", "45.6%", "0.7890"]
    assert lines[2].index("3.1000") == lines[3].index("3.5000")


def test_what_was_not_measured_is_a_dash() -> None:
    assert as_text(ROWS).splitlines()[4].split() == ["never|measured", *"-----"]


def test_long_text_is_cut_and_says_so() -> None:
    assert as_text(ROWS).splitlines()[3].endswith("x…")


def test_markup_in_cells_stays_text() -> None:
    rows = [Row("<b>[red]a|b[/red]", generated="*bold* `code`")]
    assert "<td>&lt;b&gt;[red]a|b[/red]</td>" in as_html(rows)
    assert as_markdown(rows).splitlines()[2].startswith(r"| \<b\>\[red\]a\|b")
    out = io.StringIO()
    Console(file=out, width=120).print(as_rich(rows))
    assert "[red]a|b[/red]" in out.getvalue()
