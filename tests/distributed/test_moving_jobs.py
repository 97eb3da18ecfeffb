"""Jobs whose data gain moved samples: stopped and resumed, on two ranks, and from the cache."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import digits
import pytest
import tiny
from houses import Player

from orchestrator.data import prepare
from orchestrator.session import Session
from orchestrator.spec import JobSpec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

ROUNDS = {"every": 1, "rounds": 2, "steps": 2}
EPOCHS, BATCH = 4, 16
RECIPES: dict[str, dict[str, Any]] = {
    "ascend": {"kind": "backward_pass", "size": 0.2, **ROUNDS},
    "part": {"kind": "backward_pass", "size": 0.2, "samples": 20, **ROUNDS},
    "random": {"kind": "backward_pass", "size": 0.2, "by": "random", **ROUNDS},
    "boundary": {"kind": "boundary_samples", **ROUNDS, "steps": 4},
}
TEXT = {"task": "classifier", "tokenizer": str(tiny.TOKENIZER)}
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "num_labels": 2,
    "hidden_dropout_prob": 0.0,  # what is dropped depends on the cut
    "attention_probs_dropout_prob": 0.0,
}


@dataclass
class House(Player):
    """One session of a number of workers."""

    zero: int

    def job(self, recipe: str = "ascend") -> JobSpec:
        """A student that learns labels and logits of an untrained role, here and where it moves."""
        data = digits.data(limit=80)
        data["sources"][0]["format"]["shape"] = [64]
        role = digits.student(width=16, depth=1, activation="tanh")
        student = digits.student(width=16, depth=0, activation="tanh")
        return self._job(student, role, data, recipe)

    def text_job(self, recipe: str = "ascend") -> JobSpec:
        """The same of texts, whose embeddings are 16 wide in the student and 32 in the role."""
        file = self.root / "texts.jsonl"
        words = (("def", "code"), ("print", "talk"))
        lines = [
            json.dumps({"text": f"{word} number {i}" + " again" * (i % 4), "kind": kind})
            for i in range(24)
            for word, kind in words
        ]
        file.write_text("\n".join(lines))
        format = {"kind": "labelled_text", "label": "kind", "classes": ["code", "talk"]}
        source = {"kind": "jsonl", "path": str(file), "format": format}
        data = {"sources": [source], "context": 16, "held_out": 0.2}
        role = {**TEXT, "architecture": {**tiny.architecture(), "num_labels": 2, "pad_token_id": 0}}
        return self._job({**TEXT, "architecture": BERT}, role, data, recipe)

    def _job(
        self, student: dict[str, Any], role: dict[str, Any], data: dict[str, Any], recipe: str
    ) -> JobSpec:
        return digits.job(
            student=student,
            roles={"teacher": {**role, "resources": {"cpus": 0.25}}},
            data=data,
            objective={"recipe": RECIPES[recipe]},
            training={
                "epochs": EPOCHS,
                "global_batch": BATCH,
                "micro_batch": 4,
                "workers": self.workers,
                "zero": self.zero,
                "resources": {"cpus": 0.25},
                "optimizer": {"lr": 1e-2, "eps": 1e-3},
                "learning_rate": {"decay": "constant"},  # a part has fewer steps to decay over
                "checkpoint": {"every_steps": 3},
            },
            evaluation={
                "before": False,
                "rows": 16,
                "diagnostics": [{"kind": "logit_distance", "steps": 2, "size": 0.2}],
            },
            cache={"path": str(self.root / f"cache-{self.workers}")},
            storage=str(self.root / f"runs-{self.workers}"),
        )


def _house(root: Path, workers: int, zero: int, *, text: bool = False) -> Iterator[House]:
    house = House(root, workers, zero)
    job = house.text_job() if text else house.job()
    with Session([job], lambda event: house.hear(event)) as session:
        house.session = session
        yield house


Played = dict[str, tuple[dict[str, Any], dict[int, dict[str, float]]]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    for house in _house(tmp_path_factory.mktemp("alone"), 1, 0):
        yield {
            **{recipe: house.play(house.job(recipe)) for recipe in RECIPES},
            "again": house.play(house.job()),
            "resumed": house.play(house.job(), stop_after=6),
            "part resumed": house.play(house.job("part"), stop_after=6),
            "boundary resumed": house.play(house.job("boundary"), stop_after=6),
        }


def _samples(tmp_path: Path) -> int:
    return len(prepare(House(tmp_path, 1, 0).job().data, None, str(tmp_path)).train)


@pytest.mark.parametrize("recipe", RECIPES)
def test_epochs_hold_the_data_and_in_rounds_the_moved_samples_too(
    alone: Played, recipe: str, tmp_path: Path
) -> None:
    summary, metrics = alone[recipe]
    own = _samples(tmp_path)
    more = RECIPES[recipe].get("samples", own)
    sizes = [own, own + more, own + more, own]
    counts = summary["pool"]["samples"]
    assert counts["asked"] == counts["delivered"] == counts["consumed"] == sum(sizes)
    assert summary["steps"] == len(metrics) == sum(-(-size // BATCH) for size in sizes)


def test_ways_to_move_end_with_other_students(alone: Played) -> None:
    assert len({alone[recipe][0]["weights_sha256"] for recipe in RECIPES}) == len(RECIPES)
    first = -(-_first_epoch(alone) // BATCH)
    ways = [alone[recipe][1] for recipe in RECIPES]
    for step in range(1, first + 1):
        assert len({way[step]["loss/total"] for way in ways}) == 1
    assert len({way[first + 1]["loss/forward_kl"] for way in ways}) == len(RECIPES)


def _first_epoch(alone: Played) -> int:
    """Samples of the data: an epoch without moved ones."""
    return alone["ascend"][0]["pool"]["samples"]["consumed"] // 6


def test_a_second_run_reads_inputs_cotangents_and_answers_from_the_cache(alone: Played) -> None:
    first, second = alone["ascend"][0], alone["again"][0]
    assert first["cache"]["misses"] > 2 * 3 * _first_epoch(alone)  # rounds; two steps, and to learn
    assert second["cache"]["misses"] == 0
    assert second["weights_sha256"] == first["weights_sha256"]


@pytest.mark.parametrize(
    ("resumed", "recipe"),
    [("resumed", "ascend"), ("part resumed", "part"), ("boundary resumed", "boundary")],
)
def test_a_job_that_was_stopped_in_a_round_ends_with_the_weights_of_one_that_was_not(
    alone: Played, resumed: str, recipe: str
) -> None:
    assert alone[resumed][0]["weights_sha256"] == alone[recipe][0]["weights_sha256"]


def test_logits_are_further_apart_where_the_steps_lead(alone: Played) -> None:
    found = alone["ascend"][0]["evaluation"]["diagnostics"]["logit_distance"]
    assert 0 < found["mean"] < found["worst"] and found["mean"] < found["mean_near"]
    assert found["worst"] < found["worst_near"]


@pytest.mark.parametrize("recipe", ["ascend", "boundary"])
def test_two_ranks_under_zero_2_move_and_learn_what_one_does(
    alone: Played, tmp_path_factory: pytest.TempPathFactory, recipe: str
) -> None:
    for house in _house(tmp_path_factory.mktemp(f"beside-{recipe}"), 2, 2):
        summary, metrics = house.play(house.job(recipe))
    losses = [metrics[step]["loss/total"] for step in sorted(metrics)]
    wanted = [alone[recipe][1][step]["loss/total"] for step in sorted(alone[recipe][1])]
    assert losses == pytest.approx(wanted, rel=5e-4)
    assert losses[0] == pytest.approx(wanted[0], rel=1e-5)
    assert summary["pool"]["samples"] == alone[recipe][0]["pool"]["samples"]


def test_two_ranks_that_are_stopped_in_a_round_end_with_their_own_weights(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    for house in _house(tmp_path_factory.mktemp("two-resumed"), 2, 2):
        whole, _ = house.play(house.job())
        resumed, _ = house.play(house.job(), stop_after=6)
    assert resumed["weights_sha256"] == whole["weights_sha256"]


# --- texts ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    for house in _house(tmp_path_factory.mktemp("texts"), 1, 0, text=True):
        yield {
            "ascend": house.play(house.text_job()),
            "again": house.play(house.text_job()),
            "resumed": house.play(house.text_job(), stop_after=6),
            "boundary": house.play(house.text_job("boundary")),
        }


def test_texts_are_learned_from_where_they_are_and_where_they_move(texts: Played) -> None:
    whole = texts["ascend"][0]
    counts = whole["pool"]["samples"]
    assert counts["asked"] == counts["delivered"] == counts["consumed"]
    own, rest = divmod(counts["consumed"], 6)  # two epochs of the data, two of twice as many
    assert rest == 0 and own > 30
    assert whole["weights_sha256"] != texts["boundary"][0]["weights_sha256"]
    found = whole["evaluation"]["diagnostics"]["logit_distance"]
    assert 0 < found["mean"] < found["mean_near"]


def test_a_second_run_of_texts_computes_nothing(texts: Played) -> None:
    assert texts["again"][0]["cache"]["misses"] == 0
    assert texts["again"][0]["weights_sha256"] == texts["ascend"][0]["weights_sha256"]


def test_texts_that_were_moved_outlive_a_stop(texts: Played) -> None:
    assert texts["resumed"][0]["weights_sha256"] == texts["ascend"][0]["weights_sha256"]


def test_two_ranks_under_zero_2_move_the_texts_that_one_does(
    texts: Played, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for house in _house(tmp_path_factory.mktemp("texts-beside"), 2, 2, text=True):
        _, metrics = house.play(house.text_job())
    losses = [metrics[step]["loss/total"] for step in sorted(metrics)]
    wanted = [texts["ascend"][1][step]["loss/total"] for step in sorted(texts["ascend"][1])]
    assert losses[0] == pytest.approx(wanted[0], rel=1e-5)
    assert losses == pytest.approx(wanted, rel=5e-4)
