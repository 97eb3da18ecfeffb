"""Data that change between epochs: what a hook says is checked, agreed upon and kept."""

import numpy as np
import pytest
import torch

from orchestrator.data import SampleStore
from orchestrator.data.tokenise import Sample
from orchestrator.errors import SpecError
from orchestrator.students import condensing
from orchestrator.students.condensing import Changing
from strategies.samples import Blend, Change
from strategies.specs import HookSpec

CPU = torch.device("cpu")


def changing(change: Change, *, blendable: bool = True) -> Changing:
    spec = HookSpec(kind="import", target="os:getcwd")
    mask = np.array([False, True])
    words = [np.array([i, i], np.float32).view(np.int32) for i in range(6)]
    store = SampleStore.of([Sample(str(i), w, mask) for i, w in enumerate(words)], "v")
    made = Changing(spec, store, blendable=blendable)
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
