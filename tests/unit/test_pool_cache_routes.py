"""Which owner has a key: keys are spread, and an owner that is lost moves its own keys only."""

import hypothesis.strategies as st
from hypothesis import given

from orchestrator.pool.cache import _owner_of
from orchestrator.pool.cache_records import Owner


def _owners(count: int) -> list[Owner]:
    return [Owner(f"cache/x/{i}", f"node-{i}", f"10.0.0.{i}") for i in range(count)]


KEYS = [i.to_bytes(16, "big") for i in range(3000)]


def test_keys_are_spread_evenly() -> None:
    owners = _owners(3)
    found = [_owner_of(key, owners) for key in KEYS]
    assert all(900 < found.count(owner) < 1100 for owner in owners)


def test_without_owners_a_key_belongs_to_nobody() -> None:
    assert _owner_of(KEYS[0], []) is None


@given(st.integers(2, 6), st.data())
def test_an_owner_that_is_lost_moves_its_own_keys_only(count: int, data: st.DataObject) -> None:
    owners = data.draw(st.permutations(_owners(count)))
    lost = data.draw(st.sampled_from(owners))
    left = [owner for owner in owners if owner != lost]
    moved = set()
    for key in KEYS[:200]:
        before, after = _owner_of(key, owners), _owner_of(key, left)
        assert after == before or before == lost
        if before == lost:
            moved.add(after)
    assert moved <= set(left) and moved


@given(st.permutations(_owners(4)))
def test_a_node_of_the_same_address_has_the_same_keys_in_the_next_session(
    owners: list[Owner],
) -> None:
    again = [Owner(f"cache/x/{i}", f"anew-{i}", owner.address) for i, owner in enumerate(owners)]
    for key in KEYS[:50]:
        one, other = _owner_of(key, owners), _owner_of(key, list(reversed(again)))
        assert one is not None and other is not None and one.address == other.address
