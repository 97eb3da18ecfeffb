"""A rank's questions to a role of another tokenizer, and what its terms then see."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from fake_client import FakeClient
from other_tokenizer import save_other_tokenizer
from torch import Tensor

from orchestrator.data import Crossing, SampleStore, collate, end_to_end
from orchestrator.data.tokenise import Sample
from orchestrator.data.tokenizer import load_tokenizer
from orchestrator.pool.source import SignalSource, pieces_of
from orchestrator.signals.records import HiddenAsk
from orchestrator.students.batches import to_device
from orchestrator.students.questions import Questions
from strategies.contract import Batch, DenseSignal, Outputs
from strategies.objective import build_objective
from strategies.specs import ObjectiveSpec

TEXTS = ["def f(x):\n    return x", "the big cat sat", "import os"]
ROWS = [(0, 2), (1,)]


@pytest.fixture(scope="module")
def store() -> SampleStore:
    backend = load_tokenizer(tiny.TOKENIZER).backend
    ids = [np.array([*backend.encode(text).ids, 0], np.int32) for text in TEXTS]
    samples = [Sample(f"d{i}", x, np.arange(len(x)) > 0) for i, x in enumerate(ids)]
    return SampleStore.of(samples)


def questions(client: FakeClient, **crossings: Crossing) -> Questions:
    port: Any = client
    source = SignalSource(port, None, "run/0", "run", {}, 1 << 20, 8)
    asks = {role: HiddenAsk("float32") for role in ("teacher", "peer")}
    tokenizer = str(tiny.TOKENIZER)
    return Questions(source, asks, dict.fromkeys(asks), 1, tokenizer=tokenizer, crossings=crossings)


def batch_of(store: SampleStore) -> Batch:
    return to_device(collate(store, ROWS, 40), torch.device("cpu"))


def test_the_same_tokenizer_is_asked_about_every_position(store: SampleStore) -> None:
    found = questions(FakeClient(8), teacher=Crossing(str(tiny.TOKENIZER)))
    batch = batch_of(store)
    asked = found.asked(batch, store, ROWS)
    assert asked is not None and asked["peer"] is batch
    assert torch.equal(asked["teacher"].targets, batch.targets)
    assert questions(FakeClient(8)).asked(batch, store, ROWS) is None


def test_another_is_asked_about_its_pairs_and_others_about_all(
    store: SampleStore, tmp_path: Path
) -> None:
    client = FakeClient(8)
    found = questions(client, teacher=Crossing(str(save_other_tokenizer(tmp_path / "other"))))
    batch = batch_of(store)
    names = found.ask_all("0.0", store, ROWS)
    wanted = {request.role: int(request.wanted.sum()) for request in client.open.values()}
    asked = found.asked(batch, store, ROWS)
    assert asked is not None and set(names) == {"teacher", "peer"}
    assert wanted == {"teacher": int(asked["teacher"].mask.sum()), "peer": int(batch.mask.sum())}
    assert 0 < wanted["teacher"] < wanted["peer"]
    assert not (asked["teacher"].mask & ~batch.mask).any()


def test_positions_that_the_role_does_not_read_have_no_partner(
    store: SampleStore, tmp_path: Path
) -> None:
    folder = str(save_other_tokenizer(tmp_path / "other"))
    whole = questions(FakeClient(8), teacher=Crossing(folder))
    short = questions(FakeClient(8), teacher=Crossing(folder, positions=6))
    batch = batch_of(store)
    counts = [
        int(found["teacher"].mask.sum())
        for found in (one.asked(batch, store, ROWS) for one in (whole, short))
        if found is not None
    ]
    assert 0 < counts[1] < counts[0]


def test_a_key_is_that_of_the_roles_own_tokens(store: SampleStore, tmp_path: Path) -> None:
    from orchestrator.data import CrossedStore

    tokenizer, folder = str(tiny.TOKENIZER), str(save_other_tokenizer(tmp_path / "other"))
    crossed = CrossedStore.open(store, tokenizer, Crossing(folder))

    def keys(samples: Any) -> list[bytes]:
        ask = HiddenAsk("float32")
        return [piece.want.key for piece in pieces_of(end_to_end(samples, [(1,)]), "f", ask)]

    own = load_tokenizer(folder)
    ids = np.array([*own.before, *own.backend.encode(TEXTS[1]).ids], np.int32)
    same_text = SampleStore.of([Sample("a", ids, ids > 0), Sample("b", ids, ids > 0)])
    assert keys(crossed) == keys(same_text) != keys(store)


# --- terms ---------------------------------------------------------------------------------------


def logits(seed: int, rows: int, width: int = 6) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).double()


def plain(keep: list[int]) -> Batch:
    targets = torch.tensor([[i if i in keep else -100 for i in range(5)]])
    return Batch({"position_ids": torch.arange(5)[None]}, targets, torch.zeros(1, 5).long())


def test_each_term_sees_the_positions_its_role_was_asked_about() -> None:
    terms = [{"kind": "cross_entropy"}, {"kind": "universal"}, {"kind": "forward_kl", "role": "p"}]
    objective = build_objective(ObjectiveSpec.model_validate({"terms": terms}))
    whole, pairs = plain([0, 1, 2, 3, 4]), plain([1, 4])
    student, peer, teacher = logits(0, 5), logits(1, 5), logits(2, 2, 9)
    signals = {"teacher": DenseSignal(teacher), "p": DenseSignal(peer)}
    asked = {"teacher": pairs, "p": whole}
    counts = {name: float(n) for name, n in objective.counts(whole, signals, asked).items()}
    assert counts == {"cross_entropy": 5, "universal": 2, "forward_kl": 5}
    numbers = {f"{name}.{field}": 1.0 for name in counts for field in ("weight", "temperature")}
    scales = dict.fromkeys(counts, 1.0)
    outputs = Outputs(logits=student.requires_grad_())
    _, totals = objective.loss(outputs, whole, signals, numbers, scales, asked)
    p, q = teacher.softmax(1), student[[1, 4]].softmax(1)
    q = torch.nn.functional.pad(q, (0, 3))
    wanted = (p.sort(1).values - q.sort(1).values).abs().sum()
    assert totals["universal"].item() == pytest.approx(wanted.item(), rel=1e-9)


def test_roles_of_one_term_are_asked_about_the_same_positions() -> None:
    mixed = {"kind": "mix", "roles": ["p"], "weights": [0.5, 0.5]}
    terms = [{"kind": "forward_kl", "target": [mixed]}]
    objective = build_objective(ObjectiveSpec.model_validate({"terms": terms}))
    asked = {"teacher": plain([1, 4]), "p": plain([0, 1, 2, 3, 4])}
    with pytest.raises(ValueError, match="give roles of one term one tokenizer"):
        objective.counts(asked["p"], {}, asked)
