"""Frozen parts stay as they are: parameters, buffers, dropout."""

import torch
from torch import nn

from orchestrator.models.trainable import apply_trainable, frozen_parts
from orchestrator.students.module import StudentModule


class Net(nn.Module):
    """Two blocks with statistics and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.num_labels = 2
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)) for _ in range(2)
        )
        self.head = nn.Linear(4, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[R, 4] -> [R, 2]."""
        for block in self.blocks:
            features = block(features)
        return self.head(features)


def test_frozen_parts_are_the_largest_that_are_whole() -> None:
    net = Net()
    assert frozen_parts(net) == []
    apply_trainable(net, ["blocks.1"])
    assert frozen_parts(net) == [net.blocks[0], net.head]
    apply_trainable(net, ["blocks.1.0.weight"])
    assert frozen_parts(net) == [net.blocks[0], net.blocks[1][1], net.head]


def test_buffers_of_frozen_parts_do_not_move_and_nothing_is_dropped_there() -> None:
    net = Net().train()
    apply_trainable(net, ["blocks.1"])
    module = StudentModule(net, None, frozen=frozen_parts(net))
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    for mode in (True, False, True):
        module.train(mode)
    assert module.training and net.blocks[1].training and not net.blocks[0].training
    first = net.blocks[0](torch.ones(3, 4))
    assert torch.equal(first, net.blocks[0](torch.ones(3, 4)))
    net(torch.randn(8, 4))
    moved = {name for name, buffer in net.named_buffers() if not buffer.equal(before[name])}
    assert moved == {f"blocks.1.1.{name}" for name in before_names()}


def before_names() -> tuple[str, ...]:
    """Buffers of a batch norm."""
    return ("running_mean", "running_var", "num_batches_tracked")
