"""Drivers that are kept: taken up by the next lane, closed where a job failed and at the end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import digits
import pytest

from orchestrator.series.drivers import Drivers, Lane, OnEvent
from orchestrator.series.kept import Kept
from orchestrator.spec import JobSpec


class Bench:
    """Counts what is opened and closed; a job named `bad` fails."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed: list[int] = []

    def drivers(self) -> Drivers:
        return Drivers(self._open, lambda name: name, lambda job, run: False)

    @contextmanager
    def _open(self, jobs: Sequence[JobSpec], on_event: OnEvent) -> Iterator["Driver"]:
        number, self.opened = self.opened, self.opened + 1
        try:
            yield Driver(number, on_event)
        finally:
            self.closed.append(number)


class Driver:
    def __init__(self, number: int, on_event: OnEvent) -> None:
        self.number, self.on_event = number, on_event

    def run(self, jobs: Sequence[JobSpec], run_ids: Sequence[str], **_: Any) -> dict[str, Any]:
        if run_ids[-1] == "bad":
            raise RuntimeError("as the test wants")
        self.on_event(f"{run_ids[-1]} on {self.number}")  # type: ignore[arg-type]
        return {"driver": self.number}

    def request_stop(self) -> None:
        raise AssertionError


JOBS = [digits.job()]


def _lane(drivers: Drivers, heard: list[Any]) -> Lane:
    return Lane(drivers, heard.append, lambda: False)


def test_the_next_lane_takes_up_a_driver_and_hears_it_alone() -> None:
    bench, first, second = Bench(), [], []
    with Kept(bench.drivers()) as drivers:
        with _lane(drivers, first) as lane, _lane(drivers, first) as other:
            assert lane.run(JOBS, ["a"], resume=False)["driver"] == 0
            assert other.run(JOBS, ["b"], resume=False)["driver"] == 1
        with _lane(drivers, second) as lane:
            assert lane.run(JOBS, ["c"], resume=False)["driver"] in (0, 1)
        assert bench.opened == 2 and bench.closed == []
    assert sorted(bench.closed) == [0, 1]
    assert first == ["a on 0", "b on 1"] and len(second) == 1


def test_a_driver_whose_job_failed_is_closed() -> None:
    bench = Bench()
    with Kept(bench.drivers()) as drivers:
        with _lane(drivers, []) as lane:
            with pytest.raises(RuntimeError):
                lane.run(JOBS, ["bad"], resume=False)
            lane.close()
            assert bench.closed == [0]
            assert lane.run(JOBS, ["good"], resume=False)["driver"] == 1
        with _lane(drivers, []) as lane:
            assert lane.run(JOBS, ["good"], resume=False)["driver"] == 1
    assert bench.closed == [0, 1]
