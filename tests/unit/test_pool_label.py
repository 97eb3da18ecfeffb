"""Labelling refuses beforehand what could never be in the cache all at once."""

import pytest

from orchestrator.errors import SpecError
from orchestrator.pool.label import check_room

PARTS = [("teacher on 90 samples", 700), ("teacher on 10 samples", 301)]


def test_parts_that_fit_together_are_accepted() -> None:
    check_room(1001, 1, PARTS)
    check_room(501, 2, PARTS)  # keys are spread over both nodes
    check_room(1, 1, [])


def test_parts_that_fit_one_by_one_and_not_together_are_refused() -> None:
    with pytest.raises(SpecError) as caught:
        check_room(1000, 1, PARTS)
    assert caught.value.field == "cache.max_bytes"
    for word in ("is 1000,", "takes 1001 bytes", "700 for teacher on 90 samples", "301 for"):
        assert word in str(caught.value)
    assert "Raise it to 1001 and some more" in caught.value.remedy


def test_what_each_of_several_nodes_needs_is_said() -> None:
    with pytest.raises(SpecError, match=r"is 500 on each of 2 nodes.*Raise it to 501"):
        check_room(500, 2, PARTS)
