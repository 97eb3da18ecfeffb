"""Precision and recall of texts: who is scored under whom."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orchestrator.data import SampleStore
from orchestrator.data.tokenise import Sample
from orchestrator.spec.diagnostics import PrecisionRecallSpec
from orchestrator.students.diagnostics import texts
from orchestrator.students.diagnostics.writing import Prompt

END = 3
ROLE, STUDENT = (np.random.default_rng(seed).dirichlet(np.ones(4), 4) for seed in (1, 2))
"""Bigrams: probability of each token after each."""
PARTS = [[Prompt("a", (0, 1)), Prompt("b", (2, 0))], [Prompt("c", (1, 1))]]
WRITTEN = [[[1, END, 2], [0, 2, 1]], [[2, 2, END]]]
HELD_OUT = [Sample("h", np.array([0, 2, 1, 3], np.int32), np.array([False, True, True, True]))]


def _nll(model: np.ndarray, store: SampleStore, rows: Any) -> tuple[float, int]:
    total, count = 0.0, 0
    for (index,) in (row for part in rows for row in part if row):
        tokens, wanted = store.tokens(index), store.loss_mask(index)
        for place in np.flatnonzero(wanted):
            total -= float(np.log(model[tokens[place - 1], tokens[place]]))
            count += 1
    return total, count


def _log_likelihoods(
    store: SampleStore, rows: Any, role: str | None, work: str
) -> dict[str, float]:
    nll, count = _nll(STUDENT, store, rows)
    found = {"nll": nll, "count": float(count)}
    return found if role is None else {**found, "teacher_nll": _nll(ROLE, store, rows)[0]}


def test_what_the_student_writes_is_scored_under_the_role_and_held_out_text_under_the_student(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(texts, "student_writes", lambda *_: WRITTEN)
    site: Any = SimpleNamespace(
        role=lambda name: "teacher",
        prompts=lambda count, tokens: PARTS,
        questions=SimpleNamespace(vocabulary=lambda role: 4),
        job=SimpleNamespace(seed=0),
        engine=None,
        end=END,
        held_out=SimpleNamespace(store=SampleStore.of(HELD_OUT), parts=[[(0,)]]),
        log_likelihoods=_log_likelihoods,
    )
    found = texts.measure_precision_recall(site, PrecisionRecallSpec(kind="precision_recall"), "w")

    def mean(model: np.ndarray, pairs: list[tuple[int, int]]) -> float:
        return float(np.mean([np.log(model[pair]) for pair in pairs]))

    # After each prompt up to the first end; prompts themselves are given, not written.
    drawn = [(1, 1), (1, END), (0, 0), (0, 2), (2, 1), (1, 2), (2, 2), (2, END)]
    assert found == {
        "written_tokens": 8.0,
        "precision": pytest.approx(mean(ROLE, drawn), rel=1e-12),
        "own": pytest.approx(mean(STUDENT, drawn), rel=1e-12),
        "recall": pytest.approx(mean(STUDENT, [(0, 2), (2, 1), (1, 3)]), rel=1e-12),
    }
