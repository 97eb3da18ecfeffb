"""Texts are a function of role, prompt, place and numbers."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny_models import tiny as tiny_model

from orchestrator.errors import SpecError
from orchestrator.generation.author import Author, limited
from orchestrator.generation.records import Part, Task
from orchestrator.models.continuation import continuations, keeps_keys
from orchestrator.spec.data import GeneratedSource
from orchestrator.spec.models import RoleSpec

PROMPTS = ("def f(x):\n", "The ", "def f(x):\n", "import os")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_teacher(tmp_path_factory.mktemp("writer") / "teacher")


def source(**changes: Any) -> GeneratedSource:
    fields = {"prompts": {"text": list(PROMPTS)}, "count": 8, "length": 10, **changes}
    return GeneratedSource.model_validate({"kind": "generated", **fields})


def author(teacher: Path, *, deterministic: bool = True, **changes: Any) -> Author:
    spec = RoleSpec(path=str(teacher))
    return Author(Task("teacher", spec, str(teacher), source(**changes), deterministic))


def part(begin: int, end: int) -> Part:
    return Part(0, begin, tuple(PROMPTS[i % len(PROMPTS)] for i in range(begin, end)))


def test_a_text_does_not_depend_on_what_is_written_beside_it(teacher: Path) -> None:
    together = author(teacher).write(part(0, 8))
    assert [text.index for text in together] == list(range(8))
    apart = [author(teacher).write(part(i, i + 1))[0] for i in (5, 2)]
    assert apart == [together[5], together[2]]
    batched = author(teacher, deterministic=False).write(part(0, 8))
    assert batched == together  # no draw of these lies within the last bits


def test_equal_prompts_become_different_texts_and_a_seed_gives_others(teacher: Path) -> None:
    texts = author(teacher).write(part(0, 8))
    assert texts[0].prompt == texts[2].prompt and texts[0].completion != texts[2].completion
    others = author(teacher, seed=1).write(part(0, 8))
    assert all(a.completion != b.completion for a, b in zip(texts, others, strict=True))


def test_a_record_has_the_whole_text_and_its_parts(teacher: Path) -> None:
    for text in author(teacher).write(part(0, 4)):
        record = text.record()
        assert record["text"] == record["prompt"] + record["completion"]
        assert record["id"] == f"generated-{text.index}"


def test_a_prompt_that_leaves_no_room_is_refused(teacher: Path) -> None:
    with pytest.raises(SpecError, match=r"prompt of text 0.*128 positions.*Shorten"):
        author(teacher, length=126).write(part(0, 1))


def test_lower_temperatures_have_less_entropy() -> None:
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(0)) * 2

    def entropy(**changes: Any) -> float:
        p = limited(logits, source(**changes)).softmax(1)
        return float(-(p * p.clamp_min(1e-300).log()).sum(1).mean())

    falling = [entropy(temperature=t) for t in (2.0, 1.0, 0.95, 0.875, 0.8, 0.1)]
    assert falling == sorted(falling, reverse=True) and falling[1] - falling[-1] > 1
    assert entropy(top_k=5) < entropy() and entropy(top_p=0.5) < entropy(top_p=0.9) < entropy()


def test_only_the_likeliest_are_drawn_where_so_it_is_said() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    kept = [limited(logits, source(top_k=k)).isfinite().sum().item() for k in (1, 2, 4, 9)]
    assert kept == [1, 2, 4, 4]
    shares = [0.4, 0.5001, 0.75001, 0.95]
    assert [limited(logits, source(top_p=p)).isfinite().sum().item() for p in shares] == [
        1,
        2,
        3,
        4,
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_kept_keys_say_what_reading_all_again_says(family: str) -> None:
    module = tiny_model(family).module
    prompts = torch.randint(1, 90, (3, 5), generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []

    def choose(logits: torch.Tensor, position: int) -> torch.Tensor:
        seen.append(logits)
        return logits.argmax(1)

    assert keeps_keys(module)
    written = continuations(module, prompts, 6, choose, None)
    kept, ids = list(seen), prompts
    from orchestrator.models.forward import evaluating, forward_logits

    with torch.no_grad(), evaluating(module):
        for position, logits in enumerate(kept):
            places = torch.arange(ids.shape[1]).expand(ids.shape)
            whole = forward_logits(module, ids, places)[:, -1]
            torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)
            following = torch.tensor([row[position] for row in written]).unsqueeze(1)
            ids = torch.cat([ids, following], 1)


def test_a_text_ends_at_the_end_token_and_the_others_go_on() -> None:
    module = tiny_model("llama").module
    turns = [[3, 7], [9, 3], [9, 9]]

    def choose(logits: torch.Tensor, position: int) -> torch.Tensor:
        return torch.tensor(turns[position])

    prompts = torch.tensor([[1, 2], [3, 4]])
    assert continuations(module, prompts, 3, choose, end=9) == [[3], [7, 3]]
    assert continuations(module, prompts, 3, choose, end=None) == [[3, 9, 9], [7, 3, 9]]
