"""Lists of jobs: what a request to stop means for the jobs that have not begun."""

from pathlib import Path
from typing import Any

import digits
import pytest

from orchestrator.errors import Interrupted
from orchestrator.runner import run


class Fake:
    """A session whose every job is over before it can stop, and of which one was asked to."""

    ran: list[str] = []  # noqa: RUF012  # of the one session of a test
    stops_in = ""

    def __init__(self, *_: Any) -> None:
        self.asked_to_stop = False

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run_job(self, job: Any, *_: Any, **__: Any) -> dict[str, Any]:
        self.ran.append(job.name)
        self.asked_to_stop |= job.name == self.stops_in
        return {"status": "done"}


@pytest.mark.parametrize(("stops_in", "ran"), [("a", ["a"]), ("b", ["a", "b"]), ("", ["a", "b"])])
def test_a_list_ends_after_a_job_that_was_over_before_it_could_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops_in: str, ran: list[str]
) -> None:
    monkeypatch.setattr("orchestrator.session.Session", Fake)
    monkeypatch.setattr(Fake, "ran", [])
    monkeypatch.setattr(Fake, "stops_in", stops_in)
    jobs = [digits.job(name=name, storage=str(tmp_path)) for name in ("a", "b")]
    if stops_in == "a":
        with pytest.raises(Interrupted, match=r"'a' was over.*resume \S*/a-\S+ goes on with 'b'"):
            run(jobs)
    else:
        assert len(run(jobs).jobs) == 2
    assert Fake.ran == ran
