"""Where samples can be moved to: features as they are, or what is added to a text's embeddings.

A place is a row of numbers; the arithmetic of a step knows no more of it. Here alone it is told
what a place is to the student, and what to a role, whose embeddings may be of another width: those
of the student are mapped on them by least squares between the two tables.

Shape letters: R samples, n numbers of a place, T tokens of a text, d and e widths of what the
student and the role embed, V classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from orchestrator.data import OFFSET, Flat, Reading, inputs_of, moved_text
from strategies.moving import unit

Words = list[np.ndarray]
"""[words] int32 of each sample."""


class Places(Protocol):
    """Places of R samples. `at` are rows: an int64 tensor."""

    def start(self) -> Tensor:
        """[R, n] float32: where the samples are."""
        ...

    def inputs(self, x: Tensor, at: Tensor) -> dict[str, Tensor]:
        """The student's inputs for [r, n] places; one of them is not whole numbers."""
        ...

    def own(self, gradient: Tensor, at: Tensor) -> Tensor:
        """[r, n]: a gradient by that input, flat."""
        ...

    def asked(self, x: Tensor, at: Tensor, behind: Tensor | None = None) -> Flat:
        """What a role is asked about [r, n] places, with [r, V] numbers behind them."""
        ...

    def of_role(self, gradient: Tensor, at: Tensor) -> Tensor:
        """[r, n]: a gradient that a role told of what it was asked."""
        ...

    def directions(self, ways: Tensor) -> Tensor:
        """[R, n]: of length 1, along ways that may lead nowhere."""
        ...

    def words(self, x: Tensor) -> tuple[Words, Words | None]:
        """The samples at [R, n], to the student and to roles; None: these read the same."""
        ...


@dataclass(frozen=True, slots=True)
class FeaturePlaces:
    """A place is a sample's features."""

    reading: Reading
    features: Tensor  # [R, n] float32

    def start(self) -> Tensor:
        return self.features

    def inputs(self, x: Tensor, at: Tensor) -> dict[str, Tensor]:
        assert self.reading.input is not None  # of features
        return {self.reading.input: x.reshape(-1, *(self.reading.shape or (x.shape[1],)))}

    def own(self, gradient: Tensor, at: Tensor) -> Tensor:
        return gradient

    def asked(self, x: Tensor, at: Tensor, behind: Tensor | None = None) -> Flat:
        return _flat(list(_bits(x if behind is None else torch.cat([x, behind.to(x.dtype)], 1))))

    def of_role(self, gradient: Tensor, at: Tensor) -> Tensor:
        return gradient

    def directions(self, ways: Tensor) -> Tensor:
        return ways

    def words(self, x: Tensor) -> tuple[Words, None]:
        return list(_bits(x)), None


@dataclass(frozen=True, slots=True)
class TextPlaces:
    """A place is what is added to a text's embedded tokens, padded to the longest text."""

    ids: Words
    longest: int  # tokens; n is `longest` times d
    to_role: Tensor  # [d, e] float32: rows of the student's table -> rows of the role's
    device: torch.device

    def start(self) -> Tensor:
        width = self.to_role.shape[0]
        return torch.zeros(len(self.ids), self.longest * width, device=self.device)

    def inputs(self, x: Tensor, at: Tensor) -> dict[str, Tensor]:
        arrays = inputs_of(Reading(), [self.ids[row] for row in at.tolist()])
        found = {name: torch.from_numpy(array).to(x.device) for name, array in arrays.items()}
        tokens = found["input_ids"].shape[1]
        return {**found, OFFSET: self._by_token(x)[:, :tokens]}

    def own(self, gradient: Tensor, at: Tensor) -> Tensor:
        whole = gradient.new_zeros(len(gradient), self.longest * self.to_role.shape[0])
        whole[:, : gradient.shape[1]] = gradient
        return whole * self._mask(at)

    def asked(self, x: Tensor, at: Tensor, behind: Tensor | None = None) -> Flat:
        there = self._words(self._by_token(x) @ self.to_role, at, whole=behind is not None)
        if behind is not None:
            rows = zip(there, _bits(behind), strict=True)
            there = [np.concatenate([words, numbers]) for words, numbers in rows]
        return _flat(there)

    def of_role(self, gradient: Tensor, at: Tensor) -> Tensor:
        width, theirs = self.to_role.shape
        whole = gradient.new_zeros(len(gradient), self.longest, width)
        for row, sample in enumerate(at.tolist()):
            tokens = len(self.ids[sample])
            told = gradient[row, 1 + tokens : 1 + tokens + tokens * theirs]
            whole[row, :tokens] = told.view(tokens, theirs) @ self.to_role.T
        return whole.flatten(1)

    def directions(self, ways: Tensor) -> Tensor:
        return unit(ways * self._mask(torch.arange(len(self.ids), device=self.device)))

    def words(self, x: Tensor) -> tuple[Words, Words]:
        every, offset = torch.arange(len(self.ids)), self._by_token(x)
        return self._words(offset, every), self._words(offset @ self.to_role, every)

    def _by_token(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.longest, self.to_role.shape[0])

    def _mask(self, at: Tensor) -> Tensor:
        """[r, n]: 1 where a text has tokens."""
        lengths = torch.tensor([len(self.ids[row]) for row in at.tolist()], device=self.device)
        held = torch.arange(self.longest, device=self.device) < lengths[:, None]
        return held.float().repeat_interleave(self.to_role.shape[0], 1)

    def _words(self, offset: Tensor, at: Tensor, *, whole: bool = False) -> Words:
        """Of [r, longest, d or e] numbers; a text that has not moved is its ids, unless `whole`."""
        found: Words = []
        for row, numbers in zip(at.tolist(), offset.detach().cpu().numpy(), strict=True):
            ids = self.ids[row]
            moved = whole or numbers.any()
            found.append(moved_text(ids, numbers[: len(ids)]) if moved else ids)
        return found


def _bits(x: Tensor) -> np.ndarray:
    """[r, n] int32 of [r, n] numbers, as float32."""
    return np.ascontiguousarray(x.detach().cpu().numpy().astype(np.float32)).view(np.int32)


def _flat(samples: Sequence[np.ndarray]) -> Flat:
    """Asked about at the last word of each."""
    lengths = np.array([len(sample) for sample in samples], np.int32)
    wanted = np.zeros(int(lengths.sum()), bool)
    wanted[np.cumsum(lengths) - 1] = True
    return Flat(np.concatenate([np.zeros(0, np.int32), *samples]), lengths, wanted)
