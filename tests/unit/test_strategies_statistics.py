"""Evaluation's sums against plain torch, whatever the cut."""

import pytest
import torch
from loss_oracle import oracle, sampled_signal, topk_signal
from torch import Tensor

from strategies import heads
from strategies.contract import (
    IGNORED,
    Batch,
    DenseSignal,
    Head,
    HiddenSignal,
    LogitSignal,
    Outputs,
    TopKSignal,
)
from strategies.statistics import CALIBRATION_BINS, position_statistics

COUNT, WIDTH, VOCABULARY = 40, 6, 9


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "LEAST_ROWS", 7)
    monkeypatch.setattr(heads, "CPU_CHUNK_BYTES", 1)


def _student(count: int = COUNT) -> tuple[Tensor, Head, Batch]:
    make = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, WIDTH, generator=make)
    weight = torch.randn(VOCABULARY, WIDTH, generator=make)
    head = Head(weight, torch.randn(VOCABULARY, generator=make), 0.8, 5.0)
    targets = torch.randint(VOCABULARY, (1, count + 3), generator=make)
    targets[0, :3] = IGNORED
    return hidden, head, Batch({}, targets, targets)


def _teacher(width: int = VOCABULARY) -> tuple[HiddenSignal, Tensor]:
    make = torch.Generator().manual_seed(1)
    head = Head(torch.randn(width, 4, generator=make))
    hidden = torch.randn(COUNT, 4, generator=make)
    return HiddenSignal(hidden, head), head.logits(hidden)


@pytest.mark.parametrize("as_logits", [False, True])
def test_the_students_own_sums_are_those_of_plain_torch(as_logits: bool) -> None:
    hidden, head, batch = _student()
    logits, targets = head.logits(hidden), batch.kept_targets
    outputs = Outputs(logits=logits) if as_logits else Outputs(hidden=hidden, head=head)
    sums = position_statistics(outputs, batch, None)
    assert set(sums) == {
        "nll",
        "count",
        "correct",
        "calibration_count",
        "calibration_confidence",
        "calibration_correct",
    }
    assert all(value.dtype == torch.float64 for value in sums.values())
    nll = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
    torch.testing.assert_close(sums["nll"], nll, rtol=1e-6, atol=0)
    right = logits.argmax(1) == targets
    assert sums["count"] == COUNT and sums["correct"] == right.sum()
    confidence = logits.double().softmax(1).amax(1)
    for b in range(CALIBRATION_BINS):
        here = (confidence >= b / CALIBRATION_BINS) & (confidence < (b + 1) / CALIBRATION_BINS)
        assert sums["calibration_count"][b] == here.sum()
        assert sums["calibration_correct"][b] == (here & right).sum()
        torch.testing.assert_close(
            sums["calibration_confidence"][b], confidence[here].sum(), rtol=1e-6, atol=1e-9
        )


def test_full_confidence_falls_into_the_last_bin() -> None:
    _, _, batch = _student(2)
    logits = torch.zeros(2, VOCABULARY)
    logits[:, 0] = 1e4
    sums = position_statistics(Outputs(logits=logits), batch, None)
    assert sums["calibration_count"][-1] == 2 and sums["calibration_confidence"][-1] == 2


@pytest.mark.parametrize("teacher_width", [VOCABULARY - 2, VOCABULARY, VOCABULARY + 3])
@pytest.mark.parametrize("kind", ["hidden", "dense"])
def test_a_role_with_logits_is_compared_through_the_students_vocabulary(
    kind: str, teacher_width: int
) -> None:
    hidden, head, batch = _student()
    targets = batch.targets.clamp(max=VOCABULARY - 3)
    batch = Batch({}, targets, targets)
    signal, theirs = _teacher(teacher_width)
    compared: LogitSignal = signal if kind == "hidden" else DenseSignal(theirs)
    sums = position_statistics(Outputs(hidden=hidden, head=head), batch, compared)
    logits, kept = head.logits(hidden), batch.kept_targets
    seen = theirs[:, :VOCABULARY].double()
    nll = torch.nn.functional.cross_entropy(seen, kept, reduction="sum")
    kl = oracle("forward_kl", logits, theirs, kept)
    torch.testing.assert_close(sums["teacher_nll"], nll, rtol=1e-6, atol=0)
    torch.testing.assert_close(sums["kl"], kl, rtol=1e-5, atol=0)
    assert sums["teacher_correct"] == (seen.argmax(1) == kept).sum()
    assert sums["agreement"] == (seen.argmax(1) == logits.argmax(1)).sum()


def test_a_topk_role_is_compared_over_its_outcomes_and_has_no_likelihood() -> None:
    hidden, head, batch = _student()
    _, theirs = _teacher()
    sent = topk_signal(theirs, 3, (1.0,))
    ids = sent.ids.flip(1)  # the likeliest is not always first
    signal = TopKSignal(ids, sent.logprobs.flip(1), sent.rest, (1.0,), VOCABULARY)
    sums = position_statistics(Outputs(hidden=hidden, head=head), batch, signal)
    logits = head.logits(hidden)
    want = oracle("forward_kl", logits, theirs, batch.kept_targets, kept=ids)
    torch.testing.assert_close(sums["kl"], want, rtol=1e-5, atol=0)
    assert sums["agreement"] == (theirs.argmax(1) == logits.argmax(1)).sum()
    assert sums["teacher_correct"] == (theirs.argmax(1) == batch.kept_targets).sum()
    assert "teacher_nll" not in sums


def test_a_role_known_by_draws_has_an_estimated_divergence_and_nothing_else() -> None:
    hidden, head, batch = _student()
    _, theirs = _teacher()
    signal = sampled_signal(theirs, 4000, torch.Generator().manual_seed(3))
    sums = position_statistics(Outputs(hidden=hidden, head=head), batch, signal)
    want = oracle("forward_kl", head.logits(hidden), theirs, batch.kept_targets)
    assert sums["kl"].item() == pytest.approx(want.item(), rel=0.05)
    assert not {"agreement", "teacher_correct", "teacher_nll"} & set(sums)


def test_a_model_compared_with_itself_agrees_everywhere() -> None:
    hidden, head, batch = _student()
    sums = position_statistics(Outputs(hidden=hidden, head=head), batch, HiddenSignal(hidden, head))
    assert sums["kl"] == 0 and sums["agreement"] == COUNT
    torch.testing.assert_close(sums["teacher_nll"], sums["nll"], rtol=1e-6, atol=0)


def test_no_positions_give_zeros_of_every_name() -> None:
    _, head, batch = _student(0)
    signal = HiddenSignal(torch.zeros(0, WIDTH), head)
    sums = position_statistics(Outputs(hidden=torch.zeros(0, WIDTH), head=head), batch, signal)
    assert len(sums) == 10 and not any(value.any() for value in sums.values())


def test_other_positions_are_refused() -> None:
    hidden, head, batch = _student()
    with pytest.raises(ValueError, match="signal covers 39 positions"):
        position_statistics(
            Outputs(hidden=hidden, head=head), batch, HiddenSignal(hidden[1:], head)
        )
