"""Positions of two tokenizers that have read the same text."""

from functools import cache

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from tiny import TOKENIZER
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from orchestrator.data.crossing import WITHIN, CrossedStore, pairs, read_text, read_tokens
from orchestrator.data.store import SampleStore
from orchestrator.data.tokenise import Sample
from orchestrator.data.tokenizer import TextTokenizer, load_tokenizer

LINES = [
    "def f(x):\n    return x\n",
    "über die Straße",
    "東京は大きい",
    "a 👩‍🔬 b",
    "the the cat sat",
]
TEXTS = st.lists(
    st.one_of(st.sampled_from(LINES), st.text(st.characters(codec="utf-8"), max_size=12)),
    min_size=1,
    max_size=4,
).map("".join)


@cache
def shipped() -> TextTokenizer:
    """4096 pieces of bytes; no token before a text."""
    return load_tokenizer(TOKENIZER)


@cache
def small_bytes() -> TextTokenizer:
    """Pieces of bytes, few of them, learned from a few lines; a token before each text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    return TextTokenizer(backend, (0,), (), None, None)


@cache
def metaspace() -> TextTokenizer:
    """Characters with a mark for spaces, as sentencepiece has them."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>"], show_progress=False
    )
    backend.train_from_iterator(LINES, trainer)
    return TextTokenizer(backend, (1,), (), None, None)


def store_of(tokenizer: TextTokenizer, text: str, cut: int = 0) -> SampleStore:
    """The text as one sample, without its first `cut` tokens."""
    ids = [*tokenizer.before, *tokenizer.backend.encode(text).ids][cut:]
    tokens = np.array([*ids, *([] if tokenizer.end is None else [tokenizer.end])], np.int32)
    return SampleStore.of([Sample("d", tokens, np.arange(len(tokens)) > 0)])


@pytest.mark.parametrize("theirs", [small_bytes, metaspace])
@given(text=TEXTS)
@settings(max_examples=60, deadline=None)
def test_a_pair_has_read_the_same_text(theirs, text: str):
    ours, role = shipped(), theirs()
    store = store_of(ours, text)
    read, mine = read_tokens(ours, store.tokens(0))
    assert read == text
    tokens, other = read_text(role, text)
    left, right = pairs(mine, other)
    for i, j in zip(left, right, strict=True):
        assert mine[i] == other[j] != WITHIN
        known = ours.backend.decode(store.tokens(0)[: i + 1].tolist())
        assert known == text[: mine[i]]
    assert (np.diff(left) > 0).all() and (np.diff(right) > 0).all()
    crossed = CrossedStore(store, ours, role, None)
    assert crossed.wanted(0).sum() == crossed.kept([(0,)]).sum()
    assert crossed.tokens(0).tolist() == tokens.tolist()


@given(text=TEXTS)
@settings(max_examples=60, deadline=None)
def test_bytes_read_to_the_end_of_a_character_are_known_by_decoding(text: str):
    role = small_bytes()
    tokens, read = read_text(role, text)
    for j, characters in enumerate(read[:-1]):
        decoded = role.backend.decode(tokens[: j + 1].tolist())
        if characters == WITHIN:
            assert decoded != text[: len(decoded)] or "\ufffd" in text
        else:
            assert decoded == text[:characters]


@given(text=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1))
@settings(max_examples=60, deadline=None)
def test_equal_tokenizers_pair_every_position(text: str):
    crossed = CrossedStore(store_of(shipped(), text), shipped(), shipped(), None)
    assert crossed.kept([(0,)]).all()
    assert crossed.tokens(0).tolist() == crossed.store.tokens(0)[:-1].tolist()
    assert crossed.wanted(0).all()


@given(text=TEXTS, cut=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_a_piece_cut_anywhere_is_read_from_its_own_text(text: str, cut: int):
    """Its first tokens may be the rest of a character, which another tokenizer writes otherwise."""
    store = store_of(shipped(), text, cut)
    if len(store.tokens(0)) < 2:
        return
    read, mine = read_tokens(shipped(), store.tokens(0))
    assert text.endswith(read.lstrip("\ufffd"))
    known = [n for n in mine if n != WITHIN]
    assert known == sorted(known) and mine[-1] == len(read)
    for i, characters in enumerate(mine[:-1]):
        if characters != WITHIN:
            decoded = shipped().backend.decode(store.tokens(0)[: i + 1].tolist())
            assert decoded == read[:characters]
