"""Lists by popularity: against brute force, on a rank, and what is refused."""

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranking import batch_of, histories, popularity, raw_job, write_csv
from torch import Tensor, nn

from orchestrator.data import prepare
from orchestrator.errors import SpecError
from orchestrator.evaluation.diagnostics.ranking import list_means, list_sums
from orchestrator.evaluation.diagnostics.report import metrics
from orchestrator.models.ranking import mf
from orchestrator.spec import JobSpec
from orchestrator.spec.diagnostics import RankingSpec
from orchestrator.students.asked import Answered, Asker
from orchestrator.students.batches import to_device
from orchestrator.students.diagnostics.ranking import measure_ranking
from orchestrator.students.diagnostics.suite import check_diagnostics
from orchestrator.students.module import StudentModule
from strategies.contract import DenseSignal
from strategies.popularity import strata_of
from strategies.rankers import users_of

USERS, ITEMS = 12, 10
CPU = torch.device("cpu")


def brute(
    scores: Tensor, owned: list[list[int]], held: list[list[int]], stratum: list[int], k: int
) -> dict[str, Any]:
    """The same numbers, user by user and item by item."""
    names = ["", *sorted(set(stratum))]
    recalls: dict[Any, list[float]] = {name: [] for name in names}
    gains: dict[Any, list[float]] = {name: [] for name in names}
    shown = [0] * len(set(stratum))
    for row, (own, out) in enumerate(zip(owned, held, strict=True)):
        left = [item for item in range(len(stratum)) if item not in own]
        best = sorted(left, key=lambda item: (-float(scores[row, item]), item))[:k]
        for item in best:
            shown[stratum[item]] += 1
        for name in names:
            wanted = [item for item in out if name == "" or stratum[item] == name]
            if not wanted:
                continue
            hits = [place for place, item in enumerate(best) if item in wanted]
            ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))
            recalls[name].append(len(hits) / len(wanted))
            gains[name].append(sum(1 / math.log2(place + 2) for place in hits) / ideal)
    found: dict[str, Any] = {}
    for name in names:
        part: dict[str, float] = {}
        if recalls[name]:
            part[f"recall_at_{k}"] = sum(recalls[name]) / len(recalls[name])
            part[f"ndcg_at_{k}"] = sum(gains[name]) / len(gains[name])
        if name == "":
            found |= part
            continue
        part["items"] = stratum.count(name)
        part[f"listed_at_{k}"] = shown[name] / max(1, sum(shown))
        found[f"stratum_{name + 1}"] = part
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 3, ITEMS])
def test_lists_are_those_of_brute_force(seed: int, k: int) -> None:
    owned = histories(USERS, ITEMS, seed)
    owned[0] = list(range(ITEMS))  # nothing is left for this one
    make = torch.Generator().manual_seed(seed)
    scores = torch.randint(4, (USERS, ITEMS), generator=make).float()  # with ties
    held = [
        [i for i in range(ITEMS) if i not in own and torch.rand(1, generator=make) < 0.3]
        for own in owned
    ]
    stratum = strata_of(popularity(owned, ITEMS), 3)
    mask = torch.zeros(USERS, ITEMS, dtype=torch.bool)
    for row, items in enumerate(held):
        mask[row, items] = True
    mine = users_of(batch_of(owned, range(USERS))).owns(ITEMS)
    found = list_means(list_sums(scores, mine, mask, stratum, [k]), stratum, [k])
    wanted = brute(scores, owned, held, stratum.tolist(), k)
    assert metrics(found) == pytest.approx(metrics(wanted), rel=1e-12)


def test_one_list_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    owned, held = torch.zeros(2, 1, 4, dtype=torch.bool)
    owned[0, 0] = True  # 1 and 2 are listed, 2 is held out
    held[0, [2, 3]] = True
    stratum = torch.tensor([0, 0, 1, 1])
    found = list_means(list_sums(scores, owned, held, stratum, [2]), stratum, [2])
    assert found["recall_at_2"] == 0.5
    gain, ideal = 1 / math.log2(3), 1 + 1 / math.log2(3)
    assert found["ndcg_at_2"] == pytest.approx(gain / ideal)
    assert found["stratum_1"] == {"items": 2.0, "listed_at_2": 0.5}


# --- on a rank -----------------------------------------------------------------------------------


@dataclass
class Engine:
    """As much of an engine as lists need."""

    module: nn.Module
    device: torch.device = CPU


class Answering(Asker):
    """An `Asker` whose role says minus what the student says."""

    def answered(self, store: Any, parts: Any, asks: Any, work: str) -> Any:
        for rows in parts:
            batch = to_device(self.collate(store, rows), self.device)
            users = batch.inputs["users"][batch.mask[:, 0]]
            scores = -(STUDENT.user_vectors[users] @ STUDENT.item_vectors.T).detach()
            yield Answered(batch, {"teacher": DenseSignal(scores)} if asks else {}, None)


with torch.random.fork_rng():
    torch.manual_seed(4)
    STUDENT = mf(USERS, ITEMS, width=3)


def job(path: Path, **fields: Any) -> JobSpec:
    raw = raw_job(path, USERS, ITEMS)
    return JobSpec.model_validate(
        raw
        | {
            "roles": {"teacher": raw["student"]},
            "evaluation": {"diagnostics": [{"kind": "ranking", **fields}]},
        }
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    owned = histories(USERS, ITEMS, seed=1)
    owned[0] = list(range(ITEMS))  # every item is there
    rows = [(f"{u:02d}", i, 0) for u, items in enumerate(owned) for i in items]
    return write_csv(tmp_path / "x.csv", rows)


@pytest.mark.parametrize("cut", [2, 5])
def test_a_rank_measures_student_and_role_whatever_the_cut(
    path: Path, tmp_path: Path, cut: int
) -> None:
    from orchestrator.data import collation

    spec = RankingSpec(kind="ranking", cutoffs=[2, 4], role="teacher")
    described = job(path)
    data = prepare(described.data, None, str(tmp_path / "cache"))
    users = [(index,) for index in range(len(data.held_out))]
    parts = [users[start : start + cut] for start in range(0, len(users), cut)]
    parts[-1] = [*parts[-1], ()]  # filled up
    site: Any = SimpleNamespace(
        data=data,
        engine=Engine(StudentModule(STUDENT, None)),
        held_out=SimpleNamespace(store=data.held_out, parts=parts),
        asker=Answering(collation(described.data), None, CPU),
        exactly=lambda role: {role: None},
        sum_numbers=dict,
    )
    found = measure_ranking(site, spec, "w")
    assert found["users"] == len(users)
    stores = [data.held_out.tokens(i).tolist() for i in range(len(users))]
    owned = [words[2 : 2 + words[1]] for words in stores]
    held = [words[2 + words[1] :] for words in stores]
    numbers = [words[0] for words in stores]
    scores = (STUDENT.user_vectors[numbers] @ STUDENT.item_vectors.T).detach()
    stratum = strata_of(torch.from_numpy(data.popularity), 2).tolist()
    for k in (2, 4):
        for who, given in (({}, scores), ({"teacher": 0}, -scores)):
            wanted = metrics(brute(given, owned, held, stratum, k))
            place = metrics(found["teacher"] if who else found)
            assert {name: place[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"cutoffs": [3, 11]}, r"diagnostics\.0\.cutoffs.*is 11, and the data have 10 items.*Set"),
        ({"strata": 11, "cutoffs": [3]}, r"diagnostics\.0\.strata.*is 11, and the data have 10"),
    ],
)
def test_lists_longer_than_the_items_and_too_many_strata_are_refused(
    path: Path, tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    described = job(path, **fields)
    data = prepare(described.data, None, str(tmp_path / "cache"))
    with pytest.raises(SpecError, match=told):
        check_diagnostics(described, data, ())
