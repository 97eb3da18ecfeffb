"""Tokens and loss masks of texts, completions and conversations."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import processors

from orchestrator.data.format import Encoded, encode
from orchestrator.data.read import Document
from orchestrator.data.tokenizer import TextTokenizer, load_tokenizer
from orchestrator.errors import SpecError
from orchestrator.spec.data import Completion, Messages, PlainText

FOLDER = Path(__file__).parents[2] / "docs" / "examples" / "teacher"
END, END_TEXT = 0, "<|endoftext|>"
DEF = 479  # the token "def"

MARKED = (
    "{% for m in messages %}<{{ m.role }}>\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\n{% endgeneration %}"
    "{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
FORGETFUL = (
    "{% for m in messages %}<{{ m.role }}>\n"
    "{% if m.role == 'assistant' and not loop.last %}...{% else %}{{ m.content }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
STRICT = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}" + MARKED
)


def copied(folder: Path, **changes: Any) -> Path:
    """A copy of the example's tokenizer with other top-level entries in its tokenizer.json."""
    folder.mkdir()
    shutil.copy(FOLDER / "tokenizer_config.json", folder)
    described = json.loads((FOLDER / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**described, **changes}))
    return folder


def tokenizer_with(tmp_path: Path, template: str | None = None, **config: Any) -> TextTokenizer:
    folder = copied(tmp_path / "tokenizer")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return load_tokenizer(FOLDER)


def decode(tokenizer: TextTokenizer, ids: np.ndarray) -> str:
    return tokenizer.backend.decode(ids.tolist(), skip_special_tokens=False)


def learned_text(tokenizer: TextTokenizer, encoded: Encoded) -> str:
    return decode(tokenizer, encoded.tokens[encoded.loss_mask])


def one(tokenizer: TextTokenizer, content: Any, format: Any) -> Encoded:
    (encoded,) = encode(tokenizer, [Document("d", content, 0)], format)
    assert encoded.tokens.dtype == np.int32
    assert encoded.tokens.shape == encoded.loss_mask.shape
    return encoded


# --- texts ---------------------------------------------------------------------------------------


def test_a_text_ends_in_the_end_token_and_all_but_its_first_token_is_learned(
    tokenizer: TextTokenizer,
) -> None:
    encoded = one(tokenizer, "def f(x): return x\n", PlainText())
    assert decode(tokenizer, encoded.tokens[:-1]) == "def f(x): return x\n"
    assert encoded.tokens[-1] == END
    assert encoded.loss_mask.tolist() == [False] + [True] * (len(encoded.tokens) - 1)


def test_a_text_that_ends_in_the_end_token_gets_no_second_one(tokenizer: TextTokenizer) -> None:
    assert one(tokenizer, "a<|endoftext|>", PlainText()).tokens.tolist().count(END) == 1


def test_an_empty_text_has_no_tokens(tokenizer: TextTokenizer) -> None:
    assert len(one(tokenizer, "", PlainText()).tokens) == 0


def test_a_tokenizer_without_an_end_token_adds_none(tmp_path: Path) -> None:
    bare = tokenizer_with(tmp_path, eos_token=None)
    assert END not in one(bare, "abc", PlainText()).tokens


def test_the_tokenizer_s_own_truncation_and_padding_are_off(tmp_path: Path) -> None:
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    folder = copied(tmp_path / "cut", truncation=cut)
    assert len(one(load_tokenizer(folder), "word " * 50, PlainText()).tokens) > 40


def test_what_a_tokenizer_puts_around_a_text_stays_and_the_end_is_not_doubled(
    tmp_path: Path,
) -> None:
    around = json.loads(
        processors.TemplateProcessing("def $A <|endoftext|>", None, [("def", DEF), (END_TEXT, END)])
        .__getstate__()
        .decode()
    )
    tokenizer = load_tokenizer(copied(tmp_path / "around", post_processor=around))
    assert (tokenizer.before, tokenizer.after) == ((DEF,), (END,))
    inner = tokenizer.backend.encode("x = 1").ids
    assert one(tokenizer, "x = 1", PlainText()).tokens.tolist() == [DEF, *inner, END]
    pair = one(tokenizer, ("x =", " 1"), Completion(kind="completion"))
    assert pair.tokens.tolist() == [DEF, *inner, END]
    assert learned_text(tokenizer, pair) == " 1<|endoftext|>"


# --- completions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("Add 1 and 2:", " 3"),
        ("Add 1 and 2: ", "three"),  # " three" would be one token across the border
        ("x\n", "\n\ny"),
        ("caf\xe9 \u4f60", "\u597d \xe9"),
        ("", "all of it is learned"),
    ],
)
def test_of_a_completion_exactly_the_completion_and_the_end_are_learned(
    tokenizer: TextTokenizer, prompt: str, completion: str
) -> None:
    encoded = one(tokenizer, (prompt, completion), Completion(kind="completion"))
    expected = f"{completion}<|endoftext|>"
    if not prompt:  # the very first token is never learned
        first = decode(tokenizer, encoded.tokens[:1])
        expected = expected.removeprefix(first)
    assert learned_text(tokenizer, encoded) == expected
    assert decode(tokenizer, encoded.tokens) == f"{prompt}{completion}<|endoftext|>"


def test_a_prompt_is_tokenised_as_it_will_be_at_inference(tokenizer: TextTokenizer) -> None:
    encoded = one(tokenizer, ("value: ", "three"), Completion(kind="completion"))
    known = tokenizer.backend.encode("value: ").ids
    assert encoded.tokens[: len(known)].tolist() == known


# --- conversations -------------------------------------------------------------------------------

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "  yes, \u00e9\n\nindeed"},
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "no"},
]


@pytest.mark.parametrize("template", [MARKED, UNMARKED], ids=["marked", "unmarked"])
def test_exactly_the_assistant_s_turns_are_learned(template: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, template)
    encoded = one(tokenizer, TALK, Messages(kind="messages"))
    whole = "".join(f"<{m['role']}>\n{m['content']}\n" for m in TALK)
    assert decode(tokenizer, encoded.tokens) == whole
    turns = "  yes, \u00e9\n\nindeed\n" + "no\n"
    learned = learned_text(tokenizer, encoded)
    # "\n" and the spaces of "  yes" may share a token with the line break before them.
    assert learned.replace("\n", "").replace(" ", "") == turns.replace("\n", "").replace(" ", "")
    assert "one?" not in learned and "assistant" not in learned
    assert learned.endswith("no\n")


@pytest.mark.parametrize("template", [MARKED, UNMARKED], ids=["marked", "unmarked"])
def test_a_conversation_without_an_assistant_has_nothing_to_learn(
    template: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_with(tmp_path, template)
    assert not one(tokenizer, TALK[:2], Messages(kind="messages")).loss_mask.any()


def test_a_template_that_renders_earlier_turns_differently_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, FORGETFUL)
    with pytest.raises(SpecError, match=r"document 'd': message 2 cannot be told apart"):
        one(tokenizer, TALK, Messages(kind="messages"))
    single = one(tokenizer, TALK[1:3], Messages(kind="messages"))  # one turn: it can be
    assert "indeed" in learned_text(tokenizer, single)


def test_messages_that_the_template_refuses_are_named(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, STRICT + MARKED)
    with pytest.raises(SpecError, match=r"data\.sources\.0, document 'd'.*user first"):
        one(tokenizer, TALK, Messages(kind="messages"))


def test_messages_without_a_chat_template_are_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(SpecError, match="has none"):
        one(tokenizer, TALK, Messages(kind="messages"))


def test_a_chat_masks_the_same_with_trimmed_offsets(tmp_path: Path) -> None:
    processor = json.loads((FOLDER / "tokenizer.json").read_text())["post_processor"]
    folder = copied(tmp_path / "trimmed", post_processor={**processor, "trim_offsets": True})
    (folder / "chat_template.jinja").write_text(UNMARKED)
    plain = one(tokenizer_with(tmp_path, UNMARKED), TALK, Messages(kind="messages"))
    trimmed = one(load_tokenizer(folder), TALK, Messages(kind="messages"))
    assert trimmed.loss_mask.tolist() == plain.loss_mask.tolist()


# --- tokenizers ----------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_identity_follows_what_ids_a_text_becomes_and_nothing_else(tmp_path: Path) -> None:
    reference = load_tokenizer(FOLDER).identity
    dressed = tokenizer_with(tmp_path, MARKED, pad_token="<|endoftext|>", model_max_length=7)
    assert dressed.identity == reference
    model = json.loads((FOLDER / "tokenizer.json").read_text())["model"]
    fewer = copied(tmp_path / "other", model={**model, "merges": model["merges"][:-1]})
    assert load_tokenizer(fewer).identity != reference
