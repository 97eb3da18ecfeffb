"""Claims: one live holder a key, whatever clients die or start again."""

import hypothesis.strategies as st
from hypothesis import given

from orchestrator.pool.claims import Claims, Holder

KEY, OTHER = b"k" * 16, b"o" * 16


def _holder(client: str = "a", life: str = "1", question: str = "q") -> Holder:
    return Holder(client, life, question)


def _claims(*clients: tuple[str, str], at: float = 0.0) -> Claims:
    claims = Claims(lease_s=10.0)
    for client, life in clients:
        claims.heard(client, life, at)
    return claims


def test_the_first_who_asks_computes_and_may_ask_again() -> None:
    claims = _claims(("a", "1"), ("b", "1"))
    assert claims.take(KEY, _holder("a"), 0.0)
    assert not claims.take(KEY, _holder("b"), 1.0)
    assert not claims.take(KEY, _holder("a", question="another"), 1.0)
    assert claims.take(KEY, _holder("a"), 2.0)


def test_a_silent_client_loses_its_claims_to_whoever_asks() -> None:
    claims = _claims(("a", "1"), ("b", "1"))
    assert claims.take(KEY, _holder("a"), 0.0)
    claims.heard("b", "1", 10.5)
    assert not claims.take(KEY, _holder("b"), 10.0)
    assert claims.take(KEY, _holder("b"), 10.5)
    assert not claims.take(KEY, _holder("a"), 10.6)


def test_a_client_that_started_again_need_not_wait_for_its_own_lease() -> None:
    claims = _claims(("a", "1"))
    assert claims.take(KEY, _holder("a", "1"), 0.0)
    claims.heard("a", "2", 1.0)
    assert claims.take(KEY, _holder("a", "2"), 1.0)


def test_what_is_given_up_or_settled_is_free() -> None:
    claims = _claims(("a", "1"), ("b", "1"))
    claims.take(KEY, _holder("a"), 0.0)
    claims.take(OTHER, _holder("a"), 0.0)
    claims.give_up([KEY], _holder("b"))
    assert not claims.take(KEY, _holder("b"), 0.0), "only a holder gives up what it holds"
    claims.give_up([KEY], _holder("a"))
    assert claims.take(KEY, _holder("b"), 0.0)
    claims.settle([OTHER, b"never claimed...."])
    assert len(claims) == 1


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("12"), st.sampled_from(["take", "hear"])),
        max_size=40,
    )
)
def test_never_two_living_holders(moves: list[tuple[str, str, str]]) -> None:
    """Time moves a second a move; a model keeps who was heard last and who was told yes."""
    claims = Claims(lease_s=3.0)
    heard: dict[str, tuple[str, float]] = {}
    held: tuple[str, str] | None = None
    for now, (client, life, move) in enumerate(moves):
        if move == "hear" or client not in heard or heard[client][0] != life:
            claims.heard(client, life, now)
            heard[client] = (life, now)
        if move == "take":
            lives = (
                held is not None and heard[held[0]][0] == held[1] and now - heard[held[0]][1] <= 3.0
            )
            got = claims.take(KEY, _holder(client, life), now)
            assert got == (not lives or held == (client, life))
            if got:
                held = (client, life)
