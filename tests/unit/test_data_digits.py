"""Handwritten digits as a source."""

from itertools import islice

import pytest

from orchestrator.data.digits import documents


def test_every_digit_is_once_there_in_a_fixed_order() -> None:
    every = list(documents())
    assert len({name for name, _ in every}) == len(every) == 1797
    assert every[:50] == list(islice(documents(), 50))
    assert {record["label"] for _, record in every[:100]} == set(range(10))
    assert all(len(record["features"]) == 64 for _, record in every)
    pixels = [pixel for _, record in every for pixel in record["features"]]
    assert min(pixels) == 0.0 and max(pixels) == 1.0


def test_offset_and_limit_cut_the_same_order() -> None:
    every = list(documents())
    assert list(documents(limit=20, offset=5)) == every[5:25]
    assert list(documents(offset=1790)) == every[1790:]


@pytest.mark.parametrize(("limit", "offset"), [(0, 0), (None, 1797), (None, -1)])
def test_what_leaves_nothing_is_refused(limit: int | None, offset: int) -> None:
    with pytest.raises(ValueError, match="leave nothing of 1797"):
        next(documents(limit, offset))
