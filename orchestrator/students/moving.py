"""Data that gain moved samples between epochs: which epoch holds them, and what they are.

Every rank moves a share of them and is told the others', so that all have the same data. A
checkpoint keeps each rank's own share: the weights that moved it are gone by then.
"""

import logging
from typing import Any

import numpy as np
import torch

from orchestrator.data import SampleStore
from orchestrator.data.membership import ExtendedStore, Membership
from orchestrator.data.order import permutation
from strategies.moving import has_moved, moved_count, size_in_epoch
from strategies.specs import AscendSpec, BoundarySpec

from .collective import gathered
from .condensing import array_of, text_of
from .moves import Mover
from .places import Words

logger = logging.getLogger(__name__)

AT_ONCE = 1 << 10
"""Samples that are on their way at once: what a place takes is many times a sample of text."""


class Moving:
    """The members of each epoch of one job. Collective where it says so.

    Args:
        spec: rounds, and which way samples move.
        store: the data's own samples.
        mover: this rank's.
        rank: this one.
        world: how many ranks.
    """

    watch = None

    def __init__(
        self,
        spec: AscendSpec | BoundarySpec,
        store: SampleStore,
        mover: Mover,
        rank: int,
        world: int,
    ) -> None:
        self._spec, self._own, self._mover = spec, store, mover
        self._rank, self._world = rank, world
        self._count = moved_count(spec, len(store))
        self.membership = Membership(
            len(store), lambda epoch: size_in_epoch(spec, len(store), epoch), stable=spec.every
        )
        self._epochs = 0  # for which the last decision was made
        first = self._origins(1)
        words = [np.zeros(int(store.lengths[i]), np.int32) for i in first]
        self.store: SampleStore = ExtendedStore.over(store, first, words)
        """The samples as they are now, with places for the moved ones before there are any."""

    def epoch_over(self, epochs: int, device: torch.device) -> bool:
        """Move samples if it is time, or let them go; whether it was time. Collective."""
        if epochs % self._spec.every:
            return False
        self._decide(epochs)
        if has_moved(self._spec, epochs):
            self._tell(*self._moved(), device)
        return True

    def _moved(self) -> tuple[Words, Words | None]:
        """This rank's samples where they have gone, to the student and to the role."""
        every = self._origins(self._round)
        mine, longest = every[self._share], int(self._own.lengths[every].max())
        words, role_words = list[np.ndarray](), list[np.ndarray]()
        for begin in range(0, len(mine), AT_ONCE):
            part = mine[begin : begin + AT_ONCE]
            starts = [self._own.tokens(int(i)) for i in part]
            places = self._mover.places(self._spec.role, starts, longest)
            there = self._mover.moved(self._spec, places, torch.from_numpy(part), self._round)
            own, to_role = places.words(there)
            words += own
            role_words += to_role or []
        held = sum(each.nbytes for each in (*words, *role_words)) / 2**20
        logger.info("round %d: %d samples moved, %.1f MiB", self._round, len(mine), held)
        return words, role_words if self._mover.reads_text else None

    def _tell(self, mine: Words, to_role: Words | None, device: torch.device) -> None:
        """Put all ranks' moved samples into the store. Collective."""
        words = _of_all(mine, device)
        role_words = None if to_role is None else _of_all(to_role, device)
        self.store = ExtendedStore.over(self._own, self._origins(self._round), words, role_words)

    def _decide(self, epochs: int) -> None:
        """What the epochs of the coming run hold."""
        self._epochs = epochs
        whole = len(self._own) + (self._count if has_moved(self._spec, epochs) else 0)
        self.membership.decide(epochs, epochs + self._spec.every, np.arange(whole))

    @property
    def _round(self) -> int:
        return self._epochs // self._spec.every

    @property
    def _share(self) -> slice:
        """Places of the moved samples that this rank moves."""
        each = -(-self._count // self._world)
        return slice(self._rank * each, (self._rank + 1) * each)

    def _origins(self, round_: int) -> np.ndarray:
        """[m] int64, rising: which samples a round moves, the same on every rank."""
        order = permutation(len(self._own), self._spec.seed, "moved", round_)
        return np.sort(order[: self._count])

    # --- checkpoints -----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Of this rank, as JSON."""
        kept: dict[str, Any] = {"epochs": self._epochs}
        if not has_moved(self._spec, self._epochs):
            return kept
        first, asked = len(self._own), self.store.as_asked
        places = [first + place for place in range(self._count)[self._share]]
        kept["words"] = _text([self.store.tokens(place) for place in places])
        if asked is not self.store:
            kept["role_words"] = _text([asked.tokens(place) for place in places])
        return kept

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`. Collective."""
        for epochs in range(self._spec.every, state["epochs"] + 1, self._spec.every):
            self._decide(epochs)
        if has_moved(self._spec, self._epochs):
            asked = state.get("role_words")
            to_role = None if asked is None else _words(asked)
            self._tell(_words(state["words"]), to_role, self._mover.device)


def _of_all(mine: Words, device: torch.device) -> Words:
    """Those of all ranks, in their order. Collective."""
    flat = np.concatenate([np.zeros(0, np.int32), *mine])
    lengths = torch.tensor([len(words) for words in mine], dtype=torch.int64, device=device)
    counts = gathered(lengths).cpu().numpy()
    words = gathered(torch.from_numpy(flat).to(device)).cpu().numpy()
    return _cut(words, counts)


def _text(words: Words) -> dict[str, str]:
    """As JSON has them."""
    lengths = np.array([len(each) for each in words], np.int64)
    flat = np.concatenate([np.zeros(0, np.int32), *words])
    return {"lengths": text_of(lengths), "words": text_of(flat)}


def _words(text: dict[str, str]) -> Words:
    """The inverse of `_text`."""
    return _cut(array_of(text["words"], np.int32), array_of(text["lengths"], np.int64))


def _cut(flat: np.ndarray, lengths: np.ndarray) -> Words:
    return np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else []
