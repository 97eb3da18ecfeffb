"""Small classifiers of features and images, by import path: for studies and tests.

    student: {import: "orchestrator.models.reference:mlp", task: classifier,
              arguments: {inputs: 64, classes: 10}}

Promises: no batch statistics and no dropout, so the output of a sample depends on it alone; the
switch of the skips (`residual`) leaves names and shapes of parameters, and fresh weights, as they
are; `stages.0` gives the features after the first layer (of `blocks`: the first block), `stages.k`
those k blocks later, to whoever looks inside. Imports torch and what `forward` does.

Shape letters: R samples, V classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from .forward import NamedLogits

Activation = Literal["relu", "gelu", "tanh"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "tanh": torch.tanh,
}


def mlp(
    inputs: int,
    classes: int,
    width: int = 64,
    depth: int = 2,
    activation: Activation = "relu",
    residual: bool = True,
) -> "MLP":
    """A perceptron with `depth` hidden blocks; called as `module(features=[R, inputs])` -> [R, V].

    Args:
        inputs: numbers of a sample.
        classes: V.
        width: of the hidden layers.
        depth: blocks of width by width after the first layer; 0: one hidden layer.
        activation: after each hidden layer.
        residual: each block adds to what it is given; False: the same layers without skips.

    Raises:
        ValueError: a size is not positive, or the activation is unknown.
    """
    _check(activation, inputs=inputs, classes=classes, width=width, depth=depth + 1)
    return MLP(inputs, classes, width, depth, _ACTIVATIONS[activation], residual)


def conv(
    channels: int,
    size: int,
    classes: int,
    width: int = 16,
    depth: int = 2,
    activation: Activation = "relu",
    residual: bool = True,
) -> "Conv":
    """A convolutional net; called as `module(pixel_values=[R, channels, size, size])` -> [R, V].

    Args:
        channels: of an image.
        size: its height and width.
        classes: V.
        width: channels of the hidden layers.
        depth: blocks of two 3 by 3 convolutions; each but the first halves the image.
        activation: after each convolution.
        residual: each block adds to what it is given; False: the same layers without skips.

    Raises:
        ValueError: a size is not positive, the image is too small, or the activation is unknown.
    """
    _check(activation, channels=channels, classes=classes, width=width, depth=depth)
    _check_image(size, depth)
    layers = ConvLayers(channels, width, _ACTIVATIONS[activation], residual)
    return Conv(layers, classes, width, depth)


def blocks(
    inputs: int,
    classes: int,
    width: int = 64,
    depth: int = 3,
    features: int = 32,
    activation: Activation = "relu",
) -> "Blocks":
    """A perceptron of `depth` blocks of two layers; what passes between them has one size, whatever
    the width inside, so that student and role are compared without a projector.

    Args:
        inputs: numbers of a sample.
        classes: V.
        width: of the layer inside a block.
        depth: blocks.
        features: numbers that a block gives.
        activation: after each layer but the head.

    Raises:
        ValueError: a size is not positive, or the activation is unknown.
    """
    _check(activation, inputs=inputs, classes=classes, width=width, depth=depth, features=features)
    return Blocks(inputs, classes, width, depth, features, _ACTIVATIONS[activation])


def pair(
    inputs: int,
    classes: int,
    features: int = 32,
    width: int = 16,
    assistant: int = 8,
    depth: int = 1,
    activation: Activation = "relu",
) -> "Pair":
    """A student and the assistant that learns what it leaves; their features are added.

    `own` gives the student's features, `together` the sum. Gao et al., arXiv:2002.09168.

    Args:
        inputs: numbers of a sample.
        classes: V.
        features: numbers of the feature that both give, and the head reads.
        width: of the student's hidden layers.
        assistant: of the assistant's hidden layers; 0: there is none.
        depth: hidden layers of each.
        activation: after each hidden layer.

    Raises:
        ValueError: a size is not positive, or the activation is unknown.
    """
    _check(activation, inputs=inputs, classes=classes, features=features, width=width, depth=depth)
    if assistant < 0:
        raise ValueError(f"assistant is {assistant}; give its width, or 0 for none")
    return Pair(inputs, classes, features, width, assistant, depth, _ACTIVATIONS[activation])


class Pair(nn.Module):
    """See `pair`."""

    def __init__(
        self,
        inputs: int,
        classes: int,
        features: int,
        width: int,
        assistant: int,
        depth: int,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.num_labels = classes
        self._activation = activation
        self.student = _layers(inputs, width, features, depth)
        self.assistant = _layers(inputs, assistant, features, depth) if assistant else None
        self.own, self.together = nn.Identity(), nn.Identity()
        self.head = nn.Linear(features, classes)

    def forward(self, features: Tensor) -> Tensor:
        """[R, inputs] -> [R, V]."""
        x = self.own(self._features(self.student, features))
        if self.assistant is not None:
            x = x + self._features(self.assistant, features)
        return self.head(self.together(x))

    def _features(self, layers: nn.ModuleList, features: Tensor) -> Tensor:
        *hidden, last = layers
        for layer in hidden:
            features = self._activation(layer(features))
        return last(features)


def _layers(inputs: int, width: int, outputs: int, depth: int = 1) -> nn.ModuleList:
    """Linear layers, `depth` of them hidden ones of one width."""
    sizes = [inputs, *[width] * depth, outputs]
    return nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))


class Blocks(nn.Module):
    """See `blocks`."""

    def __init__(
        self,
        inputs: int,
        classes: int,
        width: int,
        depth: int,
        features: int,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.num_labels = classes
        self._activation = activation
        sizes = [inputs] + [features] * (depth - 1)
        self.blocks = nn.ModuleList(_layers(size, width, features) for size in sizes)
        self.head = nn.Linear(features, classes)
        self.stages = _stages(depth - 1)

    def forward(self, features: Tensor) -> Tensor:
        """[R, inputs] -> [R, V]."""
        x = features
        for block, stage in zip(self.blocks, self.stages, strict=True):
            for layer in block:  # type: ignore[attr-defined]  # a ModuleList
                x = self._activation(layer(x))
            x = stage(x)
        return self.head(x)


def branches(
    inputs: int,
    classes: int,
    branches: int = 3,
    width: int = 64,
    trunk: int = 1,
    depth: int = 1,
    activation: Activation = "relu",
    only: str | None = None,
) -> "Branches":
    """Perceptrons that share their first layers, and a gate that mixes their logits: ONE.

    Its outputs are `branch_0`, `branch_1`, ... and `ensemble`, [R, V] each: the sum of the logits
    of all branches, weighted by a softmax of what the gate makes of the shared features.
    Lan, Zhu, Gong, arXiv:1806.04606; their gate has batch statistics besides. The answer where one
    is wanted is the ensemble.

    Args:
        inputs: numbers of a sample.
        classes: V.
        branches: how many, two or more.
        width: of the hidden layers.
        trunk: shared blocks of width by width after the first layer, which is shared too.
        depth: further blocks of each branch.
        activation: after each hidden layer.
        only: an output that is wanted without the others; names of parameters stay as they are.

    Raises:
        ValueError: a size is too small, the activation is unknown, or there is no such output.
    """
    _check(activation, inputs=inputs, classes=classes, width=width, trunk=trunk + 1)
    _check(activation, branches=branches - 1, depth=depth + 1)
    layers = PerceptronLayers(inputs, width, _ACTIVATIONS[activation])
    names = _names(branches, only)
    return Branches(layers, classes, names, width, trunk, depth).keeping(only)


def conv_branches(
    channels: int,
    size: int,
    classes: int,
    branches: int = 3,
    width: int = 16,
    trunk: int = 1,
    depth: int = 1,
    activation: Activation = "relu",
    only: str | None = None,
) -> "ImageBranches":
    """`branches` of convolutional nets, whose blocks are those of `conv`.

    Each path from the image to a branch's logits is a `conv` of trunk + depth blocks.

    Args:
        channels: of an image.
        size: its height and width.
        classes: V.
        branches: how many, two or more.
        width: channels of the hidden layers.
        trunk: shared blocks after the first layer, which is shared too.
        depth: further blocks of each branch.
        activation: after each convolution.
        only: an output that is wanted without the others; names of parameters stay as they are.

    Raises:
        ValueError: a size is too small, the activation is unknown, or there is no such output.
    """
    _check(activation, channels=channels, classes=classes, width=width, trunk=trunk + 1)
    _check(activation, branches=branches - 1, depth=depth + 1, blocks=trunk + depth)
    _check_image(size, trunk + depth)
    layers = ConvLayers(channels, width, _ACTIVATIONS[activation])
    names = _names(branches, only)
    return ImageBranches(layers, classes, names, width, trunk, depth).keeping(only)


ENSEMBLE = "ensemble"


def _names(branches: int, only: str | None) -> list[str]:
    names = [f"branch_{index}" for index in range(branches)]
    if only is not None and only not in (*names, ENSEMBLE):
        raise ValueError(f"only is {only!r}; use one of {', '.join(names)}, {ENSEMBLE}")
    return names


@dataclass(frozen=True)
class PerceptronLayers:
    """What a perceptron's layers are, and how they are applied."""

    inputs: int
    width: int
    activation: Callable[[Tensor], Tensor]

    def first(self) -> nn.Module:
        return nn.Linear(self.inputs, self.width)

    def block(self) -> nn.Module:
        return nn.Linear(self.width, self.width)

    def apply(self, block: Any, x: Tensor, *, index: int) -> Tensor:
        """The features after a block, the index-th of its path."""
        return x + self.activation(block(x))

    def flat(self, x: Tensor) -> Tensor:
        """[R, width] of a block's features."""
        return x


@dataclass(frozen=True)
class ConvLayers:
    """What a convolutional net's layers are, and how they are applied."""

    channels: int
    width: int
    activation: Callable[[Tensor], Tensor]
    residual: bool = True

    def first(self) -> nn.Module:
        return nn.Conv2d(self.channels, self.width, 3, padding=1)

    def block(self) -> nn.Module:
        return nn.ModuleList(nn.Conv2d(self.width, self.width, 3, padding=1) for _ in range(2))

    def apply(self, block: Any, x: Tensor, *, index: int) -> Tensor:
        """The features after a block, the index-th of its path."""
        if index:
            x = nn.functional.max_pool2d(x, 2)
        y = x
        for layer in block:
            y = self.activation(layer(y))
        return x + y if self.residual else y

    def flat(self, x: Tensor) -> Tensor:
        """[R, width] of a block's features."""
        return x.mean((2, 3))


class _Branches(nn.Module):
    """A trunk, its branches, and a gate."""

    def __init__(
        self,
        layers: PerceptronLayers | ConvLayers,
        classes: int,
        names: Sequence[str],
        width: int,
        trunk: int,
        depth: int,
    ) -> None:
        super().__init__()
        self.num_labels = classes
        self._layers, self._shared_blocks = layers, trunk
        self.first = layers.first()
        self.trunk = nn.ModuleList(layers.block() for _ in range(trunk))
        self.shared = nn.Identity()
        self.branches = nn.ModuleDict(
            {
                name: nn.ModuleDict(
                    {
                        "blocks": nn.ModuleList(layers.block() for _ in range(depth)),
                        "head": nn.Linear(width, classes),
                    }
                )
                for name in names
            }
        )
        self.gate: nn.Linear | None = nn.Linear(width, len(names))

    def keeping(self, only: str | None) -> Self:
        """With one branch and without the gate; None, and the ensemble, need all."""
        if only is not None and only != ENSEMBLE:
            self.branches = nn.ModuleDict({only: self.branches[only]})
            self.gate = None
        return self

    def _named(self, given: Tensor) -> NamedLogits:
        x = self._layers.activation(self.first(given))
        for index, block in enumerate(self.trunk):
            x = self._layers.apply(block, x, index=index)
        x = self.shared(x)
        named = {name: self._branch(branch, x) for name, branch in self.branches.items()}
        if self.gate is None:
            return NamedLogits(named, next(iter(named)))
        share = torch.softmax(torch.relu(self.gate(self._layers.flat(x))), 1)
        stacked = torch.stack(list(named.values()), 1)
        named[ENSEMBLE] = (share.unsqueeze(2) * stacked).sum(1)
        return NamedLogits(named, ENSEMBLE)

    def _branch(self, branch: Any, x: Tensor) -> Tensor:
        for index, block in enumerate(branch["blocks"], self._shared_blocks):
            x = self._layers.apply(block, x, index=index)
        return branch["head"](self._layers.flat(x))


class Branches(_Branches):
    """See `branches`."""

    def forward(self, features: Tensor) -> NamedLogits:
        """[R, inputs] -> by name [R, V]."""
        return self._named(features)


class ImageBranches(_Branches):
    """See `conv_branches`."""

    def forward(self, pixel_values: Tensor) -> NamedLogits:
        """[R, channels, size, size] -> by name [R, V]."""
        return self._named(pixel_values)


class MLP(nn.Module):
    """See `mlp`."""

    def __init__(
        self,
        inputs: int,
        classes: int,
        width: int,
        depth: int,
        activation: Callable[[Tensor], Tensor],
        residual: bool,
    ) -> None:
        super().__init__()
        self.num_labels = classes
        self._activation, self._residual = activation, residual
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, classes)
        self.stages = _stages(depth)

    def forward(self, features: Tensor) -> Tensor:
        """[R, inputs] -> [R, V]."""
        x = self.stages[0](self._activation(self.first(features)))
        for block, stage in zip(self.blocks, self.stages[1:], strict=True):
            y = self._activation(block(x))
            x = stage(x + y if self._residual else y)
        return self.head(x)


class Conv(nn.Module):
    """See `conv`."""

    def __init__(self, layers: ConvLayers, classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.num_labels = classes
        self._layers = layers
        self.first = layers.first()
        self.blocks = nn.ModuleList(layers.block() for _ in range(depth))
        self.head = nn.Linear(width, classes)
        self.stages = _stages(depth)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[R, channels, size, size] -> [R, V]."""
        x = self.stages[0](self._layers.activation(self.first(pixel_values)))
        for index, block in enumerate(self.blocks):
            x = self.stages[index + 1](self._layers.apply(block, x, index=index))
        return self.head(self._layers.flat(x))


def _stages(depth: int) -> nn.ModuleList:
    """Modules that only pass features on, so that they have a path."""
    return nn.ModuleList(nn.Identity() for _ in range(depth + 1))


def _check(activation: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is too small ({size}); give a positive number")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; use one of {', '.join(_ACTIVATIONS)}")


def _check_image(size: int, depth: int) -> None:
    if size < 2 ** (depth - 1):
        raise ValueError(f"size is {size}, and {depth} blocks need {2 ** (depth - 1)}; lower depth")
