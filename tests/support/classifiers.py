"""Classifiers behind their engine, and requests to them, without Ray."""

from typing import Any

import numpy as np
import tiny
import torch

from orchestrator.data import Flat, Reading
from orchestrator.pool.classifier import ClassifierEngine
from orchestrator.pool.engine import load_role
from orchestrator.pool.records import RoleLoad
from orchestrator.signals.encodings import decode
from orchestrator.signals.records import Reply, Request, SignalAsk
from orchestrator.spec.models import RoleSpec

NUMBERS = Reading("features")
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "num_labels": 3,
    "attention_probs_dropout_prob": 0.3,
}
LLAMA = {**tiny.architecture(), "num_labels": 3, "pad_token_id": 0}


def engine_of(
    raw: dict[str, Any], reading: Reading | None, *, deterministic: bool = False
) -> ClassifierEngine:
    """The engine of a role as a job would have it loaded."""
    spec = RoleSpec.model_validate({"task": "classifier", **raw})
    try:
        engine = load_role(RoleLoad("teacher", spec, deterministic, 3, reading))
    finally:
        torch.use_deterministic_algorithms(False)
    assert isinstance(engine, ClassifierEngine)
    return engine


def features(count: int, size: int = 64) -> list[np.ndarray]:
    """Samples of normal numbers."""
    values = np.random.default_rng(5).standard_normal((count, size)).astype(np.float32)
    return list(values.view(np.int32))


def request(ask: SignalAsk, samples: list[np.ndarray], unwanted: tuple[int, ...] = ()) -> Request:
    """Asks at the last word of each sample, but of the unwanted."""
    wanted = [np.arange(len(s)) == len(s) - 1 for s in samples]
    for index in unwanted:
        wanted[index][:] = False
    flat = Flat(
        np.concatenate(samples), np.array([len(s) for s in samples], np.int32),
        np.concatenate(wanted),
    )  # fmt: skip
    return Request("r", "teacher", "job", ask, flat.tokens, flat.lengths, flat.wanted)


def answered(engine: ClassifierEngine, ask: SignalAsk, samples: list[np.ndarray]) -> Any:
    """The decoded answer."""
    arrays = engine.forward(request(ask, samples))
    description = engine.describe()
    reply = Reply("r", "teacher", ask, arrays, description.vocabulary, description.fingerprint)
    return decode(reply, None, positions=len(samples))
