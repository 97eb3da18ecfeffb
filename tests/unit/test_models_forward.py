"""The one forward: packed rows, hidden states, heads, classifiers."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import VOCABULARY, tiny
from torch import nn

from orchestrator.models.forward import classify, forward_hidden, forward_logits, packing_is_exact
from orchestrator.models.head import HeadForm, find_head_form

LENGTHS = ((5, 7, 4), (9, 1, 6))


def packed_rows() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(3))
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])
    return ids, positions


def unpacked(module: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits of each sample run alone, laid out as in the packed rows."""
    out = torch.empty(2, 16, VOCABULARY)
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            cut = slice(start, start + length)
            alone = forward_logits(module, ids[row : row + 1, cut], torch.arange(length)[None])
            out[row, cut] = alone[0]
            start += length
    return out


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_samples_of_a_packed_row_are_strangers(family: str, attention: str):
    module = tiny(family, trained=False, attention=attention).module
    ids, positions = packed_rows()
    with torch.no_grad():
        difference = forward_logits(module, ids, positions) - unpacked(module, ids)
    assert difference.abs().max() < 2e-7


def test_transformers_default_cache_would_let_samples_see_each_other():
    """The reason for `use_cache=False`; if this stops failing, packing got easier."""
    module = tiny("llama").module
    ids, positions = packed_rows()
    with torch.no_grad():
        leaking = module(input_ids=ids, position_ids=positions, use_cache=True).logits
    assert (leaking - unpacked(module, ids)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "attention", "exact"),
    [
        ("llama", "sdpa", True),
        ("gpt2", "eager", True),
        ("gemma3", "sdpa", True),
        ("mixtral", "sdpa", True),
        ("bloom", "eager", False),
        ("mamba", "eager", False),
    ],
)
def test_the_probe_knows_which_models_keep_samples_apart(
    family: str, attention: str, exact: bool, dtype: str
):
    module = tiny(family, trained=False, attention=attention, dtype=dtype).module
    assert packing_is_exact(module) is exact


def test_the_probe_sees_a_leak_through_one_layer_only():
    """Positions restart and attention is masked, but a layer adds the row's running mean."""
    module = tiny("llama", dtype="bfloat16").module

    def leak(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output + 0.01 * output.cumsum(dim=1)

    module.model.layers[1].mlp.register_forward_hook(leak)
    assert not packing_is_exact(module)


def test_the_probe_leaves_training_mode_and_random_state_alone():
    module = tiny("llama", for_training=True).module
    module.model.layers[0].eval()
    before = torch.get_rng_state()
    packing_is_exact(module)
    find_head_form(module)
    assert module.training and not module.model.layers[0].training
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("llama", HeadForm()),
        ("llama_tied", HeadForm()),
        ("gpt2", HeadForm()),
        ("phi", HeadForm()),
        ("gemma3", HeadForm(softcap=5.0)),
        ("cohere", HeadForm(scale=0.0625)),
        ("granite", HeadForm(scale=1 / 7)),
    ],
)
def test_head_of_hidden_states_gives_the_models_logits(family: str, form: HeadForm, dtype: str):
    loaded = tiny(family, dtype=dtype)
    head = loaded.head()
    assert loaded.head_form == form and head is not None
    assert (head.bias is not None) is (family == "phi")
    ids, positions = packed_rows()
    with torch.no_grad():
        ours = head.logits(forward_hidden(loaded.module, ids, positions)).float()
        theirs = forward_logits(loaded.module, ids, positions).float()
    tolerance = 1e-5 if dtype == "float32" else 0.03
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_a_soft_cap_is_found_though_fresh_logits_are_too_small_to_show_it():
    assert tiny("gemma3", trained=False).head_form == HeadForm(softcap=5.0)


def test_a_head_that_does_more_than_the_formula_is_none():
    module = tiny("llama").module
    module.lm_head.register_forward_hook(lambda _m, _i, output: output.sin())
    assert find_head_form(module) is None


def test_the_head_holds_the_live_parameters():
    loaded = tiny("llama", for_training=True)
    head = loaded.head()
    assert head is not None and head.weight is loaded.module.lm_head.weight
    assert head.weight.requires_grad


class Digits(nn.Module):
    """A classifier of vectors, as an import source returns one."""

    num_labels = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layer(pixels)


def test_a_classifier_runs_on_named_inputs_in_its_own_dtype():
    module = Digits().to(torch.bfloat16)
    logits = classify(module, {"pixels": torch.ones(2, 4)})
    assert logits.shape == (2, 3) and logits.dtype == torch.bfloat16


def test_logits_that_are_not_one_row_a_sample_are_refused():
    with pytest.raises(TypeError, match=r"\[2, 5, 3\] for 2 samples"):
        classify(Digits(), {"pixels": torch.ones(2, 5, 4)})


def test_what_the_mask_hides_becomes_the_padding_id_of_the_model():
    class Last(nn.Module):
        """The last token that is no padding, as decoder families find it."""

        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(pad_token_id=9)
            self.weight = nn.Parameter(torch.eye(10))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            last = (input_ids != 9).sum(1) - 1
            return self.weight[input_ids[torch.arange(len(input_ids)), last]]

    ids = torch.tensor([[4, 3, 0], [5, 0, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    logits = classify(Last(), {"input_ids": ids, "attention_mask": mask})
    assert logits.argmax(1).tolist() == [0, 5]


def test_hidden_states_of_a_module_without_a_backbone_are_refused():
    with pytest.raises(TypeError, match="use forward_logits"):
        forward_hidden(Digits(), torch.zeros(1, 2), torch.zeros(1, 2))


class Nothing(Digits):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return [super().forward(pixels)]  # type: ignore[return-value]


def test_an_output_that_is_no_logits_is_refused():
    with pytest.raises(TypeError, match="return a tensor of logits"):
        classify(Nothing(), {"pixels": torch.ones(2, 4)})
