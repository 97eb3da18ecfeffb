"""One copy of a role that writes texts. Imports torch; no ray.

Promises: a text is a function of the role, its prompt, its index and the source's numbers; not of
who writes it nor, but for the last bits of a logit, of what shares its batch. A deterministic one
is written alone, and so the same to the last bit on any CPU of one kind.

R texts, V vocabulary.
"""

import os
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from orchestrator.data.tokenizer import load_tokenizer
from orchestrator.errors import SpecError
from orchestrator.evaluation.diagnostics.draw import drawn, uniform
from orchestrator.models.continuation import continuations
from orchestrator.models.load import load_model
from orchestrator.spec.data import GeneratedSource

from .records import Part, Task, Text

TEXTS_TOGETHER = 16
"""Of one forward; more fill a GPU better and wait longer for the longest."""


class Author:
    """A role, loaded to write."""

    def __init__(self, task: Task, device: str | None = None) -> None:
        """`device`: absent, a GPU where the role has one.

        Raises:
            SpecError: the role cannot be loaded as asked.
        """
        if task.deterministic and task.spec.resources.gpus:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_num_threads(task.spec.threads)
        torch.use_deterministic_algorithms(task.deterministic)
        several = task.spec.resources.gpus > 1
        default = ("auto" if several else "cuda") if task.spec.resources.gpus else "cpu"
        self._task, self._tokenizer = task, load_tokenizer(task.tokenizer)
        self._loaded = load_model(
            task.spec,
            device=device or default,
            tokenizer=task.tokenizer,
            seed=task.seed,
            field=f"roles.{task.role}",
        )
        config = self._loaded.config  # some families call it otherwise, and map this name to it
        self._positions: int | None = getattr(config, "max_position_embeddings", None)

    @property
    def fingerprint(self) -> str:
        """Of the role's weights and form."""
        return self._loaded.fingerprint

    def write(self, part: Part) -> list[Text]:
        """The texts of a part, in order.

        Raises:
            SpecError: a prompt has no token, or leaves no room for the source's length.
        """
        numbered = [(part.begin + at, prompt) for at, prompt in enumerate(part.prompts)]
        encoded = [(index, prompt, self._encode(index, prompt)) for index, prompt in numbered]
        encoded.sort(key=lambda one: len(one[2]))  # stable: equal lengths stay in order
        together = 1 if self._task.deterministic else TEXTS_TOGETHER
        texts: list[Text] = []
        for _, same in groupby(encoded, key=lambda one: len(one[2])):
            group = list(same)
            for begin in range(0, len(group), together):
                texts += self._continue(group[begin : begin + together])
        return sorted(texts, key=lambda text: text.index)

    def _encode(self, index: int, prompt: str) -> list[int]:
        ids = self._tokenizer.backend.encode(prompt, add_special_tokens=False).ids
        ids = [*self._tokenizer.before, *ids]
        length, room = self._task.source.length, self._positions
        if not ids or (room is not None and len(ids) + length > room):
            raise SpecError(
                "data.sources.*.prompts",
                f"prompt of text {index} ({prompt[:40]!r}) has {len(ids)} tokens, and with length "
                f"{length} the role's {room} positions do not hold it"
                if ids
                else f"prompt of text {index} has no token",
                "Shorten the prompt or length",
            )
        return ids

    def _continue(self, group: Sequence[tuple[int, str, list[int]]]) -> list[Text]:
        source = self._task.source

        def choose(logits: Tensor, position: int) -> Tensor:
            points = [uniform("generated", source.seed, index, position) for index, _, _ in group]
            return drawn(limited(logits, source), points)

        written = continuations(
            self._loaded.module,
            torch.tensor([ids for _, _, ids in group]),
            source.length,
            choose,
            self._tokenizer.end,
        )
        return [
            Text(index, prompt, self._added(ids, more))
            for (index, prompt, ids), more in zip(group, written, strict=True)
        ]

    def _added(self, ids: list[int], more: list[int]) -> str:
        """What some tokens add to the text of others: some decoders look at the one before."""
        decode = self._tokenizer.backend.decode
        before, whole = decode(ids), decode([*ids, *more])
        return whole[len(before) :] if whole.startswith(before) else decode(more)


def limited(logits: Tensor, source: GeneratedSource) -> Tensor:
    """[R, V] logits at the source's temperature, -inf where it never draws.

    Args:
        logits: [R, V] at temperature 1.
        source: `top_k` comes before `top_p`; entries as likely as the last one that stays, stay.
    """
    scaled = logits.double() / source.temperature
    if source.top_k is not None and source.top_k < scaled.shape[1]:
        least = scaled.topk(source.top_k, 1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if source.top_p is not None:
        ranked = scaled.sort(1, descending=True).values
        before = ranked.softmax(1).cumsum(1) - ranked.softmax(1)
        least = ranked.masked_fill(before >= source.top_p, torch.inf).min(1, keepdim=True).values
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    return scaled
