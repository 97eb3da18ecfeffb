"""Data that change between epochs: what was seen of each sample, and what the next epochs hold.

Every rank keeps its own sums, adds them up with the others at the end of an epoch, and comes to
the same decision.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator.data import SampleStore
from orchestrator.data.membership import ChangedStore, Membership
from orchestrator.errors import SpecError
from strategies.contract import Batch, Outputs
from strategies.measuring import measure
from strategies.samples import Book, Change, Epoch, hook_of, size_after
from strategies.specs.samples import CondenseSpec, HookSpec

from .collective import gathered


class Changing:
    """The members of each epoch of one job. Collective where it says so."""

    def __init__(
        self,
        spec: CondenseSpec | HookSpec,
        store: SampleStore,
        *,
        blendable: bool,
        unweighable: str | None = None,
    ) -> None:
        """
        Args:
            spec: which change.
            store: the data.
            blendable: samples are numbers, and somebody can answer about new ones.
            unweighable: a term whose mean knows no weights; None: all do.
        """
        self._blendable, self._unweighable = blendable, unweighable
        self._measured = (
            "student_entropy" if isinstance(spec, CondenseSpec) else spec.measure,
            None,
        )
        self._spec, self._store, self._hook = spec, store, hook_of(spec)
        sizes = partial(size_after, spec, len(store)) if isinstance(spec, CondenseSpec) else None
        self.membership = Membership(len(store), sizes, stable=spec.every)
        self._book = Book.of(len(store))
        self._blends: dict[int, tuple[int, float]] = {}
        self._weights: dict[int, float] = {}
        self._history: list[tuple[int, np.ndarray]] = []

    @property
    def store(self) -> SampleStore:
        """The samples as they are now."""
        if not self._blends and not self._weights:
            return self._store
        return ChangedStore.over(self._store, self._blends, self._weights)

    @torch.no_grad()
    def watch(self, batch: Batch, outputs: Outputs) -> None:
        """Add what a micro-batch shows of its samples."""
        if batch.mask.any():
            values = measure([self._measured], batch.kept_targets, {}, outputs)[self._measured]
            self._book.add(values, batch)

    def epoch_over(self, epochs: int, device: torch.device) -> bool:
        """Decide what the next epochs hold, if it is time; whether it was. Collective.

        Raises:
            SpecError: a hook left nothing, or named samples that are not there.
        """
        if epochs % self._spec.every:
            return False
        book = Book(
            _summed(torch.from_numpy(self._book.value), device).numpy(),
            _summed(torch.from_numpy(self._book.visits), device).numpy(),
        )
        members = self.membership.members(epochs - 1)
        view = Epoch(epochs, members, len(self._store), book, self._store.id)
        change = self._hook(view)
        change = replace(change, members=np.asarray(change.members, np.int64))
        self._check(change)
        self._agree(change, device)
        self._apply(epochs, change.members)
        if change.blends is not None:
            self._blends = {mine: (b.other, b.share) for mine, b in change.blends.items()}
        if change.weights is not None:
            self._weights = {int(mine): float(w) for mine, w in change.weights.items()}
        self._book = Book.of(len(self._store))
        return True

    def _agree(self, change: Change, device: torch.device) -> None:
        """Every rank has come to the same decision, or every rank refuses. Collective."""
        blends = sorted((mine, b.other, b.share) for mine, b in (change.blends or {}).items())
        weights = sorted((int(mine), float(w)) for mine, w in (change.weights or {}).items())
        rest = repr((blends, weights)).encode()
        said = hashlib.sha256(change.members.tobytes() + rest).digest()
        mine = torch.frombuffer(bytearray(said), dtype=torch.uint8)[None].to(device)
        if (gathered(mine) != mine).any():
            raise SpecError(
                "objective.between_epochs",
                "came to another decision on each rank",
                "Let the hook depend on what it is given alone, and on no randomness of its own",
            )

    def _apply(self, epochs: int, members: np.ndarray) -> None:
        self._history.append((epochs, members))
        self.membership.decide(epochs, epochs + self._spec.every, members)

    def _check(self, change: Change) -> None:
        members = change.members
        inside = len(members) and members.min() >= 0 and members.max() < len(self._store)
        if not inside or (np.diff(members) <= 0).any():
            raise SpecError(
                "objective.between_epochs",
                f"left {len(members)} samples, which must be at least one, rising, and among the "
                f"{len(self._store)} of the data",
                "Correct what the hook returns",
            )
        if change.blends and not self._blendable:
            raise SpecError(
                "objective.between_epochs",
                "blends samples, which only features with a pool allow",
                "Return no blends",
            )
        others = [blend.other for blend in (change.blends or {}).values()]
        if any(not 0 <= other < len(self._store) for other in others):
            raise SpecError(
                "objective.between_epochs", "blends samples that are not there", "Correct the hook"
            )

        self._check_weights(change.weights or {})

    def _check_weights(self, weights: Mapping[int, float]) -> None:
        if weights and self._unweighable is not None:
            raise SpecError(
                "objective.between_epochs",
                f"weighs samples, and term {self._unweighable} does not count them so",
                "Return no weights, or remove the term: those of a vocabulary or of classes can",
            )
        for mine, weight in weights.items():
            if not 0 <= mine < len(self._store) or not 0 < weight < float("inf"):
                raise SpecError(
                    "objective.between_epochs",
                    f"gives sample {mine} of {len(self._store)} a weight of {weight}",
                    "Weigh samples of the data, above 0; what is to count nothing is no member",
                )

    # --- checkpoints -----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Of this rank, as JSON."""
        return {
            "value": text_of(self._book.value),
            "visits": text_of(self._book.visits),
            "history": [[epochs, text_of(members)] for epochs, members in self._history],
            "blends": [[mine, other, share] for mine, (other, share) in self._blends.items()],
            "weights": list(self._weights.items()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self._book = Book(array_of(state["value"], np.float64), array_of(state["visits"], np.int64))
        for epochs, members in state["history"]:
            self._apply(int(epochs), array_of(members, np.int64))
        self._blends = {int(mine): (int(other), share) for mine, other, share in state["blends"]}
        self._weights = {int(mine): weight for mine, weight in state["weights"]}


def _summed(mine: Tensor, device: torch.device) -> Tensor:
    total = mine.clone().to(device)
    torch.distributed.all_reduce(total)
    return total.cpu()


def text_of(array: np.ndarray) -> str:
    """An array's bytes, as JSON has them."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def array_of(text: str, dtype: type) -> np.ndarray:
    """The inverse of `text_of`, flat."""
    return np.frombuffer(base64.b64decode(text), dtype).copy()
