"""The report of a run, from its folder alone."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.evaluation.charts import charts, draw
from orchestrator.evaluation.comparison import Row
from orchestrator.evaluation.history import History, history_of, parse_record, read_history
from orchestrator.evaluation.replay import recorded_schedule
from orchestrator.evaluation.report import render, write_report
from strategies.progress import Progress
from strategies.schedules import value

EVIL = "<script>alert('x')</script>"


def _line(number: int, kind: str, **body: object) -> str:
    record = {"n": number, "time_ms": 1_700_000_000_000 + number, "kind": kind, "body": body}
    return json.dumps(record) + "\n"


def _spool(folder: Path) -> Path:
    path = folder / "tracking" / "spool.jsonl"
    path.parent.mkdir(parents=True)
    lines = [
        _line(0, "begin", run_id="r-1", name=EVIL, experiment="e"),
        _line(1, "text", name="job.yaml", text=f"name: {EVIL}"),
        _line(2, "lineage", values={"teacher.fingerprint": "abc", EVIL: EVIL}),
        _line(3, "metrics", step=0, values={"held_out/student_loss": 5.0, "held_out/kl": 2.0}),
        _line(4, "metrics", step=1, values={"loss/total": float("nan"), EVIL: 1.0}),
        _line(5, "metrics", step=2, values={"loss/total": 3.0, "pool/asked": 8}),
        "this is no record\n",
        _line(6, "metrics", step=2, values={"pool/delivered": 8, "pool/consumed": 8}),
        _line(7, "metrics", step=2, values={"held_out/student_loss": 4.0, "held_out/kl": 1.0}),
        _line(8, "status", status="finished"),
    ]
    path.write_text("".join(lines) + '{"n": 9, "torn', encoding="utf-8")
    return folder


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_history_keeps_every_point_and_counts_damaged_lines(tmp_path: Path) -> None:
    history = read_history(_spool(tmp_path))
    assert [p.value for p in history.metrics["held_out/student_loss"]] == [5.0, 4.0]
    assert (history.status, history.damaged, history.starts) == ("finished", 1, 1)
    assert history.last("pool/consumed") == 8
    assert history.at("held_out/kl", 0) == 2.0
    assert history.last("never") is None


def test_a_line_that_is_no_record_is_none() -> None:
    for line in (b"", b"[]", b"null", b'{"n": 1}', b'{"n": "x"', b"\xff\xfe"):
        assert parse_record(line) is None


def test_a_run_without_a_spool_has_no_history(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_history(tmp_path)


def test_the_report_is_one_file_that_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = write_report(_spool(tmp_path)).read_text(encoding="utf-8")
    tags = _Tags()
    tags.feed(page)
    names = {tag for tag, _ in tags.seen}
    assert not names & {"script", "link", "iframe", "object"}
    sources = [attrs["src"] for tag, attrs in tags.seen if tag == "img"]
    assert sources and all(str(src).startswith("data:image/svg+xml;base64,") for src in sources)
    assert not re.search(r"url\(|@import|https?://", page)


def test_steps_that_a_restart_did_again_are_told(tmp_path: Path) -> None:
    page = write_report(_spool(tmp_path), {"pool": {"asked": 8, "replayed_steps": 3}})
    assert re.search(r"steps done again after a restart\D+3\b", page.read_text(encoding="utf-8"))


def test_everything_that_came_from_a_job_is_escaped(tmp_path: Path) -> None:
    page = write_report(
        _spool(tmp_path),
        {"generated": EVIL, "note": EVIL},
        [Row(EVIL, generated=EVIL)],
    ).read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 7


def test_measurements_are_named_before_and_after(tmp_path: Path) -> None:
    page = write_report(_spool(tmp_path)).read_text(encoding="utf-8")
    assert "<td>before</td><td>5.0000</td>" in page
    assert "<td>after (2)</td><td>4.0000</td>" in page


def test_a_report_written_before_the_end_is_recorded_takes_the_summarys_status(
    tmp_path: Path,
) -> None:
    path = _spool(tmp_path) / "tracking" / "spool.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"status"' not in line), encoding="utf-8")
    assert "after (2)" not in write_report(tmp_path).read_text(encoding="utf-8")
    page = write_report(tmp_path, {"status": "done"}).read_text(encoding="utf-8")
    assert "after (2)" in page and ">finished<" in page


def test_the_counts_say_whether_every_sample_counted_once(tmp_path: Path) -> None:
    history = read_history(_spool(tmp_path))
    assert "asked = delivered = consumed" in render(history, {})
    broken = {"pool": {"asked": 8, "delivered": 8, "consumed": 7}}
    assert "asked, delivered, consumed differ" in render(history, broken)


def test_an_empty_history_still_gives_a_page() -> None:
    page = render(history_of([]), {})
    assert page.startswith("<!doctype html>")
    assert "<section>" not in page


def test_the_same_history_gives_the_same_picture(tmp_path: Path) -> None:
    history: History = read_history(_spool(tmp_path))
    titles = [chart.title for chart in charts(history)]
    assert titles == ["Loss terms", "Held-out loss", "Divergence from the teacher"]
    chart = charts(history)[0]
    assert draw(history, chart) == draw(history, chart)
    assert draw(history, chart, "png").startswith(b"\x89PNG")


def _history(metrics: dict[str, list[float]]) -> History:
    """Metrics of the steps 1, 2, ..."""
    lines = [_line(0, "begin", run_id="r-1", name="n", experiment="e")]
    for number in range(max(len(values) for values in metrics.values())):
        found = {name: values[number] for name, values in metrics.items() if number < len(values)}
        lines.append(_line(1 + number, "metrics", step=1 + number, values=found))
    return history_of(parse_record(line.encode()) for line in lines)


MOVING = {
    "loss/total": [3.0, 2.0, 1.0],
    "loss/forward_kl": [3.0, 2.0, 1.0],
    "loss/doubt": [0.9, 0.8, 0.7],
    "schedule/forward_kl.weight": [1.0, 1.0, 1.0],
    "schedule/forward_kl.temperature": [4.0, 2.0, 1.0],
    "schedule/forward_kl.target.0.share": [0.4, 0.5, 0.75],
    "schedule/reverse_kl.weight": [0.0, 0.5, 1.0],
    "schedule/forward_kl_2.target.1.weights.0": [0.5, 0.5, 0.5],
    "schedule/forward_kl_2.target.1.weights.1": [0.5, 0.25, 0.125],
    "schedule/doubt.weight": [0.0, 0.0, 0.0],
}


def test_every_schedule_that_moves_is_plotted_with_those_of_its_kind_and_no_other() -> None:
    history = _history(MOVING)
    found = {
        chart.title: [(line.metric, line.label) for line in chart.lines]
        for chart in charts(history)
        if chart.title.startswith("Schedules")
    }
    assert found == {
        "Schedules: share": [("schedule/forward_kl.target.0.share", "forward kl target 0")],
        "Schedules: temperature": [("schedule/forward_kl.temperature", "forward kl")],
        "Schedules: weight": [("schedule/reverse_kl.weight", "reverse kl")],
        "Schedules: weights": [
            ("schedule/forward_kl_2.target.1.weights.1", "forward kl 2 target 1 1")
        ],
    }
    page = render(history, {})
    assert all(f'alt="{title}"' in page for title in found)


def test_a_measure_is_not_plotted_among_the_losses() -> None:
    by_title = {chart.title: chart for chart in charts(_history(MOVING))}
    labels = [line.label for line in by_title["Loss terms"].lines]
    assert labels == ["total", "forward kl"]
    assert [line.label for line in by_title["Measured, not trained on"].lines] == ["doubt"]


def test_a_recorded_schedule_is_replayed_exactly() -> None:
    values = [0.4, 0.4, 0.4, 0.4012345678901234, 0.5, 0.6, 0.7, 1.0, 1.0]
    again = recorded_schedule(_history({"schedule/forward_kl.beta": values}), "forward_kl.beta")
    assert [value(again, Progress(step, 9)) for step in range(9)] == values
    assert [step for step, _ in again.points][:3] == [0, 2, 3] and again.points[-1] == (8, 1.0)


def test_what_was_not_recorded_at_every_step_cannot_be_replayed() -> None:
    history = _history({"schedule/a.weight": [1.0, 2.0, 3.0], "loss/total": [1.0]})
    with pytest.raises(SpecError, match=r"b\.weight: is no number of run 'r-1'. It recorded a\.w"):
        recorded_schedule(history, "b.weight")
    holes = {"schedule/a.weight": history.metrics["schedule/a.weight"][::2]}
    with pytest.raises(SpecError, match=r"not recorded at 1 of its steps, first step 2\. Run it"):
        recorded_schedule(replace(history, metrics=holes), "a.weight")
