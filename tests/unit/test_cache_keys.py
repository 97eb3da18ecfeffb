"""Keys: equal content has one key on every machine, and any difference has another."""

import dataclasses

import numpy as np
import pytest

from orchestrator.signals.cache.ask_json import ask_from_json, ask_json
from orchestrator.signals.cache.keys import RANGE, record_key, record_keys
from orchestrator.signals.records import (
    AttentionAsk,
    FullAsk,
    HiddenAsk,
    LayersAsk,
    SampledAsk,
    SignalAsk,
    TopKAsk,
)

TOKENS = np.arange(20, dtype=np.int32)
ASKS: list[SignalAsk] = [
    FullAsk("float32"),
    HiddenAsk("float32"),
    HiddenAsk("bfloat16"),
    TopKAsk(4, "float16", (1.0, 2.0)),
    TopKAsk(4, "float16", (1.0,)),
    TopKAsk(5, "float16", (1.0, 2.0)),
    SampledAsk(4, 1.0, "int8", 0),
    SampledAsk(4, 1.0, "int8", 1),
    LayersAsk(("a", "b"), "float32"),
    LayersAsk(("a,b",), "float32"),
    LayersAsk(("a", "b"), "float32", 8),
    AttentionAsk(("a", "b"), "float32"),
]


def test_the_key_of_a_known_record_does_not_change() -> None:
    # Written down once: a key that changes by accident makes every cache on disk worthless.
    key = record_key("fingerprint", TOKENS, TopKAsk(64, "float16", (1.0, 2.0)), 0)
    assert key.hex() == "15c773560da6b9c5fc94aad4424e0785"


def test_every_difference_of_asks_tokens_roles_and_ranges_makes_another_key() -> None:
    long = np.zeros(2 * RANGE + 1, np.int32)
    keys = [record_key("a", TOKENS, ask, 0) for ask in ASKS]
    keys += [record_key(name, TOKENS, ASKS[0], 0) for name in ("b", "A", "", "a ")]
    keys += [record_key("a", TOKENS[:n], ASKS[0], 0) for n in (1, 19)]
    keys += [record_key("a", TOKENS[::-1].copy(), ASKS[0], 0)]
    keys += [record_key("a", long, ASKS[0], start) for start in (0, RANGE, 2 * RANGE)]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 16 for key in keys)


def test_a_field_may_not_leak_into_its_neighbour() -> None:
    # The fingerprint and the ask are texts of any length: their border is part of the key.
    text = ask_json(ASKS[0])
    assert record_key("a" + text[0], TOKENS, ASKS[0], 0) != record_key("a", TOKENS, ASKS[0], 0)


def test_many_keys_are_those_of_single_samples() -> None:
    lengths = np.array([3, 0, 2 * RANGE, 1, 2 * RANGE + 5])
    tokens = np.random.default_rng(0).integers(0, 9, lengths.sum()).astype(np.int32)
    ends = np.cumsum(lengths)
    expected = [
        (index, start, record_key("a", tokens[end - n : end], ASKS[3], start))
        for index, (n, end) in enumerate(zip(lengths, ends, strict=True))
        for start in range(0, n, RANGE)
    ]
    assert record_keys("a", tokens, lengths, ASKS[3]) == expected
    assert [index for index, _, _ in expected] == [0, 2, 2, 3, 4, 4, 4]


def test_tokens_of_another_memory_layout_have_the_same_key() -> None:
    spread = np.repeat(TOKENS, 2)[::2]
    assert not spread.flags.c_contiguous
    assert record_key("a", spread, ASKS[0], 0) == record_key("a", TOKENS, ASKS[0], 0)


@pytest.mark.parametrize("start", [-RANGE, 1, RANGE])
def test_a_range_that_the_sample_has_not_is_refused(start: int) -> None:
    with pytest.raises(ValueError, match="start is"):
        record_key("a", TOKENS, ASKS[0], start)


def test_tokens_that_would_be_hashed_wrongly_are_refused() -> None:
    with pytest.raises(ValueError, match="int32"):
        record_key("a", TOKENS.astype(np.int64), ASKS[0], 0)
    with pytest.raises(ValueError, match="add up to 19"):
        record_keys("a", TOKENS, np.array([9, 10]), ASKS[0])


@pytest.mark.parametrize("ask", ASKS, ids=lambda ask: ask_json(ask))
def test_an_ask_survives_its_text(ask: SignalAsk) -> None:
    assert ask_from_json(ask_json(ask)) == ask


def test_the_text_of_an_ask_has_every_field_and_one_way_to_write_a_number() -> None:
    for ask in ASKS:
        for field in dataclasses.fields(ask):
            assert f'"{field.name}"' in ask_json(ask)
    whole = TopKAsk(4, "float16", (1, 2))
    assert ask_json(whole) == ask_json(TopKAsk(4, "float16", (1.0, 2.0)))
    assert '"temperatures":[1.0,2.0]' in ask_json(whole)


@pytest.mark.parametrize(
    "text", ['{"kind":"later"}', '{"kind":"full"}', '{"kind":"full","dtype":"float32","x":1}', "[]"]
)
def test_a_text_that_is_no_ask_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="ask"):
        ask_from_json(text)
