"""What terms look at inside the student: taken during its forward, and projected.

All of it happens inside the module DeepSpeed wraps, where under ZeRO-3 weights exist: hooks take
the very tensors of the forward, projectors are modules beside the model, and every rank runs them,
with no positions if need be. Tensors are taken as they are and cut afterwards: under gradient
checkpointing an operation inside a layer would have to be repeated with it.

Shape letters: R rows, T positions, N loss-bearing positions, C channels, H heads.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.models.capture import attention_of, by_sample, first_of, watching
from orchestrator.models.forward import unwrapped
from orchestrator.models.gradients import by_sample as of_samples
from orchestrator.models.gradients import confidence_gradients, placing
from orchestrator.planner.layer_maps import LayerMaps
from orchestrator.signals.records import INPUT
from strategies.contract import Batch, Outputs

Outcomes = dict[str, Tensor]
"""By module path, whole."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What one forward has shown."""

    layers: Outcomes
    attention: Outcomes
    places: Outcomes  # what gradients are to be taken by


class Orthogonal(nn.Module):
    """A linear map whose rows or columns, whichever are fewer, are orthonormal at every step.

    The first rows and columns of exp(W - W^T). Miles, Elezi, Deng, arXiv:2403.06213, section 3.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        size = max(inputs, outputs)
        self._inputs, self._outputs = inputs, outputs
        self.weight = nn.Parameter(torch.randn(size, size) * size**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        weight = self.weight.float()  # the exponential of a half-precision matrix is far off
        rotation = torch.linalg.matrix_exp(weight - weight.T)
        return features @ rotation[: self._inputs, : self._outputs].to(features.dtype)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The modules of a student whose outputs are wanted."""

    layers: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    parameters: bool = False  # of the student too

    @property
    def paths(self) -> tuple[str, ...]:
        """Those that are taken as they are, each once."""
        return tuple(dict.fromkeys((*self.layers, *self.attention, *self.whole)))


class Inside(nn.Module):
    """Takes what terms look at, and holds their projectors.

    Args:
        maps: what is looked at.
        seed: of the projectors' fresh weights, equal on every rank.
        earlier: of `kept`, of the stage before; its projectors are gone on with.
        parameters: whether terms want the student's parameters, which must be whole on each rank.
    """

    def __init__(
        self,
        maps: LayerMaps,
        seed: int,
        earlier: Mapping[str, Tensor] | None = None,
        *,
        parameters: bool = False,
    ) -> None:
        super().__init__()
        self.wanted = Wanted(maps.layers, maps.attention, maps.gradients, maps.whole, parameters)
        self._sources = {one.name: one.path for one in maps.projectors if not one.whole}
        self._whole_sources = {one.name: one.path for one in maps.projectors if one.whole}
        self._lineages = {one.name: one.lineage for one in maps.projectors}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projectors = nn.ModuleDict(
                {
                    one.name: Orthogonal(one.inputs, one.outputs)
                    if one.kind == "orthogonal"
                    else nn.Linear(one.inputs, one.outputs)
                    for one in maps.projectors
                }
            )

        self._go_on(earlier or {})

    def kept(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the projectors by lineage and name, for a later stage.

        Args:
            weights: whole, by name in this module.
        """
        return {
            f"{lineage}: {name}": weights[f"projectors.{projector}.{name}"]
            for projector, lineage in self._lineages.items()
            for name, _ in self.projectors[projector].named_parameters()
        }

    @torch.no_grad()
    def _go_on(self, earlier: Mapping[str, Tensor]) -> None:
        for projector, lineage in self._lineages.items():
            for name, parameter in self.projectors[projector].named_parameters():
                before = earlier.get(f"{lineage}: {name}")
                if before is not None and before.shape == parameter.shape:
                    parameter.copy_(before)

    @contextmanager
    def taking(self, model: nn.Module, *, text: bool) -> Iterator[Taken]:
        """Inside, one forward puts what is wanted into `Taken` as modules run.

        Args:
            model: the student.
            text: whether it reads tokens.
        """
        layers: Outcomes = {}
        attention: Outcomes = {}

        def see(path: str, output: Any) -> None:
            if path in self.wanted.layers or path in self.wanted.whole:
                layers[path] = _there(first_of(output), path, output)
            if path in self.wanted.attention:
                attention[path] = _there(attention_of(output), path, output)

        with (
            watching(unwrapped(model), self.wanted.paths, see),
            placing(model, self.wanted.gradients, INPUT, text=text) as places,
        ):
            yield Taken(layers, attention, places)

    def seen(self, taken: Taken, batch: Batch, outputs: Outputs, model: nn.Module) -> Outputs:
        """`outputs` with what was taken of `model`, at the N loss-bearing positions.

        Not a `forward`: ZeRO-3 looks through what a module gives, and knows tensors only.
        """
        layers = {path: at_positions(taken.layers[path], batch) for path in self.wanted.layers}
        whole = {path: taken.layers[path] for path in self.wanted.whole}
        text = "input_ids" in batch.inputs  # whose channels come last
        for name, path in self._whole_sources.items():
            projector = self.projectors[name]
            whole[name] = projector(whole[path]) if text else _by_channel(projector, whole[path])
        projected = {
            name: _by_channel(self.projectors[name], layers[path])
            for name, path in self._sources.items()
        }
        attention = {
            path: from_sample_start(output, batch) for path, output in taken.attention.items()
        }
        gradients = self._gradients(taken.places, batch, outputs) if taken.places else {}
        return replace(
            outputs,
            layers=layers,
            projected=projected,
            attention=attention,
            gradients=gradients,
            whole=whole,
            parameters=trained(model) if self.wanted.parameters else {},
        )

    @staticmethod
    def _gradients(places: Outcomes, batch: Batch, outputs: Outputs) -> Outcomes:
        """Of the N samples, differentiable."""
        assert outputs.logits is not None  # of a classifier
        found = confidence_gradients(outputs.logits, places, create_graph=True)
        mask, learned = batch.inputs.get("attention_mask"), batch.mask[:, 0]
        return {path: of_samples(g, mask)[learned] for path, g in found.items()}


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name, tied ones once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def at_positions(output: Tensor, batch: Batch) -> Tensor:
    """[N, C] of a causal model's [R, T, C]; of a classifier [N, C] or [N, C, ...]."""
    if "position_ids" not in batch.inputs:
        return by_sample(output, batch.inputs)[batch.mask[:, 0]]
    # Flash attention runs all rows end to end as one.
    return output.reshape(*batch.targets.shape, *output.shape[2:])[batch.mask]


def from_sample_start(output: Tensor, batch: Batch) -> Tensor:
    """[N, H, T] of [R, H, T, T]: keys of the query's own sample first, then zeros."""
    rows = output.transpose(1, 2)[batch.mask]
    keys = torch.arange(rows.shape[-1], device=rows.device)
    place = keys.expand(batch.targets.shape)[batch.mask]
    start = place - batch.inputs["position_ids"][batch.mask]
    wanted = start[:, None] + keys
    own = wanted <= place[:, None]
    index = wanted.clamp_max(len(keys) - 1)[:, None].expand_as(rows)
    return rows.gather(2, index) * own[:, None]


def _by_channel(projector: nn.Module, features: Tensor) -> Tensor:
    """Channels are the second axis, wherever there are more."""
    return projector(features.movedim(1, -1)).movedim(-1, 1)


def _there(tensor: Tensor | None, path: str, output: Any) -> Tensor:
    if tensor is None:
        raise ValueError(f"{path} gave {type(output).__name__}, unlike when it was looked into")
    return tensor
