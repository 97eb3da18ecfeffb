"""Zhang et al., arXiv:2412.09874: from what the role has right, then from its rectified errors."""

import pytest
import torch
from tiny_objective import objective_of, result, scene

from strategies.progress import Progress
from strategies.targets import rectify

T = 4.0


def _rectified() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """p' of wrong positions, p, labels and first choices, all at temperature T."""
    make = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 10, generator=make, dtype=torch.float64)
    labels = torch.randint(10, (500,), generator=make)
    wrong = logits.argmax(1) != labels
    mended, softened = rectify(logits, labels, T) / T, logits / T
    torch.testing.assert_close(mended[~wrong].softmax(1), softened[~wrong].softmax(1))
    softened, labels = softened[wrong], labels[wrong].unsqueeze(1)
    return mended[wrong].exp(), softened.softmax(1), labels, softened.argmax(1, keepdim=True)


def test_a_role_that_is_sure_of_its_error_gives_the_label_at_the_temperature_of_the_loss() -> None:
    """At temperature 1 both would come out alike, and the student would learn to waver."""
    logits, label = torch.zeros(1, 10, dtype=torch.float64), torch.tensor([3])
    logits[0, 7] = 20.0
    p = (rectify(logits, label, T) / T).softmax(1)[0]
    q = (logits / T).softmax(1)[0]
    assert float(p[3] / p[7]) == pytest.approx(float((q[3] + 1) / q[7]))
    at_one = rectify(logits, label, 1.0).softmax(1)[0]
    assert float(at_one[3] / at_one[7]) == pytest.approx(1.0, abs=1e-6)
    assert float(p[3] / p[7]) > 1.05


def test_a_rectified_distribution_sums_to_1_and_keeps_the_other_entries() -> None:
    mended, p, label, first = _rectified()
    assert (mended.sum(1) - 1).abs().max() < 1e-12  # of probabilities: of logits it would not
    others = torch.ones_like(p).scatter(1, label, 0).scatter(1, first, 0)
    assert ((mended - p) * others).abs().max() < 1e-12
    pair = mended.gather(1, label) + mended.gather(1, first)
    assert (pair - p.gather(1, label) - p.gather(1, first)).abs().max() < 1e-12


def test_the_label_is_never_below_the_first_choice_and_their_ratio_is_the_published_one() -> None:
    mended, p, label, first = _rectified()
    of_label, of_first = mended.gather(1, label), mended.gather(1, first)
    assert (of_label >= of_first).all()
    wanted = (p.gather(1, label) + 1) / p.gather(1, first)
    assert (of_label / of_first / wanted - 1).abs().max() < 1e-12
    is_first = (mended.argmax(1, keepdim=True) == label).double().mean()
    assert 0.5 < float(is_first) < 1.0  # not promised, and not so


def test_the_share_falls_from_1_to_0_as_a_squared_cosine() -> None:
    objective = objective_of(kind="btkd")
    found = [objective.numbers(Progress(s, 40), objective.start()) for s in range(41)]
    right = [numbers["right.weight"] / 0.5 for numbers in found]
    wrong = [numbers["wrong.weight"] / 0.5 for numbers in found]
    assert right[0] == 1.0 and right[-1] == 0.0 and wrong[0] == 0.0 and wrong[-1] == 1.0
    assert right == sorted(right, reverse=True)
    steps = torch.arange(41, dtype=torch.float64)
    wanted = torch.cos(torch.pi * steps / 80) ** 2
    assert (torch.tensor(right, dtype=torch.float64) - wanted).abs().max() < 1e-12
    sums = [one + other for one, other in zip(right, wrong, strict=True)]
    assert max(abs(each - 1) for each in sums) < 1e-12


@pytest.mark.parametrize("step", [0, 7, 20])
def test_a_role_that_is_never_wrong_gives_labels_and_a_share_of_plain_distillation(
    step: int,
) -> None:
    seen, objective, at = scene(51, right=1.0), objective_of(kind="btkd"), Progress(step, 20)
    loss, gradient, means = result(objective, seen, at=at)
    share = objective.numbers(at, objective.start())["right.weight"]
    plain = objective_of(
        {"kind": "cross_entropy", "weight": 0.5},
        {"kind": "forward_kl", "weight": share, "temperature": 4.0},
    )
    wanted, of_wanted, _ = result(plain, seen)
    assert abs(float(loss - wanted)) < 1e-12
    assert (gradient - of_wanted).abs().max() < 1e-12
    assert means["wrong"] == 0.0


def test_each_side_is_a_mean_over_its_own_positions() -> None:
    seen = scene(52)
    _, _, means = result(objective_of(kind="btkd"), seen)
    right = seen.roles["teacher"].argmax(1) == seen.labels
    assert 0 < int(right.sum()) < len(right)
    for name, mine, logits in (
        ("right", right, seen.roles["teacher"]),
        ("wrong", ~right, rectify(seen.roles["teacher"], seen.labels, T)),
    ):
        p, log_q = (logits / 4).softmax(1), (seen.hidden.detach() / 4).log_softmax(1)
        wanted = 16 * (p * (p.log() - log_q)).sum(1)[mine].mean()
        assert abs(means[name] - float(wanted)) < 1e-12
