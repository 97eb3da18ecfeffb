"""Data that change between epochs: what a hook says is checked, agreed upon and kept."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.data import SampleStore, collate
from orchestrator.data.tokenise import Sample
from orchestrator.errors import CheckpointError, SpecError
from orchestrator.students import condensing
from orchestrator.students.changing import kept, take_up
from orchestrator.students.condensing import Changing
from strategies.contract import Batch, DenseSignal, Outputs
from strategies.objective import build_objective
from strategies.progress import Progress
from strategies.samples import Blend, Change
from strategies.specs import HookSpec, ObjectiveSpec

CPU = torch.device("cpu")


def changing(
    change: Change,
    *,
    blendable: bool = True,
    unweighable: str | None = None,
    measure: Any = "student_entropy",
) -> Changing:
    spec = HookSpec(kind="import", target="os:getcwd", measure=measure)
    mask = np.array([False, True])
    words = [np.array([i, i], np.float32).view(np.int32) for i in range(6)]
    store = SampleStore.of([Sample(str(i), w, mask) for i, w in enumerate(words)], "v")
    made = Changing(spec, store, blendable=blendable, unweighable=unweighable)
    made._hook = lambda epoch: change
    return made


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condensing, "_summed", lambda mine, device: mine)
    monkeypatch.setattr(condensing, "gathered", lambda mine: mine)


def test_members_of_any_whole_type_come_back_as_they_were() -> None:
    first = changing(Change(np.array([1, 2, 5], np.int32)))
    assert first.epoch_over(1, CPU)
    again = changing(Change(np.array([0])))
    again.restore(first.state())
    assert again.membership.members(1).tolist() == [1, 2, 5]


def job_that(between: dict[str, Any] | None) -> Any:
    objective = ObjectiveSpec.model_validate(
        {"terms": [{"kind": "cross_entropy"}], "between_epochs": between}
    )
    return SimpleNamespace(objective=objective)


def test_a_checkpoint_is_taken_up_only_where_data_change_in_the_same_way() -> None:
    hook = {"kind": "import", "target": "os:getcwd", "every": 2}
    first = changing(Change(np.array([1, 2, 5])))
    first.epoch_over(1, CPU)
    again = changing(Change(np.array([0])))
    known = json.loads(json.dumps(kept(first, job_that(hook))))
    take_up(again, job_that(hook), known, "at")
    assert again.membership.members(1).tolist() == [1, 2, 5]
    take_up(None, job_that(None), kept(None, job_that(None)), "at")
    for other in (
        None,
        {**hook, "every": 1},
        {"kind": "condense", "every": 1, "keep": 0.5, "stages": 1},
    ):
        with pytest.raises(CheckpointError, match=r"objective\.between_epochs of that run is \{"):
            take_up(again, job_that(other), known, "at")
    with pytest.raises(CheckpointError, match=r"of that run is null, and of this job \{"):
        take_up(again, job_that(hook), None, "at")


@pytest.mark.parametrize("members", [[], [2, 1], [1, 1], [-1, 2], [3, 6]])
def test_members_that_are_not_some_of_the_data_are_refused(members: list[int]) -> None:
    with pytest.raises(SpecError, match=r"objective\.between_epochs"):
        changing(Change(np.array(members, np.int64))).epoch_over(1, CPU)


def test_ranks_that_decide_differently_are_all_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condensing, "gathered", lambda mine: torch.cat([mine, mine + 1]))
    with pytest.raises(SpecError, match="another decision on each rank"):
        changing(Change(np.array([1, 2]))).epoch_over(1, CPU)


def test_blends_are_kept_and_refused_where_nothing_can_be_blended() -> None:
    change = Change(np.array([1, 2]), {1: Blend(3, 0.75)})
    blended = changing(change)
    blended.epoch_over(1, CPU)
    assert blended.store.tokens(1).view(np.float32).tolist() == [1.5, 1.5]
    with pytest.raises(SpecError, match="only features with a pool"):
        changing(change, blendable=False).epoch_over(1, CPU)


def test_blends_stay_where_a_later_decision_says_nothing_of_them() -> None:
    made = changing(Change(np.array([1, 2]), {1: Blend(3, 0.75)}))
    made.epoch_over(1, CPU)
    made._hook = lambda epoch: Change(epoch.members, None)
    made.epoch_over(2, CPU)
    assert made.store.tokens(1).view(np.float32).tolist() == [1.5, 1.5]
    made._hook = lambda epoch: Change(epoch.members)
    made.epoch_over(3, CPU)
    assert made.store.tokens(1).view(np.float32).tolist() == [1.0, 1.0]


# --- weights -------------------------------------------------------------------------------------


def test_weights_are_those_of_samples_wherever_their_positions_are() -> None:
    made = changing(Change(np.arange(6), weights={1: 2.0, 4: 0.25}))
    assert collate(made.store, [(1,), (0,)], 4).weights is None
    made.epoch_over(1, CPU)
    weights = collate(made.store, [(1, 0), (4,)], 5).weights
    assert weights is not None and weights.dtype == np.float32
    assert weights.tolist() == [[2.0, 2.0, 1.0, 1.0, 1.0], [0.25, 0.25, 1.0, 1.0, 1.0]]


def test_weights_outlive_a_stop_and_a_decision_that_says_nothing_of_them() -> None:
    made, again = (changing(Change(np.arange(6), weights={1: 2.0})) for _ in range(2))
    made.epoch_over(1, CPU)
    again.restore(json.loads(json.dumps(made.state())))
    for one in (made, again):
        assert one.store.weights is not None and one.store.weights.tolist() == [1, 2, 1, 1, 1, 1]
    made._hook = lambda epoch: Change(epoch.members, weights=None)
    made.epoch_over(2, CPU)
    assert made.store.weights is not None
    made._hook = lambda epoch: Change(epoch.members)
    made.epoch_over(3, CPU)
    assert made.store.weights is None


@pytest.mark.parametrize("weights", [{6: 1.0}, {-1: 1.0}, {1: 0.0}, {1: -1.0}, {1: float("nan")}])
def test_weights_of_nothing_or_that_are_none_are_refused(weights: dict[int, float]) -> None:
    with pytest.raises(SpecError, match="Weigh samples of the data, above 0"):
        changing(Change(np.arange(6), weights=weights)).epoch_over(1, CPU)


def test_weights_beside_a_term_that_knows_none_are_refused() -> None:
    made = changing(Change(np.arange(6), weights={1: 2.0}), unweighable="relational")
    with pytest.raises(SpecError, match="term relational does not count them"):
        made.epoch_over(1, CPU)


def test_ranks_that_weigh_differently_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def gathered(mine: torch.Tensor) -> torch.Tensor:
        seen.append(mine)
        return mine

    monkeypatch.setattr(condensing, "gathered", gathered)
    for weight in (2.0, 3.0):
        changing(Change(np.arange(6), weights={1: weight})).epoch_over(1, CPU)
    assert not torch.equal(*seen)


def test_what_is_noted_of_a_visit_is_what_was_asked_for() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    batch = Batch({}, torch.tensor([[0], [2]]), torch.tensor([[3], [5]]))
    made = changing(Change(np.arange(6)), measure="student_loss")
    made.watch(batch, Outputs(logits=logits))
    wanted = -torch.log_softmax(logits.double(), 1)[[0, 1], [0, 2]]
    assert made._book.value[[3, 5]].tolist() == pytest.approx(wanted.tolist(), rel=1e-6)


@pytest.mark.parametrize("where", [None, "role_right"])
def test_a_weighted_mean_is_that_of_its_definition(where: str | None) -> None:
    draw = torch.Generator().manual_seed(0)
    logits, theirs = (torch.randn(6, 5, generator=draw) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    labels[:3] = theirs.argmax(1)[:3]
    weights = torch.tensor([0.05, 0.1, 0.02, 0.03, 0.1, 0.04])  # their sum is below 1
    batch = Batch({}, labels[:, None], torch.arange(6)[:, None], weights=weights[:, None])
    terms = [{"kind": "cross_entropy"}, {"kind": "forward_kl", "temperature": 2.0, "where": where}]
    objective = build_objective(ObjectiveSpec.model_validate({"terms": terms}))
    signals: Any = {"teacher": DenseSignal(theirs)}
    leaf = logits.clone().requires_grad_()
    counts = objective.counts(batch, signals)
    numbers = objective.numbers(Progress(0, 10), objective.start())
    scales = {name: 1 / float(count) for name, count in counts.items()}
    loss, _ = objective.loss(Outputs(logits=leaf), batch, signals, numbers, scales)
    loss.backward()
    wide, w = logits.double().requires_grad_(), weights.double()
    nll = -torch.log_softmax(wide, 1)[torch.arange(6), labels]
    log_p, log_q = (torch.log_softmax(z.double() / 2, 1) for z in (theirs, wide))
    kl = 4 * (log_p.exp() * (log_p - log_q)).sum(1)
    right = (theirs.argmax(1) == labels).double() if where else torch.ones(6).double()
    wanted = (w * nll).sum() / w.sum() + (w * right * kl).sum() / (w * right).sum()
    wanted.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    torch.testing.assert_close(leaf.grad, wide.grad, rtol=1e-4, atol=1e-6, check_dtype=False)
