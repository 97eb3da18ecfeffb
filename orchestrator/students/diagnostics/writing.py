"""Held-out prompts, continued by the student and by a role, a token of all texts at a time.

The student's forward is the one it is trained by, so this works at every ZeRO stage; every rank
does the same number of forwards. Nothing is kept between tokens: for a few short texts that costs
less than a second way to run models.

R texts of this rank (some may be absent), V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orchestrator.data import Flat, NumpyBatch, SampleStore
from orchestrator.data.collate import IGNORED
from orchestrator.data.order import permutation
from orchestrator.data.tokenise import Sample
from strategies.contract import Outputs
from strategies.student import StudentLogits
from strategies.teachers import DenseReader, dense_width, read

from ..batches import to_device
from ..engine import Engine
from ..module import no_gradient
from ..questions import Questions

Choose = Callable[[Tensor, int], Tensor]
"""(logits [R, V] of the texts at hand, tokens written so far) -> [R] int64."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning of a held-out sample."""

    id: str
    tokens: tuple[int, ...]


def prompts_of(store: SampleStore, count: int, tokens: int) -> list[Prompt]:
    """At most `count` prompts of `tokens` tokens from samples that are longer, the same always."""
    long = [i for i in permutation(len(store), "prompts").tolist() if store.lengths[i] > tokens]
    return [
        Prompt(store.id(i), tuple(int(token) for token in store.tokens(i)[:tokens]))
        for i in long[:count]
    ]


def greedy(logits: Tensor, _: int) -> Tensor:
    """The likeliest."""
    return logits.argmax(1)


def student_writes(
    engine: Engine, parts: Sequence[Sequence[Prompt]], tokens: int, choose: Sequence[Choose]
) -> list[list[list[int]]]:
    """What the student writes after each prompt of each part. Collective.

    Args:
        parts: prompts of each forward, of one length; as many parts on every rank, some empty.
        tokens: written after each.
        choose: by part.
    """
    return [
        _student_part(engine, prompts, tokens, chosen)
        for prompts, chosen in zip(parts, choose, strict=True)
    ]


def _student_part(
    engine: Engine, prompts: Sequence[Prompt], tokens: int, choose: Choose
) -> list[list[int]]:
    written: list[list[int]] = [[] for _ in prompts]
    width = tokens + (len(prompts[0].tokens) if prompts else 1)
    for position in range(tokens):
        texts = [[*p.tokens, *w] for p, w in zip(prompts, written, strict=True)]
        batch = to_device(_last_positions(texts, width), engine.device)
        following: list[int] = []

        def consume(outputs: Outputs, position: int = position, out: list[int] = following):
            student = StudentLogits(outputs)
            count = student.like.shape[0]
            logits = torch.empty(
                count, student.width, dtype=student.dtype, device=student.like.device
            )
            if count:
                out.extend(choose(student.write(slice(0, count), logits), position).tolist())
            return torch.zeros(())

        no_gradient(engine.module, batch, consume)
        for text, token in zip(written, following, strict=True):
            text.append(token)
    return written


def role_writes(
    questions: Questions,
    role: str,
    prompts: Sequence[Prompt],
    tokens: int,
    vocabulary: int,
    device: torch.device,
    work: str,
) -> list[list[int]]:
    """What a role writes after each prompt, always its likeliest token.

    Args:
        vocabulary: the student's; the role is seen without entries beyond it.
        work: begins the questions' names; unique on this rank.
    """
    written: list[list[int]] = [[] for _ in prompts]
    for position in range(tokens if prompts else 0):
        texts = [[*p.tokens, *w] for p, w in zip(prompts, written, strict=True)]
        flat = _last_wanted(texts)
        name = questions.ask(role, f"{work}.{position}", flat, questions.exact_ask(role))
        signal = questions.logits(role, name, device)
        width = min(dense_width(signal, role), vocabulary)
        reader = read(signal, width, torch.float32)
        assert isinstance(reader, DenseReader)
        logits = torch.empty(len(texts), width, device=device)
        following = greedy(reader.logits(slice(0, len(texts)), logits), position).tolist()
        for text, token in zip(written, following, strict=True):
            text.append(token)
    return written


def until_end(written: Sequence[int], end: int | None) -> list[int]:
    """The text up to its first end token, which stays."""
    found = list(written)
    return found[: found.index(end) + 1] if end in found else found


def as_samples(prompts: Sequence[Prompt], written: Sequence[Sequence[int]]) -> SampleStore:
    """Prompts and what was written after them, of which only the latter bears loss."""
    samples = []
    for prompt, text in zip(prompts, written, strict=True):
        tokens = np.array([*prompt.tokens, *text], np.int32)
        learned = np.arange(len(tokens)) >= len(prompt.tokens)
        samples.append(Sample(prompt.id, tokens, learned))
    return SampleStore.of(samples)


def _last_positions(texts: Sequence[Sequence[int]], width: int) -> NumpyBatch:
    """Texts as rows of a fixed width, of which only the last token's position is looked at.

    Padding follows the text in every sense: no position of a causal model looks at it.
    """
    shape = (max(1, len(texts)), width)
    input_ids = np.zeros(shape, np.int64)
    position_ids = np.tile(np.arange(width), (shape[0], 1))
    targets = np.full(shape, IGNORED, np.int64)
    index = np.full(shape, -1, np.int64)
    for row, text in enumerate(texts):
        size = len(text)
        input_ids[row, :size] = text
        targets[row, size - 1] = 0
        index[row, :size] = row
    return NumpyBatch({"input_ids": input_ids, "position_ids": position_ids}, targets, index)


def _last_wanted(texts: Sequence[Sequence[int]]) -> Flat:
    lengths = np.array([len(text) for text in texts], np.int32)
    wanted = np.zeros(int(lengths.sum()), bool)
    wanted[np.cumsum(lengths) - 1] = True
    tokens = np.array([token for text in texts for token in text], np.int32)
    return Flat(tokens, lengths, wanted)
