"""Amik et al., arXiv:2201.11319: a self-teacher whose errors are swapped away."""

import torch
from tiny_objective import objective_of, result, scene

NUMBERS = {"label_share": 0.05, "temperature": 6.0}


def test_a_self_teacher_that_is_never_wrong_is_plain_self_distillation_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.float64):
        seen = scene(61, right=1.0, dtype=dtype)
        mended = result(objective_of(kind="dr_kd"), seen)
        plain = result(objective_of(kind="forward_kl", **NUMBERS), seen)
        assert torch.equal(mended[0], plain[0]) and torch.equal(mended[1], plain[1])


def test_it_is_the_shift_of_adjusted_knowledge_with_its_own_numbers() -> None:
    seen = scene(62)
    mended = result(objective_of(kind="dr_kd"), seen)
    shifted = result(objective_of(kind="ka_shift", **NUMBERS), seen)
    plain = result(objective_of(kind="forward_kl", **NUMBERS), seen)
    assert torch.equal(mended[1], shifted[1])
    assert not torch.equal(mended[1], plain[1])


def test_the_weight_is_that_of_a_mean_over_positions_not_over_entries_too() -> None:
    """The authors' factor of 50 on a KL divided by 100 classes too is a weight of 0.5 here."""
    seen = scene(63, entries=100)
    term = {"kind": "forward_kl", "weight": 0.5, "temperature": 6.0}
    loss, _, _ = result(objective_of(term), seen)
    p = (seen.roles["teacher"] / 6).softmax(1)
    log_q = (seen.hidden.detach() / 6).log_softmax(1)
    theirs = 50 * 36 * (p * (p.log() - log_q)).mean()
    assert abs(float(loss - theirs)) < 1e-12
