"""A role's own weights beside a student: run on the student's batches, cut open, differentiated.

Promises: the role is in evaluation mode and stays as it was loaded; between calls none of its
weights takes a gradient; a model that cannot be cut at a layer is found out by trying. Imports
torch; never ray, deepspeed or mlflow.

Shape letters: N loss-bearing positions, R rows, T positions.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from strategies.contract import Batch, DenseSignal, HiddenSignal, LogitSignal, Outputs
from strategies.objective import build_objective
from strategies.specs import CrossEntropySpec, ObjectiveSpec

from .capture import first_of, replacing, watching
from .forward import embedding_of, evaluating, outputs_of, unwrapped
from .load import Loaded

_LABELS = build_objective(ObjectiveSpec(terms=[CrossEntropySpec(kind="cross_entropy")]))


class ResidentRole:
    """`strategies.contract.Resident` over a loaded model.

    Args:
        loaded: not for training.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded, self._module = loaded, loaded.module
        self.weights: Mapping[str, Tensor] = dict(loaded.module.named_parameters())
        self.mean_gradient: Mapping[str, Tensor] | None = None

    def outputs(self, batch: Batch, given: Mapping[str, Tensor] | None = None) -> Outputs:
        """See the contract."""
        with replacing(unwrapped(self._module), given or {}):
            return outputs_of(self._module, self.loaded.head(), batch)

    @torch.no_grad()
    def signal(self, batch: Batch) -> LogitSignal:
        """See the contract."""
        found = self.outputs(batch)
        if found.hidden is not None and found.head is not None:
            return HiddenSignal(found.hidden, found.head)
        assert found.logits is not None  # it gives one or the other
        return DenseSignal(found.logits)

    def gradient(self, batch: Batch) -> dict[str, Tensor]:
        """See the contract."""
        with torch.enable_grad(), _taking_gradients(self._module):
            outputs = self.outputs(batch)
            one = {"cross_entropy": 1.0}
            loss, _ = _LABELS.loss(outputs, batch, {}, {"cross_entropy.weight": 1.0}, one)
            weights = tuple(self.weights.values())
            found = torch.autograd.grad(loss, weights, materialize_grads=True)
        return {
            name: g.to(torch.promote_types(g.dtype, torch.float32))
            for name, g in zip(self.weights, found, strict=True)
        }

    def can_be_cut(self, path: str, batch: Batch) -> bool:
        """Whether all that a model says of its input passes through a module.

        With what the module gave of a batch in its place, the model must say of other inputs what
        it says of that batch. Three forwards.

        Args:
            path: of the module.
            batch: whose other inputs are made up here.
        """
        other = replace(batch, inputs=_others(self._module, batch.inputs))
        with torch.no_grad():
            mine = given_by(self.loaded, path, batch)
            wanted, found = _said(self.outputs(batch)), _said(self.outputs(other, {path: mine}))
        half = wanted.dtype in (torch.bfloat16, torch.float16)
        size = wanted.float().abs().max()
        return bool((wanted - found).float().abs().max() <= (1e-2 if half else 1e-5) * size)


@torch.no_grad()
def given_by(loaded: Loaded, path: str, batch: Batch) -> Tensor:
    """What a module inside a model gives of a batch, whole.

    Raises:
        KeyError: there is no such module.
        ValueError: it gives no tensor, or does not run.
    """
    module, found = loaded.module, list[Tensor | None]()
    with (
        evaluating(module),
        watching(unwrapped(module), [path], lambda _, output: found.append(first_of(output))),
    ):
        outputs_of(module, loaded.head(), batch)
    if not found or found[0] is None:
        raise ValueError(f"{path} gave no tensor")
    return found[0]


@contextmanager
def _taking_gradients(module: nn.Module) -> Iterator[None]:
    """Inside, weights take gradients; `torch.autograd.grad` leaves none behind."""
    module.requires_grad_(True)
    try:
        yield
    finally:
        module.requires_grad_(False)


def _said(outputs: Outputs) -> Tensor:
    found = outputs.logits if outputs.hidden is None else outputs.hidden
    assert found is not None  # one or the other
    return found


def _others(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Other inputs of the same form: each token or number another, positions and masks alike."""
    generator = torch.Generator().manual_seed(13)
    made = dict(inputs)
    if "input_ids" in inputs:
        ids, embedding = inputs["input_ids"], embedding_of(module)
        known = int(ids.max()) + 1 if embedding is None else int(embedding.num_embeddings)  # type: ignore[arg-type]
        padding = getattr(getattr(module, "config", None), "pad_token_id", None)
        made["input_ids"] = _other_tokens(ids, known, -1 if padding is None else padding)
        return made
    for name, value in inputs.items():
        if value.is_floating_point():
            made[name] = torch.randn(value.shape, generator=generator).to(value)
        else:
            made[name] = value.flip(0)
    return made


def _other_tokens(ids: Tensor, known: int, padding: int) -> Tensor:
    """The id after each; padding, by which some families find a text's end, stays and is not made.

    Args:
        ids: [R, T] int64.
        known: ids that the model knows.
        padding: -1: none.
    """
    following = (ids + 1) % known
    following = torch.where(following == padding, (following + 1) % known, following)
    return torch.where(ids == padding, ids, following)
