"""The compiled path: the same numbers, one warning where it cannot be built."""

import shutil
import warnings

import pytest
import torch
from loss_oracle import topk_signal
from torch import Tensor

from strategies import fusion
from strategies.contract import DenseSignal, Head
from strategies.linear import vocabulary_loss
from strategies.parts import Part
from strategies.specs.targets import SwapSpec
from strategies.targets import Target

N, VOCABULARY = 5, 11


@pytest.fixture(autouse=True)
def a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion._Build, "failed", False)


def _run(compiled: bool, *parts: Part) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, VOCABULARY, generator=make, requires_grad=True)
    teacher = torch.randn(N, VOCABULARY, generator=make)
    signals = {"teacher": DenseSignal(teacher), "topk": topk_signal(teacher, 3, (1.0, 2.0))}
    head, targets = Head(torch.eye(VOCABULARY)), torch.arange(N)
    loss, _ = vocabulary_loss(hidden, head, targets, signals, parts, compiled)
    return loss.detach(), torch.autograd.grad(loss, hidden)[0]


def _mixture(temperature: float, beta: float) -> list[Part]:
    return [
        Part("forward_kl", 0.7, "teacher", temperature),
        Part("jensen_shannon", 0.2, "teacher", temperature, beta=beta),
        Part("cross_entropy", 0.5, label_smoothing=0.1),
    ]


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
def test_the_compiled_path_gives_the_same_numbers_and_follows_schedules() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the loss cannot be compiled")
        for temperature, beta in ((2.0, 0.3), (1.5, 0.4), (1.3, 0.6)):
            parts = _mixture(temperature, beta)
            torch.testing.assert_close(
                _run(True, *parts), _run(False, *parts), rtol=1e-5, atol=1e-6
            )


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
def test_compiled_terms_that_need_every_entry_give_the_same_numbers_and_follow_schedules() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the loss cannot be compiled")
        for number in (0.5, 1.5):
            swapped = Target((SwapSpec(kind="swap"),), ())
            parts = [
                Part("adaptive_kl", 0.7, "teacher", number),
                Part("universal", 0.4, "teacher", number),
                Part("decoupled", 0.2, "teacher", number, others_weight=number),
                Part("forward_kl", 0.3, "teacher", number, target=swapped),
                Part("logits_distance", 0.1, "teacher", logit_scale=number, margin=number),
            ]
            torch.testing.assert_close(
                _run(True, *parts), _run(False, *parts), rtol=1e-5, atol=1e-6
            )


def test_where_it_cannot_be_built_it_warns_once_and_computes_eagerly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def cannot() -> None:
        raise TorchDynamoException("no compiler found\nmore")

    monkeypatch.setattr(fusion, "_compiled", cannot)
    parts = [*_mixture(2.0, 0.3), Part("reverse_kl", 1.0, "topk")]
    with pytest.warns(UserWarning, match=r"cannot be compiled here \(no compiler found\)") as seen:
        first, second = _run(True, *parts), _run(True, *parts)
    assert len(seen) == 1
    torch.testing.assert_close(first, _run(False, *parts), rtol=0, atol=0)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_mistake_in_the_arguments_is_not_taken_for_a_missing_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> None:
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(fusion, "_compiled", broken)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        _run(True, Part("cross_entropy"))
