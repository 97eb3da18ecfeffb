"""Gradients of a classifier's confidence: what a role serves, what the student's side computes of
the same network, the distance of the two, and what pulls the student's weights."""

from typing import Any

import digits
import numpy as np
import pytest
import tiny
import torch
from classifiers import BERT, answered, engine_of, features, request
from pydantic import ValidationError
from torch import Tensor, nn

from orchestrator.data import Reading, inputs_of
from orchestrator.errors import SpecError
from orchestrator.models.forward import classify
from orchestrator.models.gradients import confidence_gradients, placing
from orchestrator.planner.layer_maps import LayerMaps
from orchestrator.signals.cut import joined, trimmed
from orchestrator.signals.records import INPUT, GradientsAsk, Reply
from orchestrator.spec import JobSpec
from orchestrator.students.inside import Inside
from orchestrator.students.module import StudentModule
from strategies.contract import IGNORED, Batch, GradientsSignal, Outputs
from strategies.features import gradient_distance
from strategies.objective import build_objective
from strategies.pairs import Pair
from strategies.progress import Progress
from strategies.specs import FeatureTermSpec, ObjectiveSpec

FLAT = Reading("features", (64,))
TEXTS = [np.arange(5, 5 + n, dtype=np.int32) for n in (4, 7, 1)]


def ask(*paths: str, by_token: bool = False) -> GradientsAsk:
    return GradientsAsk(paths or (INPUT,), "float32", by_token)


def score(module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """[R] float64: log of the largest probability, by another formula than the code's."""
    z = classify(module, inputs).double()
    return z.max(1).values - torch.logsumexp(z, 1)


def test_a_served_gradient_equals_finite_differences() -> None:
    engine = engine_of(digits.student(depth=1), FLAT)
    module = engine._loaded.module.double()
    samples = features(5)
    got = answered(engine, ask(), samples).gradients[INPUT].double()
    x = torch.from_numpy(inputs_of(FLAT, samples, 64)["features"]).double()
    step = 1e-5
    for column in range(0, 64, 7):
        move = torch.zeros(64, dtype=torch.float64)
        move[column] = step
        both = [score(module, {"features": x + sign * move}) for sign in (1, -1)]
        wanted = (both[0] - both[1]) / (2 * step)
        torch.testing.assert_close(got[:, column], wanted, rtol=1e-4, atol=1e-5)


def test_a_text_has_a_gradient_at_each_of_its_tokens_whoever_shares_the_forward() -> None:
    engine = engine_of({"architecture": {**BERT, "hidden_act": "gelu"}, "attention": "eager"},
                       Reading())  # fmt: skip
    whole = answered(engine, ask(by_token=True), TEXTS).gradients[INPUT]
    assert whole.shape == (3, 16, 7)
    for row, sample in enumerate(TEXTS):
        alone = answered(engine, ask(by_token=True), [sample]).gradients[INPUT][0]
        torch.testing.assert_close(whole[row, :, : len(sample)], alone, rtol=1e-4, atol=1e-6)
        assert not whole[row, :, len(sample) :].any()
        assert (alone.norm(dim=0) > 0).all()


def test_gradients_of_texts_survive_the_cut_into_samples() -> None:
    arrays = {INPUT: np.random.default_rng(0).standard_normal((3, 2, 7)).astype(np.float32)}
    for row, sample in enumerate(TEXTS):
        arrays[INPUT][row, :, len(sample) :] = 0
    asked = ask(by_token=True)
    parts = [
        trimmed(asked, {INPUT: arrays[INPUT][i : i + 1]}, len(sample))
        for i, sample in enumerate(TEXTS)
    ]
    assert [part[INPUT].shape[-1] for part in parts] == [4, 7, 1]
    assert np.array_equal(joined(parts)[INPUT], arrays[INPUT])


def test_layers_have_gradients_too() -> None:
    engine = engine_of(digits.student(depth=1), FLAT)
    found = answered(engine, ask(INPUT, "blocks.0"), features(3)).gradients
    assert found["blocks.0"].shape == (3, 32)
    assert (found["blocks.0"].norm(dim=1) > 0).all()


@pytest.mark.parametrize(
    ("reading", "asked", "message"),
    [
        (Reading("features"), ask(), "has no layer"),
        (FLAT, ask("nowhere"), "has no layer nowhere"),
        (FLAT, ask(by_token=True), "those of features are not"),
    ],
)
def test_what_a_role_cannot_differentiate_is_refused(
    reading: Reading, asked: GradientsAsk, message: str
) -> None:
    engine = engine_of(digits.student(), reading)
    with pytest.raises((ValueError, SpecError), match=message):
        engine.forward(request(asked, features(2)))


def test_an_answer_that_is_not_finite_is_refused() -> None:
    from orchestrator.signals.encodings import decode

    arrays = {INPUT: np.full((1, 64), np.nan, np.float32)}
    with pytest.raises(ValueError, match="not finite"):
        decode(Reply("r", "teacher", ask(), arrays, 10, "f"), None, positions=1)


# --- the student's side --------------------------------------------------------------------------


def seen_by(module: nn.Module, inputs: dict[str, Tensor], *paths: str) -> Outputs:
    """What terms see of a student that runs on some samples, the last of which bears no loss."""
    rows = next(iter(inputs.values())).shape[0]
    targets = torch.zeros(rows, 1, dtype=torch.int64)
    targets[-1] = IGNORED
    index = torch.arange(rows)[:, None]
    student = StudentModule(module, None, None, Inside(LayerMaps(gradients=paths or (INPUT,)), 0))
    found: list[Outputs] = []

    def consume(outputs: Outputs) -> Tensor:
        found.append(outputs)
        return torch.zeros(())

    student(Batch(inputs, targets, index), consume)
    return found[0]


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_student_and_role_of_one_network_have_the_same_gradients(text: bool, frozen: bool) -> None:
    bert = {"architecture": BERT, "attention": "eager"}
    reading = Reading() if text else FLAT
    engine = engine_of(bert if text else digits.student(depth=1), reading)
    samples = TEXTS if text else features(4)
    wanted = answered(engine, ask(by_token=text), samples).gradients[INPUT]
    module = engine._loaded.module
    if frozen:
        for parameter in module.parameters():
            parameter.requires_grad_(False)
    arrays = inputs_of(reading, samples, 64)
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    module.eval()
    got = seen_by(module, inputs).gradients[INPUT]
    torch.testing.assert_close(got.detach(), wanted[:-1], rtol=1e-4, atol=1e-6)


def test_nothing_of_the_model_is_changed() -> None:
    engine = engine_of(digits.student(depth=1), FLAT)
    module = engine._loaded.module
    x = torch.randn(3, 64)
    before = classify(module, {"features": x}).detach()
    with placing(module, (INPUT, "blocks.0"), INPUT, text=False) as places:
        logits = classify(module, {"features": x})
        confidence_gradients(logits, places, create_graph=False)
    assert torch.equal(logits, before) and not x.requires_grad
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


# --- the term ------------------------------------------------------------------------------------


class Smooth(nn.Module):
    """A small classifier with a curvature everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.num_labels = 3
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, features: Tensor) -> Tensor:
        """[R, 4] -> [R, 3]."""
        return self.second(torch.tanh(self.first(features)))


def loss_of(student: nn.Module, x: Tensor, theirs: Tensor, **term: Any) -> Tensor:
    """Mean of one term `input_gradients`, through the module that DeepSpeed wraps."""
    spec = ObjectiveSpec.model_validate({"terms": [{"kind": "input_gradients", **term}]})
    (name,) = spec.names
    objective = build_objective(spec, pairs={name: (Pair(INPUT, INPUT),)})
    signals = {"teacher.gradients": GradientsSignal({INPUT: theirs})}
    batch = Batch({"features": x}, torch.zeros(len(x), 1, dtype=torch.int64),
                  torch.arange(len(x))[:, None])  # fmt: skip
    counts = objective.counts(batch, signals)
    scales = {name: 1.0 / max(float(counts[name]), 1.0)}
    numbers = objective.numbers(Progress(0, 10), objective.start())
    module = StudentModule(student, None, None, Inside(LayerMaps(gradients=(INPUT,)), 0))
    return module(
        batch, lambda outputs: objective.loss(outputs, batch, signals, numbers, scales)[0]
    )


def oracle(student: nn.Module, x: Tensor, theirs: Tensor) -> Tensor:
    """The same in float64, sample by sample, from the paper's equation with max p itself."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for sample, g_t in zip(x, theirs, strict=True):
        if not g_t.any():
            continue
        sample = sample.clone().requires_grad_()
        p = torch.softmax(student(sample[None]), 1).max()
        (g_s,) = torch.autograd.grad(p, sample, create_graph=True)
        total = total + (g_s / g_s.norm() - g_t / g_t.norm()).square().sum()
        count += 1
    return total / count


def test_the_term_and_its_pull_on_the_weights_are_those_of_the_papers_equation() -> None:
    torch.manual_seed(2)
    student, x = Smooth().double(), torch.randn(6, 4, dtype=torch.float64)
    theirs = torch.randn(6, 4, dtype=torch.float64)
    theirs[2] = 0
    wanted = oracle(student, x, theirs)
    pull = torch.autograd.grad(wanted, list(student.parameters()), allow_unused=True)
    got = loss_of(student, x, theirs)
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    got.backward()
    for parameter, one in zip(student.parameters(), pull, strict=True):
        zero = torch.zeros_like(parameter)
        own = zero if parameter.grad is None else parameter.grad
        torch.testing.assert_close(own, zero if one is None else one, rtol=1e-5, atol=1e-7)
    assert student.first.weight.grad is not None and student.first.weight.grad.abs().max() > 1e-3


def test_one_network_twice_gives_zero_and_the_scale_of_gradients_does_not_matter() -> None:
    torch.manual_seed(3)
    student, x = Smooth().double(), torch.randn(5, 4, dtype=torch.float64)
    with placing(student, (INPUT,), INPUT, text=False) as places:
        own = confidence_gradients(classify(student, {"features": x}), places, create_graph=False)
    assert float(loss_of(student, x, own[INPUT]).detach()) < 1e-12
    theirs = torch.randn(5, 4, dtype=torch.float64)
    plain, larger = (float(loss_of(student, x, scale * theirs).detach()) for scale in (1.0, 1e3))
    assert 0 <= plain <= 4 and larger == pytest.approx(plain, rel=1e-9)
    opposite = float(loss_of(student, x, -own[INPUT]).detach())
    assert opposite == pytest.approx(4.0, rel=1e-6)


def test_a_role_without_any_gradient_costs_nothing() -> None:
    student, x = Smooth().double(), torch.randn(2, 4, dtype=torch.float64)
    loss = loss_of(student, x, torch.zeros(2, 4, dtype=torch.float64))
    assert float(loss.detach()) == 0
    loss.backward()


def test_the_first_token_stands_for_a_text() -> None:
    ours, theirs = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    apart = gradient_distance(ours, theirs)
    assert apart.shape == (2, 5)
    assert torch.equal(gradient_distance(ours[..., :1], theirs[..., :1]), apart[:, :1])


def test_the_recipe_is_its_three_terms() -> None:
    spec = ObjectiveSpec.model_validate({"recipe": {"kind": "gradient_kd", "alpha": 0.25}})
    assert [term.kind for term in spec.terms] == ["cross_entropy", "forward_kl", "input_gradients"]
    assert [term.weight for term in spec.terms] == [0.75, 0.25, 1.0]
    layers = {"encoder.layer.*.output": "encoder.layer.*.output"}
    spec = ObjectiveSpec.model_validate({"recipe": {"kind": "gradient_kd", "layers": layers}})
    last = spec.terms[-1]
    assert isinstance(last, FeatureTermSpec) and last.model_dump()["tokens"] == "first"
    assert {ask.key for ask in build_objective(spec).asks()} == {"teacher", "teacher.gradients"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"zero": 3}}, r"training\.zero: is 3.*differentiates it twice"),
        (
            {"training": {"gradient_checkpointing": True}},
            r"checkpointing.*Set it to false",
        ),
    ],
)
def test_a_student_that_cannot_be_differentiated_twice_is_refused(
    change: dict[str, Any], message: str
) -> None:
    raw = digits.raw_job(
        roles={"teacher": digits.student()}, objective={"recipe": {"kind": "gradient_kd"}}
    )
    raw["training"] |= change["training"]
    with pytest.raises(ValidationError, match=message):
        JobSpec.model_validate(raw)


def test_a_text_student_whose_attention_has_no_second_derivative_is_told_which_has() -> None:
    bert = {"architecture": BERT, "tokenizer": str(tiny.TOKENIZER), "task": "classifier"}
    raw = digits.raw_job(
        student=bert,
        roles={"teacher": bert},
        data={
            "sources": [
                {"kind": "import", "target": "os:getcwd", "format": {"kind": "labelled_text"}}
            ]
        },
        objective={"recipe": {"kind": "gradient_kd"}},
    )
    told = r"student\.attention: is sdpa, which has no second derivative.*Set it to eager"
    with pytest.raises(ValidationError, match=told):
        JobSpec.model_validate(raw)
    JobSpec.model_validate({**raw, "student": {**bert, "attention": "eager"}})
