"""Improved Knowledge Distillation by Utilizing Backward Pass Knowledge (arXiv:2301.12006), and the
boundary-supporting samples of arXiv:1805.05532: samples that move, and the data that gain them."""

import json
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import digits
import numpy as np
import pytest
import tiny
import torch
from classifiers import engine_of
from fake_cache import MemoryLink
from pydantic import ValidationError
from served import EnginePool, asking
from torch import Tensor

from orchestrator.data import Order, Reading, SampleStore, end_to_end
from orchestrator.data.collation import collate_classes
from orchestrator.data.digits import documents
from orchestrator.data.membership import ExtendedStore
from orchestrator.data.tokenise import Sample
from orchestrator.models.forward import classify
from orchestrator.models.reference import mlp
from orchestrator.spec import JobSpec
from orchestrator.spec.diagnostics import LogitDistanceSpec
from orchestrator.students import moving
from orchestrator.students.batches import to_device
from orchestrator.students.diagnostics import distance
from orchestrator.students.moves import Mover
from orchestrator.students.moving import Moving
from orchestrator.students.places import FeaturePlaces
from strategies.contract import DenseSignal, Outputs
from strategies.moving import (
    ascended,
    class_difference,
    draws,
    has_moved,
    other_class,
    past_boundary,
    random_ways,
    size_in_epoch,
)
from strategies.objective import build_objective
from strategies.progress import Progress
from strategies.specs import AscendSpec, BoundarySpec, ObjectiveSpec

CPU = torch.device("cpu")
FLAT = Reading("features", (64,))


def ascent(**fields: Any) -> AscendSpec:
    whole = {"every": 2, "rounds": 2, "steps": 1, "size": 1e-3, **fields}
    return AscendSpec.model_validate({"kind": "ascend", **whole})


def boundary(**fields: Any) -> BoundarySpec:
    whole = {"every": 2, "rounds": 2, "steps": 20, **fields}
    return BoundarySpec.model_validate({"kind": "boundary", **whole})


def store_of(count: int) -> SampleStore:
    found = [record for _, record in documents(count)]
    words = [np.array(record["features"], np.float32).view(np.int32) for record in found]
    labels = [record["label"] for record in found]
    return SampleStore.of(
        [
            Sample(str(i), w, np.zeros(64, bool), label)
            for i, (w, label) in enumerate(zip(words, labels, strict=True))
        ],
        "v",
    )


def inputs(count: int = 200) -> Tensor:
    store = store_of(count)
    rows = np.stack([store.tokens(i) for i in range(count)])
    return torch.from_numpy(rows.view(np.float32).copy())


class House:
    """An untrained student and role over digits, in one process."""

    def __init__(self, rows: int = 32, cache: MemoryLink | None = None) -> None:
        engine = engine_of(digits.student(depth=1, activation="tanh"), FLAT, deterministic=True)
        self.role = engine._loaded.module
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(7)
            self.student = mlp(64, 10, width=16, depth=0, activation="tanh")
            for parameter in self.role.parameters():  # about as decided as a trained one
                parameter.mul_(2.0)
        self.pool = EnginePool(engine)
        self.mover = Mover(self.student, asking(self.pool, cache), FLAT, rows, CPU, store_of(1))

    def apart(self, x: Tensor) -> Tensor:
        """[R] float64: |S - T|^2."""
        with torch.no_grad():
            ours, theirs = (
                classify(module, {"features": x}).double() for module in (self.student, self.role)
            )
        return (ours - theirs).square().sum(1)

    def moved(self, spec: AscendSpec | BoundarySpec, x: Tensor, round_: int = 1) -> Tensor:
        return self.mover.moved(spec, FeaturePlaces(FLAT, x), torch.arange(len(x)), round_)


# --- the maximisation ----------------------------------------------------------------------------


@pytest.mark.parametrize("normalised", [True, False])
def test_a_small_step_takes_student_and_role_apart_for_nearly_all_samples(
    normalised: bool,
) -> None:
    house, x = House(), inputs()
    there = house.moved(ascent(size=1e-2 if normalised else 1e-3, normalised=normalised), x)
    further = house.apart(there) > house.apart(x)
    assert further.double().mean() >= 0.99


def test_a_step_goes_along_the_gradient_of_both_networks() -> None:
    house, x = House(), inputs(40)
    for network in (house.student, house.role):
        network.double()
    wide = x.double().requires_grad_()
    ours, theirs = (classify(n, {"features": wide}) for n in (house.student, house.role))
    (wanted,) = torch.autograd.grad((ours - theirs).square().sum(), wide)
    for network in (house.student, house.role):
        network.float()
    got = (house.moved(ascent(size=1.0, normalised=False), x) - x).double()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_of_probabilities_the_softened_distance_is_climbed() -> None:
    house, x = House(), inputs(40)
    spec = ascent(size=1.0, normalised=False, output="probabilities", temperature=4.0)
    got = house.moved(spec, x) - x
    leaf = x.clone().requires_grad_()
    ours, theirs = (
        torch.softmax(classify(n, {"features": leaf}) / 4, 1) for n in (house.student, house.role)
    )
    (wanted,) = torch.autograd.grad((ours - theirs).square().sum(), leaf)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


def test_each_normalised_step_has_its_length_and_the_way_is_no_longer_than_all_of_them() -> None:
    house, x = House(), inputs(60)
    steps = 4
    places = [x]
    for count in range(1, steps + 1):
        places.append(house.moved(ascent(size=0.05, steps=count), x, round_=count))
    for before, after in pairwise(places):
        length = (after - before).norm(dim=1)
        torch.testing.assert_close(length, torch.full((60,), 0.05), rtol=1e-4, atol=1e-6)
    whole = (places[-1] - x).norm(dim=1)
    assert (whole <= steps * 0.05 * (1 + 1e-5)).all() and (whole > 0.5 * steps * 0.05).all()


def test_the_random_control_goes_as_far_in_a_straight_line_and_asks_nobody() -> None:
    house, x = House(), inputs(60)
    spec = ascent(size=0.05, steps=4, by="random")
    there, other = (house.moved(spec, x, round_) for round_ in (1, 2))
    torch.testing.assert_close((there - x).norm(dim=1), torch.full((60,), 0.2), rtol=1e-4, atol=0)
    assert not torch.equal(there, other) and house.pool.samples == 0
    part = FeaturePlaces(FLAT, x[10:20])
    assert torch.equal(there[10:20], house.mover.moved(spec, part, torch.arange(10, 20), 1))


def test_a_round_trip_a_step_and_no_more_than_the_window_at_once() -> None:
    house, x = House(rows=8), inputs(60)
    house.moved(ascent(steps=3), x)
    assert house.pool.samples == 3 * 60
    assert house.pool.most_open == house.pool.window


def test_what_is_moved_does_not_depend_on_how_it_is_cut() -> None:
    x = inputs(50)
    wide, narrow = (House(rows=rows).moved(ascent(steps=3, size=0.1), x) for rows in (50, 7))
    torch.testing.assert_close(wide, narrow, rtol=1e-5, atol=1e-5)


def test_moving_again_is_read_from_the_cache_and_ends_in_the_same_place() -> None:
    cache, x = MemoryLink(), inputs(20)
    first, second = House(cache=cache), House(cache=cache)
    places = [house.moved(ascent(steps=3, size=0.1), x) for house in (first, second)]
    assert torch.equal(*places)
    assert first.pool.samples == 60 and second.pool.samples == 0


def test_no_weight_changes_and_none_gets_a_gradient_and_modes_stay() -> None:
    house = House()
    house.student.train()
    networks = (house.student, house.role)
    before = [p.detach().clone() for network in networks for p in network.parameters()]
    house.moved(ascent(steps=2), inputs(30))
    house.moved(boundary(), inputs(30))
    after = [p for network in networks for p in network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in after)
    assert house.student.training


def test_a_gradient_of_zero_leaves_a_sample_where_it_is() -> None:
    x, flat = torch.randn(3, 4), torch.zeros(3, 4)
    assert torch.equal(ascended(x, flat, 1.0, normalised=True), x)
    assert torch.equal(past_boundary(x, torch.ones(3), flat, 0.5, 0.1), x)


def test_the_diagnostic_is_the_mean_squared_difference_here_and_where_the_steps_lead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house, store = House(), store_of(30)
    monkeypatch.setattr(distance, "mover_of", lambda job, engine, questions, store: house.mover)
    monkeypatch.setattr(distance, "gathered", lambda mine: mine)
    rows = [[(i,) for i in range(0, 16)], [(i,) for i in range(16, 30)] + [()]]
    site: Any = SimpleNamespace(
        role=lambda named: "teacher",
        job=None,
        engine=SimpleNamespace(device=CPU),
        questions=None,
        data=SimpleNamespace(train=store),
        vocabulary=10,
        held_out=SimpleNamespace(store=store, parts=rows),
    )
    spec = LogitDistanceSpec(kind="logit_distance", steps=3, size=0.1)
    found = distance.measure_logit_distance(site, spec, "w")
    here = house.apart(inputs(30)) / 10
    near = house.apart(house.moved(ascent(steps=3, size=0.1), inputs(30))) / 10
    wanted = [here.mean(), here.max(), near.mean(), near.max()]
    assert list(found.values()) == pytest.approx([float(value) for value in wanted], rel=1e-5)
    assert list(found) == ["mean", "worst", "mean_near", "worst_near"]
    assert found["mean_near"] > found["mean"]


# --- boundary-supporting samples -----------------------------------------------------------------


def test_a_whole_step_ends_just_past_the_border_of_a_linear_model() -> None:
    torch.manual_seed(1)
    weight = torch.randn(3, 5, dtype=torch.float64)
    x = torch.randn(50, 5, dtype=torch.float64)
    z = x @ weight.T
    ahead, behind = z.argmax(1), other_class(z, torch.rand(50, dtype=torch.float64))
    c = class_difference(ahead, behind, 3).double()
    there = past_boundary(x, (z * c).sum(1), c @ weight, rate=1.0, margin=0.1)
    left = ((there @ weight.T) * c).sum(1)
    torch.testing.assert_close(left, torch.full_like(left, -0.1))


def test_other_classes_are_drawn_as_likely_as_the_role_says() -> None:
    logits = torch.tensor([[1.0, 3.0, 0.0, -20.0]]).expand(20_000, 4)
    drawn = other_class(logits, draws(torch.arange(20_000), 1, 0))
    share = torch.bincount(drawn, minlength=4).double() / 20_000
    e = float(np.e)
    assert share[1] == 0
    assert float(share[0]) == pytest.approx(e / (e + 1), abs=0.01)
    assert float(share[2]) == pytest.approx(1 / (e + 1), abs=0.01)
    edges = torch.tensor([1e-300, 1 - 1e-16], dtype=torch.float64)
    assert other_class(torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]]), edges).tolist() == [1, 1]


def test_samples_end_in_another_class_near_its_border() -> None:
    house, x = House(), inputs(100)
    there = house.moved(boundary(steps=40, margin=0.05), x)
    with torch.no_grad():
        before, after = (classify(house.role, {"features": at}) for at in (x, there))
    flipped = before.argmax(1) != after.argmax(1)
    assert flipped.double().mean() >= 0.95
    first, second = after.topk(2, dim=1).values.unbind(1)
    assert float((first - second)[flipped].mean()) < float((before.topk(2, 1).values @
        torch.tensor([1.0, -1.0])).mean())  # fmt: skip


def test_a_sample_that_has_flipped_is_asked_about_no_more() -> None:
    house, x = House(), inputs(50)
    house.moved(boundary(steps=40, rate=1.0, margin=0.5), x)
    assert house.pool.samples < 50 * 10


def test_rounds_draw_other_classes() -> None:
    house, x = House(), inputs(30)
    there = [house.moved(boundary(), x, round_) for round_ in (1, 1, 2)]
    assert torch.equal(there[0], there[1]) and not torch.equal(there[0], there[2])


# --- data that gain samples ----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "gathered", lambda mine: mine)


def gaining(spec: AscendSpec | BoundarySpec, count: int = 12) -> Moving:
    return Moving(spec, store_of(count), House().mover, 0, 1)


def test_epochs_hold_the_data_then_moved_samples_too_and_in_the_end_the_data_alone() -> None:
    spec = ascent(every=2, rounds=2, steps=2, size=0.1)
    data = gaining(spec)
    order = Order(data.store, None, 4, 0, packing=False, membership=data.membership)
    sizes = [size_in_epoch(spec, 12, epoch) for epoch in range(8)]
    assert sizes == [12, 12, 24, 24, 24, 24, 12, 12]
    assert [order.steps_per_epoch(epoch) for epoch in range(8)] == [n // 4 for n in sizes]
    plain = Order(store_of(12), None, 4, 0, packing=False)
    held: list[np.ndarray] = []
    for epoch in range(8):
        rows = [sample for (sample,) in order.epoch_rows(epoch)]
        assert sorted(rows) == list(range(sizes[epoch]))
        own = [row for row in rows if row < 12]
        assert own == [sample for (sample,) in plain.epoch_rows(epoch)]
        if has_moved(spec, epoch):
            held.append(np.stack([data.store.tokens(i) for i in range(12, 24)]))
        assert data.epoch_over(epoch + 1, CPU) == (epoch % 2 == 1)
    assert np.array_equal(held[0], held[1]) and np.array_equal(held[2], held[3])
    assert np.array_equal(held[0], held[2])  # the student has not learned anything meanwhile
    way = held[0].view(np.float32) - np.stack([store_of(12).tokens(i) for i in range(12)]).view(
        np.float32
    )
    assert (np.linalg.norm(way, axis=1) > 0.1).all()


def test_part_of_the_data_may_be_moved_another_part_each_round() -> None:
    data = gaining(ascent(every=1, rounds=3, samples=5))
    found = []
    for epochs in (1, 2):
        data.epoch_over(epochs, CPU)
        store: Any = data.store
        found.append(store.origins.tolist())
        assert len(store) == 17 and data.membership.size(epochs) == 17
        for place, origin in enumerate(store.origins):
            near = store.tokens(12 + place).view(np.float32) - store.tokens(origin).view(np.float32)
            assert 0 < np.linalg.norm(near) < 2e-3
            assert store.id(12 + place) == f"{origin}+"
    assert found[0] != found[1] and all(len(set(one)) == 5 for one in found)


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 6, 7])
def test_what_was_restored_goes_on_as_if_nothing_had_happened(epochs: int) -> None:
    spec = ascent(every=2, rounds=2, steps=2, size=0.1)
    data, again = gaining(spec), gaining(spec)
    for done in range(1, epochs + 1):
        data.epoch_over(done, CPU)
    with torch.no_grad():  # its weights are others by then, and must not matter
        for parameter in again._mover.model.parameters():
            parameter.zero_()
    again.restore(json.loads(json.dumps(data.state())))
    assert again.membership.decided == data.membership.decided
    for epoch in range(data.membership.decided or 0):
        assert np.array_equal(again.membership.members(epoch), data.membership.members(epoch))
    last = (data.membership.decided or 1) - 1
    for sample in data.membership.members(last):
        assert np.array_equal(again.store.tokens(sample), data.store.tokens(sample))


def test_two_ranks_share_the_moving_and_have_the_same_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, whole = (
        ascent(every=1, rounds=1, samples=5),
        gaining(ascent(every=1, rounds=1, samples=5)),
    )
    whole.epoch_over(1, CPU)
    told: list[list[np.ndarray]] = []
    for rank in (0, 1):
        part = Moving(spec, store_of(12), House().mover, rank, 2)
        monkeypatch.setattr(part, "_tell", lambda mine, _role, _device: told.append(mine))
        part.epoch_over(1, CPU)
    assert [len(part) for part in told] == [3, 2]
    store: Any = whole.store
    torch.testing.assert_close(floats([*told[0], *told[1]]), floats(store.words))


def floats(words: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(list(words))).view(torch.float32)


def test_more_ranks_than_samples_leave_some_with_nothing_to_do() -> None:
    idle = Moving(ascent(every=1, rounds=1, samples=2), store_of(12), House().mover, 3, 4)
    idle._epochs = 1
    assert idle._moved() == ([], None)
    assert idle.state()["words"] == {"lengths": "", "words": ""}


def test_words_of_more_samples_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="words of 2 samples are given, and 1 are"):
        ExtendedStore.over(store_of(3), np.array([0]), [np.zeros(64, np.int32)] * 2)


# --- what learns from them -----------------------------------------------------------------------


def test_moved_samples_are_asked_about_and_only_terms_that_ask_learn_from_them() -> None:
    data = gaining(ascent(every=1, rounds=1, size=0.5))
    data.epoch_over(1, CPU)
    rows = [(0,), (13,), (), (12,)]  # one of the data, two moved, padding
    batch = to_device(collate_classes(data.store, rows, FLAT), CPU)
    assert batch.mask[:, 0].tolist() == [True, True, False, True]
    assert batch.with_labels.mask[:, 0].tolist() == [True, False, False, False]
    flat = end_to_end(data.store, rows)
    assert flat.wanted.sum() == 3
    sent = flat.tokens.reshape(3, 64)[1]
    assert np.array_equal(sent, data.store.tokens(13))
    assert not np.array_equal(sent, data.store.tokens(1))
    spec = ObjectiveSpec.model_validate(
        {"terms": [{"kind": "cross_entropy"}, {"kind": "forward_kl"}]}
    )
    objective, make = build_objective(spec), torch.Generator().manual_seed(0)
    logits, theirs = (torch.randn(3, 10, generator=make) for _ in range(2))
    leaf = logits.clone().requires_grad_()
    signals = {"teacher": DenseSignal(theirs)}
    counts = objective.counts(batch, signals)
    assert {name: float(count) for name, count in counts.items()} == {
        "cross_entropy": 1.0, "forward_kl": 3.0
    }  # fmt: skip
    numbers = objective.numbers(Progress(0, 10), objective.start())
    scales = {name: 1.0 / float(count) for name, count in counts.items()}
    loss, _ = objective.loss(Outputs(logits=leaf), batch, signals, numbers, scales)
    wide = logits.double().requires_grad_()
    log_q, log_p = torch.log_softmax(wide, 1), torch.log_softmax(theirs.double(), 1)
    kl = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    wanted = -log_q[0, data.store.label(0)] + kl
    loss.backward()
    wanted.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    torch.testing.assert_close(leaf.grad, wide.grad, rtol=1e-4, atol=1e-6, check_dtype=False)


def test_a_batch_of_the_data_alone_is_the_same_as_ever() -> None:
    data = gaining(ascent())
    batch = to_device(collate_classes(data.store, [(0,), ()], FLAT), CPU)
    assert batch.labelled is None and batch.with_labels is batch


# --- job files -----------------------------------------------------------------------------------


def raw_job(recipe: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    data = digits.data()
    data["sources"][0]["format"]["shape"] = [64]
    raw = digits.raw_job(
        roles={"teacher": digits.student()},
        data=data,
        objective={"recipe": {"kind": "backward_pass", "every": 1, "rounds": 1, **(recipe or {})}},
    )
    for section, change in changes.items():
        raw[section] = {**raw.get(section, {}), **change} if isinstance(change, dict) else change
    return raw


@pytest.mark.parametrize("kind", ["backward_pass", "boundary_samples"])
def test_a_recipe_is_its_two_terms_and_what_moves_samples(kind: str) -> None:
    objective = JobSpec.model_validate(raw_job({"kind": kind})).objective
    assert [term.kind for term in objective.terms] == ["cross_entropy", "forward_kl"]
    wanted = AscendSpec if kind == "backward_pass" else BoundarySpec
    assert isinstance(objective.between_epochs, wanted)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (raw_job(data=digits.data()), r"data\.sources\.0\.format\.shape: is absent.*\[64\]"),
        (raw_job(pool={"kind": "none"}), "pool: is none.*Give the job a pool"),
        (raw_job(training={"zero": 3}), r"training\.zero: is 3.*Set it to 2 or less"),
        (raw_job({"rounds": 3}), r"rounds: is 3 of 1 epochs.*epochs is 3.*Lower rounds"),
        (raw_job({"output": "probabilities",
                  "temperature": {"kind": "linear", "start": 4.0, "end": 1.0}}),
         "temperature is a schedule"),
        (raw_job(data=digits.data(), objective={"recipe": {"kind": "forward_kl"}},
                 evaluation={"diagnostics": [{"kind": "logit_distance"}]}),
         r"diagnostics\.0\.kind: is logit_distance.*no shape"),
        (raw_job({"steps": 0}), "steps"),
        (raw_job({"size": 0}), "size"),
        (raw_job(objective={"recipe": None, "terms": [{"kind": "cross_entropy"}],
                            "between_epochs": {"kind": "boundary", "every": 1, "rounds": 1,
                                               "steps": 1}}),
         r"role is 'teacher', which no term asks \(asked: none\)"),
        (raw_job(objective={"recipe": None, "terms": [{"kind": "decoupled"}],
                            "between_epochs": {"kind": "boundary", "every": 1, "rounds": 1,
                                               "steps": 1}}),
         r"terms\.0 \(decoupled\) asks a role and reads labels"),
    ],
)  # fmt: skip
def test_what_cannot_move_samples_is_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JobSpec.model_validate(raw)


def test_a_temperature_that_nothing_reads_is_refused() -> None:
    with pytest.raises(ValidationError, match="logits have none"):
        ascent(temperature=4.0)


def test_texts_without_classes_do_not_move() -> None:
    raw = raw_job()
    source = {"kind": "jsonl", "path": "x", "format": {"kind": "text"}}
    raw["data"] = {"sources": [source], "context": 16}
    model = {"architecture": tiny.architecture(), "tokenizer": "t"}
    raw |= {"student": model, "roles": {"teacher": model}}
    raw["objective"] = {
        "terms": [{"kind": "forward_kl"}],
        "between_epochs": {"kind": "ascend", "every": 1, "rounds": 1, "steps": 1, "size": 0.1},
    }
    with pytest.raises(ValidationError, match="texts without classes do not move"):
        JobSpec.model_validate(raw)


def test_random_ways_are_of_length_1_and_spread_evenly() -> None:
    ways = random_ways(torch.arange(4000), 16, 1, 0)
    torch.testing.assert_close(ways.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    assert ways.mean(0).abs().max() < 0.02
    covariance = ways.T @ ways / 4000 * 16
    assert (covariance - torch.eye(16)).abs().max() < 0.1
    assert not torch.equal(ways[:5], random_ways(torch.arange(5), 16, 2, 0))
    assert not torch.equal(ways[:5], random_ways(torch.arange(5), 16, 1, 1))
