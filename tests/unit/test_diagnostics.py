"""The arithmetic of diagnostics against hand and float64 computations."""

import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from orchestrator.evaluation.diagnostics.bleu import bleu, bleu_counts
from orchestrator.evaluation.diagnostics.draw import drawn, uniform
from orchestrator.evaluation.diagnostics.gradients import (
    Moments,
    Pooled,
    gradient_noise,
    layer_of,
    norms_by_layer,
)
from orchestrator.evaluation.diagnostics.positions import (
    COUNTS,
    Compared,
    agreement,
    agreement_counts,
    compared,
    omega_summary,
    omegas,
)
from orchestrator.evaluation.diagnostics.report import OMEGA_EDGES, metrics
from orchestrator.evaluation.history import Point, history_of
from orchestrator.evaluation.report import render
from orchestrator.events import Evaluated
from orchestrator.spec import JobSpec
from orchestrator.terminal import event_text
from strategies.contract import Batch, DenseSignal, Head, HiddenSignal, Outputs

# --- gradients: paper 0 --------------------------------------------------------------------------


def _alone(_: Tensor) -> None:
    """A sum over one rank."""


def _moments(data: Tensor, role: Tensor) -> Pooled:
    """Of gradients [B, ...] of batches."""
    moments = Moments(2)
    for a, b in zip(data, role, strict=True):
        moments.add([[a.clone()], [b.clone()]])
    return moments.pooled(_alone)


def _softmax_linear(weight: Tensor, features: Tensor, targets: Tensor, examples: int) -> Tensor:
    """[B, V, d] gradients of cross entropy with target distributions, batch by batch."""
    found = []
    for rows in torch.arange(len(features)).split(examples):
        leaf = weight.clone().requires_grad_()
        logs = torch.log_softmax(features[rows] @ leaf.T, 1)
        loss = -(targets[rows] * logs).sum(1).mean()
        found.append(torch.autograd.grad(loss, leaf)[0])
    return torch.stack(found)


@pytest.fixture
def softmax_linear() -> dict[str, Tensor]:
    """A student and a teacher of 5 classes that see 6 numbers, on 40 batches of 3."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    student, teacher, features = draw(5, 6), draw(5, 6), draw(120, 6)
    labels = torch.nn.functional.one_hot(
        torch.randint(0, 5, (120,), generator=generator), 5
    ).double()
    taught = torch.softmax(features @ teacher.T, 1)
    return {
        "data": _softmax_linear(student, features, labels, 3),
        "role": _softmax_linear(student, features, taught, 3),
        "theta": _softmax_linear(teacher, features, labels, 3),
        "x": student,
        "features": features,
        "labels": labels,
        "taught": taught,
    }


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.7, 1.0])
def test_the_mixtures_gradient_is_that_of_the_data_less_lam_times_the_teachers(
    softmax_linear: dict[str, Tensor], lam: float
) -> None:
    """Check (a): grad_KD = g(x) - lam g(theta), whatever lam."""
    s = softmax_linear
    mixed = (1 - lam) * s["labels"] + lam * s["taught"]
    whole = _softmax_linear(s["x"], s["features"], mixed, 3)
    assert (whole - (s["data"] - lam * s["theta"])).abs().max() < 1e-12


def test_rho_and_lam0_are_those_of_the_teachers_own_gradient(
    softmax_linear: dict[str, Tensor],
) -> None:
    s = softmax_linear
    x, theta = s["data"].flatten(1), s["theta"].flatten(1)
    cross, own = (x * theta).sum(1).mean(), theta.square().sum(1).mean()
    found = gradient_noise(_moments(s["data"], s["role"]), 0.4)
    assert found["lam0"] == pytest.approx(float(cross / own), rel=1e-12)
    rho = cross / (x.square().sum(1).mean() * own).sqrt()
    assert found["rho"] == pytest.approx(float(rho), rel=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_traces_are_those_of_the_covariance_over_batches(
    softmax_linear: dict[str, Tensor], lam: float
) -> None:
    s = softmax_linear
    data, role = s["data"].flatten(1), s["role"].flatten(1)
    found = gradient_noise(_moments(data, role), lam)

    def trace(gradients: Tensor) -> float:
        return float(torch.cov(gradients.T).trace())

    assert found["trace_data"] == pytest.approx(trace(data), rel=1e-12)
    assert found["trace_role"] == pytest.approx(trace(role), rel=1e-12)
    mixture = (1 - lam) * data + lam * role
    assert found["trace_mixture"] == pytest.approx(trace(mixture), rel=1e-12)
    cosine = torch.nn.functional.cosine_similarity(data.mean(0), role.mean(0), dim=0)
    assert found["cosine"] == pytest.approx(float(cosine), rel=1e-12)
    assert found["norm_data"] == pytest.approx(float(data.mean(0).norm()), rel=1e-12)


def _linear_regression(gap: float) -> dict[str, Tensor]:
    """The least squares optimum of n = 500, d = 20, and a teacher whose loss is `gap` above it."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features, noise, step = draw(500, 20), draw(500), draw(20)
    labels = features @ draw(20) + noise
    best = torch.linalg.lstsq(features, labels.unsqueeze(1)).solution.squeeze(1)
    excess = 0.5 * (features @ step).square().mean()
    teacher = best + step * (gap / excess).sqrt()
    return {"features": features, "labels": labels, "best": best, "teacher": teacher}


def _at_the_optimum(s: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """[n, d] gradients of single examples of the data's and the role's squared loss."""
    a, out = s["features"], s["features"] @ s["best"]
    return a * (out - s["labels"]).unsqueeze(1), a * (out - a @ s["teacher"]).unsqueeze(1)


def _steady_state(features: Tensor, noise: Tensor, rate: float = 0.01) -> float:
    """E||x - x*||^2 that SGD on single examples ends at; `noise` [n, d] has mean 0.

    The fixed point of C = E[(I - rate a a') C (I - rate a a')] + rate^2 E[noise noise'].
    """
    n, d = features.shape
    outer = torch.einsum("ni,nj->nij", features, features)
    second, eye = outer.mean(0), torch.eye(d, dtype=torch.float64)
    fourth = torch.einsum("nij,nkl->ikjl", outer, outer).reshape(d * d, d * d) / n
    operator = rate * (torch.kron(second, eye) + torch.kron(eye, second)) - rate**2 * fourth
    pushed = rate**2 * (noise.T @ noise / n).reshape(-1)
    return float(torch.linalg.solve(operator, pushed).reshape(d, d).trace())


@pytest.mark.parametrize("lam", [0.2, 0.4, 0.6, 0.8, 0.9, 1.0])
def test_the_best_teacher_leaves_one_less_lam_squared_of_the_noise(lam: float) -> None:
    """Check (b), an optimal teacher: 0.64, 0.36, 0.16, 0.04, 0.01, 0."""
    s = _linear_regression(0.0)
    data, role = _at_the_optimum(s)
    found = gradient_noise(_moments(data, role), lam)
    share = found["trace_mixture"] / found["trace_data"]
    assert share == pytest.approx((1 - lam) ** 2, abs=1e-12)
    assert found["rho"] == pytest.approx(1.0, abs=1e-12)
    assert found["lam0"] == pytest.approx(1.0, abs=1e-12)
    mixture = (1 - lam) * data + lam * role
    ratio = _steady_state(s["features"], mixture) / _steady_state(s["features"], data)
    assert ratio == pytest.approx((1 - lam) ** 2, abs=1e-3)


def test_a_mediocre_teacher_without_bias_leaves_what_rho_says() -> None:
    """Check (b), gap 0.43: about half at lam 0.6; theory 1 - rho^2 = 0.48, measured 0.44."""
    s = _linear_regression(0.43)
    data, role = _at_the_optimum(s)
    teacher = data - role
    unbiased = teacher - teacher.mean(0)
    found = gradient_noise(_moments(data, data - unbiased), 0.6)
    left = 1 - found["rho"] ** 2
    assert 0.35 < left < 0.6 and 0.4 < found["lam0"] < 0.7
    best = data - found["lam0"] * unbiased
    ratio = _steady_state(s["features"], best) / _steady_state(s["features"], data)
    assert ratio == pytest.approx(left, abs=0.06)
    assert best.square().sum() / data.square().sum() == pytest.approx(left, rel=1e-9)
    for other in (found["lam0"] - 0.1, found["lam0"] + 0.1):
        assert (data - other * unbiased).square().sum() > best.square().sum()


def test_a_role_that_says_what_the_student_says_has_no_noise_of_its_own() -> None:
    data = torch.randn(9, 4, dtype=torch.float64)
    found = gradient_noise(_moments(data, torch.zeros_like(data)), 0.5)
    assert found["trace_role"] == 0 and math.isnan(found["cosine"])
    assert found["rho"] == pytest.approx(1) and found["lam0"] == pytest.approx(1)


def test_moments_of_two_ranks_are_those_of_one() -> None:
    batches = torch.randn(7, 2, 11, dtype=torch.float64) + 100
    whole, ranks = Moments(2), [Moments(2), Moments(2)]
    for index, batch in enumerate(batches):
        for moments in (whole, ranks[index % 2]):
            moments.add([[part.clone()[:4], part.clone()[4:]] for part in batch])
    expected = whole.pooled(_alone)
    found = _pooled_together(ranks)
    assert found.batches == expected.batches == 7
    assert np.allclose(found.centred, expected.centred, rtol=1e-9)
    assert np.allclose(found.means, expected.means, rtol=1e-12)
    for one in ranks:
        assert torch.allclose(one.means[1][0], batches[:, 1, :4].mean(0))


def _pooled_together(ranks: list[Moments]) -> Pooled:
    """Two ranks in two threads that meet at each sum."""
    import threading

    meeting, given, results = threading.Barrier(2), [None, None], [None, None]

    def work(rank: int) -> None:
        def summed(tensor: Tensor) -> None:
            given[rank] = tensor.clone()  # type: ignore[call-overload]
            meeting.wait(20)
            total = given[0] + given[1]  # type: ignore[operator]
            meeting.wait(20)
            tensor.copy_(total)

        results[rank] = ranks[rank].pooled(summed)  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results[0] == results[1] and results[0] is not None
    return results[0]


def test_a_small_spread_around_a_large_mean_is_not_lost_in_float32() -> None:
    spread = torch.randn(50, 1000, dtype=torch.float64) * 1e-3
    gradients = (spread + 10).float()
    found = gradient_noise(_moments(gradients, torch.zeros_like(gradients)), 0.0)
    expected = float(gradients.double().var(0).sum())
    assert found["trace_data"] == pytest.approx(expected, rel=1e-3)


def test_norms_are_joined_by_layer() -> None:
    names = ["model.embed.weight", "model.layers.0.a.weight", "model.layers.0.b.weight", "scale"]
    found = norms_by_layer(names, [4.0, 9.0, 16.0, 0.25])
    assert found == {"model.embed": 2.0, "model.layers.0": 5.0, "scale": 0.5}
    assert layer_of("h.11.attn.c.weight") == "h.11"


# --- positions -----------------------------------------------------------------------------------


def _batch(labels: Tensor) -> Batch:
    n = len(labels)
    return Batch({}, labels.reshape(n, 1), torch.arange(n).reshape(n, 1))


def test_omega_is_the_ratio_of_the_labels_logit_gradients() -> None:
    """In float64 through autograd, with a head and hidden states."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight, theirs, lam = draw(300, 8), draw(50, 8), draw(300, 50), 0.7
    labels = torch.randint(0, 50, (300,), generator=generator)
    logits = (hidden @ weight.T).requires_grad_()
    q = torch.softmax(theirs, 1)
    rows = torch.arange(300)
    log_p = torch.log_softmax(logits, 1)
    ce = torch.autograd.grad(-log_p[rows, labels].sum(), logits, retain_graph=True)[0]
    kl = torch.autograd.grad(-(q * log_p).sum(), logits)[0]
    expected = ((1 - lam) * ce + lam * kl)[rows, labels] / ce[rows, labels]
    outputs = Outputs(hidden=hidden, head=Head(weight))
    pairs = [omegas(seen, lam) for seen in compared(outputs, _batch(labels), DenseSignal(theirs))]
    omega, confidence = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    assert torch.allclose(omega, expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(confidence, q.amax(1))


def test_omega_of_sure_students_keeps_its_digits_in_float32() -> None:
    """Both sure to 1e-9: 1 - p is 0 in float32, the ratio is not."""
    student, role = torch.tensor([[21.0, 0.0]]), torch.tensor([[20.0, 0.0]])
    omega, _ = omegas(Compared(student, role, torch.tensor([0])), 0.5)
    assert float(omega) == pytest.approx(1 - 0.5 * math.e, rel=1e-5)


def test_a_role_that_is_certain_leaves_the_labels_gradient_as_it_is() -> None:
    role = torch.tensor([[0.0, -torch.inf]])
    for student in (torch.tensor([[1.0, 0.0]]), role):
        omega, _ = omegas(Compared(student, role, torch.tensor([0])), 0.5)
        assert float(omega) == 1.0


def test_a_signal_with_some_entries_only_is_refused() -> None:
    from strategies.contract import SampledSignal

    signal = SampledSignal(torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1), torch.zeros(2), 4)
    outputs = Outputs(logits=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="only some entries"):
        next(iter(compared(outputs, _batch(torch.tensor([0, 1])), signal)))


def test_omega_is_split_by_the_roles_confidence() -> None:
    confidence = torch.tensor([0.9, 0.1, 0.5, 0.2, 0.6, 0.8])
    omega = torch.tensor([1.0, -2.0, 0.25, -0.5, 0.0, 0.75])  # sums are exact in any order
    found: Any = omega_summary(omega, confidence, 0.5)
    assert found["positions"] == 6 and found["all"]["negative"] == pytest.approx(2 / 6)
    assert found["hard"]["mean"] == pytest.approx(-1.25) and found["hard"]["negative"] == 1
    assert found["middle"]["mean"] == 0.125
    assert found["easy"]["mean"] == 0.875 and found["easy"]["negative"] == 0
    assert len(found["all"]["histogram"]) == len(OMEGA_EDGES) + 1
    bins = dict(zip(("below", *OMEGA_EDGES), found["all"]["histogram"], strict=True))
    filled = {edge: round(share * 6) for edge, share in bins.items() if share}
    assert filled == {"below": 1, -0.5: 1, 0.0: 1, 0.25: 1, 0.75: 2}
    shuffled = torch.randperm(6)
    assert omega_summary(omega[shuffled], confidence[shuffled], 0.5) == found


def test_positions_of_equal_confidence_stay_in_one_third() -> None:
    found: Any = omega_summary(torch.tensor([0.5, 0.25]), torch.tensor([1.0, 1.0]), 0.5)
    assert found["hard"]["mean"] == 0.375 and "middle" not in found and "easy" not in found


def test_agreement_is_counted_where_somebody_is_wrong() -> None:
    #          right  same mistake  two mistakes  role wrong  student wrong
    ours = [0, 1, 2, 0, 1]
    theirs = [0, 1, 1, 1, 0]
    one_hot = torch.nn.functional.one_hot
    seen = Compared(
        one_hot(torch.tensor(ours), 3).float(),
        one_hot(torch.tensor(theirs), 3).float(),
        torch.zeros(5, dtype=torch.long),
    )
    counts = agreement_counts(seen)
    assert tuple(counts) == COUNTS
    found = agreement(counts)
    assert found == pytest.approx(
        {
            "positions": 5,
            "agreement": 2 / 5,
            "agreement_role_wrong": 1 / 3,
            "agreement_both_wrong": 1 / 2,
        }
    )


def test_a_model_agrees_with_itself() -> None:
    hidden, head = torch.randn(40, 8), Head(torch.randn(17, 8))
    sums: Counter[str] = Counter()
    batch = _batch(torch.randint(0, 17, (40,)))
    for seen in compared(Outputs(hidden=hidden, head=head), batch, HiddenSignal(hidden, head)):
        sums.update(agreement_counts(seen))
    found = agreement(dict(sums))
    assert found["agreement"] == found["agreement_both_wrong"] == 1.0


# --- texts ---------------------------------------------------------------------------------------


def test_bleu_is_what_a_hand_computes() -> None:
    """Candidate 1 2 3 4 5 6 1 beside 1 2 3 4 5 7 8 9: 5/7, 4/6, 3/5, 2/4; penalty exp(-1/7)."""
    counts = bleu_counts([1, 2, 3, 4, 5, 6, 1], [1, 2, 3, 4, 5, 7, 8, 9])
    assert [counts[f"matched_{n}"] for n in range(1, 5)] == [5, 4, 3, 2]
    assert [counts[f"written_{n}"] for n in range(1, 5)] == [7, 6, 5, 4]
    expected = (5 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25 * math.exp(1 - 8 / 7)
    assert bleu(counts) == pytest.approx(expected, rel=1e-12)


def test_bleu_clips_repeats_and_does_not_reward_length() -> None:
    """Papineni's example: "the" seven times beside a sentence with two of them: 2/7."""
    counts = bleu_counts([1] * 7, [1, 2, 3, 4, 1, 5])
    assert counts["matched_1"] == 2 and counts["written_1"] == 7
    text = [1, 2, 3, 4, 5]
    assert bleu(bleu_counts(text, text)) == pytest.approx(1)
    longer = bleu(bleu_counts([*text, 9, 9], text))
    assert longer == pytest.approx((5 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25)


def test_bleu_of_several_texts_is_of_summed_counts() -> None:
    pairs = [([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]), ([6, 7, 8, 9], [6, 7, 0, 9])]
    sums: Counter[str] = Counter()
    for candidate, reference in pairs:
        sums.update(bleu_counts(candidate, reference))
    assert bleu(sums) == pytest.approx((8 / 9 * 5 / 7 * 3 / 5 * 2 / 3) ** 0.25)
    assert bleu(bleu_counts([1, 2], [1, 2])) == 0.0


def test_draws_follow_the_distribution_and_their_key_alone() -> None:
    logits = torch.tensor([0.5, 0.2, 0.0, 0.3]).log().expand(4000, 4)
    uniforms = [uniform("text", 0, f"doc-{i}", 3) for i in range(4000)]
    assert all(0 <= u < 1 for u in uniforms)
    found = drawn(logits, uniforms)
    shares = torch.bincount(found, minlength=4) / 4000
    assert shares.tolist() == pytest.approx([0.5, 0.2, 0.0, 0.3], abs=0.025)
    assert shares[2] == 0
    assert drawn(logits[:1], uniforms[7:8]).item() == found[7].item()
    assert uniform("text", 0, "a", 1) != uniform("text", 0, "a", 2) != uniform("text", 1, "a", 2)


@pytest.mark.parametrize(("point", "token"), [(0.0, 0), (0.49, 0), (0.5, 1), (0.9999999, 1)])
def test_a_draw_is_where_its_number_points(point: float, token: int) -> None:
    assert drawn(torch.zeros(1, 2), [point]).item() == token


def test_an_entry_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    assert [drawn(logits, [u]).item() for u in (0.0, 0.5, 1 - 2**-53)] == [1, 1, 1]


# --- what they are called, and what a job may ask for --------------------------------------------


def test_nested_numbers_become_metrics() -> None:
    found = metrics({"omega": {"mean": 0.5, "all": {"histogram": [0.25, 0.75]}}})
    assert found == {
        "diagnostics/omega/mean": 0.5,
        "diagnostics/omega/all/histogram/00": 0.25,
        "diagnostics/omega/all/histogram/01": 0.75,
    }


def test_reports_load_no_torch() -> None:
    code = (
        "import sys, orchestrator.evaluation.diagnostics.report, "
        "orchestrator.evaluation.diagnostics.bleu; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _raw(*diagnostics: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": "a",
        "student": {"path": "x"},
        "roles": {"teacher": {"path": "y"}, "other": {"path": "z"}},
        "data": {"sources": [{"kind": "text", "path": "x"}], "context": 32},
        "objective": {"terms": [{"kind": "cross_entropy"}, {"kind": "forward_kl"}]},
        "training": {"steps": 100, **changes.pop("training", {})},
        "evaluation": {"diagnostics": list(diagnostics), **changes.pop("evaluation", {})},
        **changes,
    }


def test_a_diagnostics_role_is_served() -> None:
    job = JobSpec.model_validate(_raw({"kind": "omega", "role": "other"}))
    assert job.used_roles == ("teacher", "other")
    assert JobSpec.model_validate(_raw({"kind": "omega"})).used_roles == ("teacher",)


NOISE, TEXT = {"kind": "gradient_noise"}, {"kind": "precision_recall"}
ALONE = {"terms": [{"kind": "cross_entropy"}]}
FEATURES = {
    "student": {"path": "x", "task": "classifier"},
    "roles": {"teacher": {"path": "y", "task": "classifier"}},
    "data": {"sources": [{"kind": "csv", "path": "x", "format": {"kind": "features"}}]},
}

WITHOUT = {"kind": "features", "label": None}
UNLABELLED = {
    **FEATURES,
    "data": {"sources": [{"kind": "csv", "path": "x", "format": WITHOUT}]},
    "objective": {"terms": [{"kind": "forward_kl"}]},
}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (_raw(NOISE, training={"zero": 3}), r"0\.kind: is gradient_noise.*training\.zero is 3"),
        (
            _raw({"kind": "gradient_norm_by_layer"}, training={"zero": 3}),
            r"0\.kind: is gradient_norm_by_layer.*Set training\.zero to 2",
        ),
        (
            _raw({**NOISE, "batches": 5}, training={"workers": 2, "global_batch": 16}),
            r"0\.batches: is 5, and training\.workers is 2.*Set it to 6",
        ),
        (_raw({**NOISE, "batches": 1}), r"greater than or equal to 2"),
        (_raw({"kind": "omega", "role": "nobody"}), r"0\.role: is 'nobody' \(defined: teacher"),
        (_raw({"kind": "omega"}, objective=ALONE), r"0\.role: is absent, and evaluation compares"),
        (_raw({"kind": "omega", "lam": 1.5}), r"less than or equal to 1"),
        (_raw({**TEXT, "tokens": 30}), r"0\.tokens: is 30 after prompts of 16.*context is 32"),
        (_raw({"kind": "omega"}, TEXT, pool="none"), r"1\.kind: is precision_recall.*pool is none"),
        (
            _raw({"kind": "omega", "role": "other"}, pool="none"),
            r"0\.kind: is omega, which asks other what no label has answered",
        ),
        (_raw({"kind": "omega"}, {"kind": "omega"}), r"diagnostics\.1\.name: is 'omega', as that"),
        (_raw(NOISE, **UNLABELLED), r"0\.kind: is gradient_noise, which reads labels.*label: null"),
        (_raw({"kind": "omega"}, **UNLABELLED), r"0\.kind: is omega, which reads labels"),
        (_raw(TEXT, **FEATURES), r"0\.kind: is precision_recall with prompts, and a classifier"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(
    raw: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        JobSpec.model_validate(raw)


def test_what_labels_have_answered_needs_no_pool() -> None:
    raw = _raw({"kind": "omega"}, {"kind": "fidelity"}, pool="none")
    assert len(JobSpec.model_validate(raw).evaluation.diagnostics) == 2


def test_likeness_needs_no_labels() -> None:
    norms = {"kind": "gradient_norm_by_layer"}
    assert JobSpec.model_validate(_raw({"kind": "fidelity"}, norms, **UNLABELLED))
    assert agreement({"positions": 4.0, "same": 1.0}) == {"positions": 4.0, "agreement": 0.25}


def test_a_report_shows_the_latest_numbers_and_escapes_names() -> None:
    def points(*values: float) -> tuple[Point, ...]:
        return tuple(Point(step, 0, value) for step, value in enumerate(values))

    history = replace(
        history_of([]),
        metrics={
            "diagnostics/omega/mean": points(0.5, 0.25),
            "diagnostics/omega/all/histogram/00": points(0.25),
            "diagnostics/omega/all/histogram/01": points(0.75),
            "diagnostics/norms/<b>layers.0": points(2.0),
            "held_out/kl": points(1.0),
        },
    )
    page = render(history, {})
    assert "<dt>mean</dt><dd>0.25</dd>" in page
    assert "<dt>all, histogram</dt><dd>▃█  25.0%, 75.0%</dd>" in page
    assert "&lt;b&gt;layers.0" in page and "<b>layers" not in page
    assert "Diagnostics" not in render(history_of([]), {})


def test_a_line_of_the_terminal_names_them_only() -> None:
    found = {"omega": {"mean": 0.5}, "fidelity": {"bleu": 0.1}}
    alone = event_text(Evaluated("a", 3, {"diagnostics": found}, {}))
    assert alone == "a: step 3, diagnostics: omega, fidelity"
    beside = event_text(Evaluated("a", 3, {"kl": 0.25, "diagnostics": found}, {}))
    assert beside == "a: step 3, held out: kl 0.25; diagnostics: omega, fidelity"
