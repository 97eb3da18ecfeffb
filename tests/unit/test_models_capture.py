"""Looking inside a model: which modules there are, and taking what they give."""

from typing import Any

import pytest
import torch
from tiny_models import tiny
from torch import Tensor, nn

from orchestrator.models.capture import inside, watching
from orchestrator.models.forward import forward_hidden


class Twice(nn.Module):
    """Runs one of its layers twice, and has one that gives no [R, T, d]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.shared, self.last = nn.Embedding(8, 6), nn.Linear(6, 6), nn.Linear(6, 8)
        self.flat = nn.Flatten()

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """[R, T] int64 twice -> [R, T, 8]."""
        x = self.shared(self.shared(self.embed(input_ids)))
        return self.last(x) + self.flat(x).mean()


def test_a_module_that_runs_twice_has_no_single_output() -> None:
    assert inside(Twice()).layers == {"embed": 6, "last": 8}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mixtral"])
def test_attention_is_told_by_eager_models_only(family: str) -> None:
    eager = inside(tiny(family, attention="eager").module)
    assert len(eager.attention) == 2 and set(eager.attention.values()) == {4}
    assert set(eager.attention) <= set(eager.layers)
    sdpa = inside(tiny(family).module)
    assert not sdpa.attention and sdpa.layers.keys() == eager.layers.keys()


def test_a_model_without_attention_has_layers_all_the_same() -> None:
    found = inside(tiny("mamba", attention="eager").module)
    assert found.layers["backbone.layers.1"] == 32 and not found.attention


def test_a_look_leaves_the_model_as_it_was() -> None:
    module = tiny().module.train()
    inside(module)
    assert module.training and not any(part._forward_hooks for part in module.modules())


def test_hooks_are_gone_when_a_forward_fails() -> None:
    module = tiny().module

    def see(path: str, output: Any) -> None:
        raise ValueError(f"{path} is not to be seen")

    with (
        pytest.raises(ValueError, match=r"model\.norm is not"),
        watching(module, ["model.norm"], see),
    ):
        forward_hidden(module, torch.zeros(1, 2, dtype=torch.int64), torch.arange(2)[None])
    assert not any(part._forward_hooks for part in module.modules())
