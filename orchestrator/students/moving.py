"""Data that gain moved samples between epochs: which epoch holds them, and what they are.

Every rank moves a share of them and is told the others', so that all have the same data. A
checkpoint keeps each rank's own share: the weights that moved it are gone by then.
"""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator.data import SampleStore
from orchestrator.data.membership import ExtendedStore, Membership
from orchestrator.data.order import permutation
from strategies.moving import has_moved, moved_count, size_in_epoch
from strategies.specs import AscendSpec, BoundarySpec

from .collective import gathered
from .condensing import array_of, text_of
from .moves import Mover

logger = logging.getLogger(__name__)


class Moving:
    """The members of each epoch of one job. Collective where it says so.

    Args:
        spec: rounds, and which way samples move.
        store: the data's own samples, features of one length.
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
        words = np.zeros((self._count, int(store.lengths[0])), np.int32)
        self.store: SampleStore = ExtendedStore.over(store, self._origins(1), words)
        """The samples as they are now, with places for the moved ones before there are any."""

    def epoch_over(self, epochs: int, device: torch.device) -> bool:
        """Move samples if it is time, or let them go; whether it was time. Collective."""
        if epochs % self._spec.every:
            return False
        self._decide(epochs)
        if has_moved(self._spec, epochs):
            mine = self._origins(self._round)[self._share]
            starts = np.stack([self._own.tokens(int(i)) for i in mine]) if len(mine) else None
            self._tell(self._moved(mine, starts), device)
        return True

    def _moved(self, origins: np.ndarray, words: np.ndarray | None) -> np.ndarray:
        """[r, n] int32: this rank's samples where they have gone."""
        if words is None:
            return np.zeros((0, int(self._own.lengths[0])), np.int32)
        x = torch.from_numpy(words.view(np.float32).copy()).to(self._mover.device)
        there = self._mover.moved(self._spec, x, torch.from_numpy(origins), self._round)
        logger.info(
            "round %d: %d samples moved by %.3g in the mean",
            self._round,
            len(x),
            float((there - x).norm(dim=1).mean()),
        )
        return there.detach().cpu().numpy().astype(np.float32).view(np.int32)

    def _tell(self, mine: np.ndarray, device: torch.device) -> None:
        """Put all ranks' moved samples into the store. Collective."""
        words: Tensor = gathered(torch.from_numpy(mine.copy()).to(device)).cpu()
        self.store = ExtendedStore.over(self._own, self._origins(self._round), words.numpy())

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
        first = len(self._own)
        places = range(self._count)[self._share] if has_moved(self._spec, self._epochs) else []
        words = [self.store.tokens(first + place) for place in places]
        return {"epochs": self._epochs, "words": text_of(np.array(words, np.int32))}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`. Collective."""
        for epochs in range(self._spec.every, state["epochs"] + 1, self._spec.every):
            self._decide(epochs)
        if has_moved(self._spec, self._epochs):
            words = array_of(state["words"], np.int32)
            self._tell(words.reshape(-1, int(self._own.lengths[0])), self._mover.device)
