"""The module DeepSpeed wraps: a model whose head computes what the caller wants, inside itself.

Under ZeRO-3 a head's weight exists only inside the head module's own forward, so the loss must run
there (gathering around it from outside fails). The head module's `forward` is therefore replaced
by one that takes a consumer of `Outputs`; called without one it gives logits as before.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.errors import SpecError
from orchestrator.models.families import OwedLoss, balance_loss
from orchestrator.models.forward import forward_hidden, forward_routed, outputs_of
from strategies.contract import Batch, Head, Outputs

from .inside import Inside

Consumer = Callable[[Outputs], Tensor]
Owe = Callable[[Tensor], Tensor]
"""The balance of a model's routers -> what to add to the loss for it."""


class StudentModule(nn.Module):
    """A student whose `forward` hands the outputs at loss-bearing positions to a consumer.

    Args:
        model: the module to train.
        head: its output head, or None when it cannot be told apart; then the consumer gets logits.
        owed: the balance loss that a mixture of experts owes, if any.
        inside: takes what terms look at inside the model; None: nothing.
        frozen: parts of the model that stay as in evaluation: their buffers do not move either.
        main: the output that stands for the student, of a model with several; None: its own choice.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head | None,
        owed: OwedLoss | None = None,
        inside: Inside | None = None,
        frozen: Sequence[nn.Module] = (),
        main: str | None = None,
    ) -> None:
        super().__init__()
        self._main = main
        self._frozen = tuple(frozen)
        self.model = model
        self.inside = inside
        self._owed = owed
        if owed is not None and head is None:
            raise SpecError(
                "student",
                f"is a {type(model).__name__} whose routers need a balance loss, and its output "
                "head cannot be told apart from its body",
                "Choose a family with a plain output head",
            )
        if head is not None:
            _let_head_consume(_head_module(model), head)
        self._separable = head is not None
        self.train(model.training)

    def train(self, mode: bool = True) -> "StudentModule":
        """As of any module, but for the frozen parts."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(
        self, batch: Batch, consume: Consumer, owe: Owe | None = None, *, look_inside: bool = True
    ) -> Tensor:
        """Scalar of `consume`, which sees N positions in row-major order (N may be 0).

        With `owe`, a model that owes a balance loss has what `owe` makes of it added. Without
        `look_inside` the outputs are those at the model's end alone.
        """
        with self._looking(batch, consume, look_inside) as consume:
            if not self._separable:
                return consume(outputs_of(self.model, None, batch).of(self._main))
            ids, positions = batch.inputs["input_ids"], batch.inputs["position_ids"]
            if self._owed is None or owe is None:
                return self._consumed(forward_hidden(self.model, ids, positions), batch, consume)
            hidden, routers = forward_routed(self.model, ids, positions)
            balance = balance_loss(routers, batch.sample_index >= 0, self._owed)
            return self._consumed(hidden, batch, consume) + owe(balance)

    @contextmanager
    def _looking(self, batch: Batch, consume: Consumer, wanted: bool) -> Iterator[Consumer]:
        """Inside, modules are watched; gives the consumer of outputs that are not yet whole."""
        inside = self.inside
        if inside is None or not wanted:
            yield consume
            return
        with inside.taking(self.model, text="input_ids" in batch.inputs) as taken:
            yield lambda outputs: consume(inside.seen(taken, batch, outputs, self.model))

    def _consumed(self, hidden: Tensor, batch: Batch, consume: Consumer) -> Tensor:
        # Every rank calls its head, with zero rows if need be: under ZeRO-3 a rank that skipped it
        # would leave the others waiting.
        return _head_module(self.model)(hidden[batch.mask], consume=consume)


def _head_module(model: nn.Module) -> nn.Module:
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    return head


def _let_head_consume(module: nn.Module, head: Head) -> None:
    plain = module.forward

    def forward(hidden: Tensor, consume: Consumer | None = None) -> Tensor:
        if consume is None:
            return plain(hidden)
        weight: Any = module.weight
        bias: Any = getattr(module, "bias", None)
        return consume(Outputs(hidden=hidden, head=replace(head, weight=weight, bias=bias)))

    module.forward = forward  # type: ignore[method-assign]


def no_gradient(module: nn.Module, batch: Batch, consume: Consumer) -> None:
    """Run a consumer of the model's end over a batch in evaluation mode."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            module(batch, consume, look_inside=False)
    finally:
        module.train(training)
