"""Each mechanism of an objective, whole: stopped and resumed, and on two ranks."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
from houses import Player

from orchestrator.data import prepare
from orchestrator.evaluation.history import read_history
from orchestrator.evaluation.replay import recorded_schedule
from orchestrator.run_folder import RunFolder
from orchestrator.session import Session
from orchestrator.spec import JobSpec
from strategies.samples import size_after
from strategies.specs import CondenseSpec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS, LONG = 14, 60
"""Of a job; of one that is stopped, which must not end before it hears of it."""
STOP = 9
"""In the second epoch: changing data have changed by then."""
KL = {"kind": "forward_kl", "temperature": 2.0}
CE = {"kind": "cross_entropy", "weight": 0.5}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "schedule": {
        "terms": [
            {**KL, "temperature": {"kind": "linear", "start": 1.0, "end": 4.0}},
            {**CE, "weight": {"kind": "cosine", "start": 1.0, "end": 0.0}},
        ]
    },
    "adaptive schedules": {
        "terms": [
            {
                **KL,
                "temperature": {
                    "kind": "follow",
                    "quantity": "gap",
                    "between": [0.0, 4.0],
                    "low": 1.0,
                    "high": 3.0,
                    "memory": 0.5,
                },
                "target": [
                    {
                        "kind": "towards_student",
                        "share": {"kind": "taid", "start": 0.8, "alpha": 0.5, "beta": 0.75},
                    }
                ],
            },
            {**CE, "weight": 1.0},
            {"kind": "measure", "name": "gap", "measure": "gap"},
        ]
    },
    "target": {"terms": [{**KL, "target": [{"kind": "swap"}, {"kind": "noise", "size": 0.5}]}]},
    "statistics of a group": {
        "terms": [
            {
                **KL,
                "temperature": 4.0,
                "temperature_by": {"measure": "dissimilarity", "beta": 3.0, "group": 2},
                "weigh_by": {"measure": "student_entropy", "top": 0.5, "group": 2},
                "where": "role_wrong",
            }
        ]
    },
    "layers": {
        "terms": [
            CE,
            {
                "kind": "hidden_states",
                "projector": "orthogonal",
                "layers": [{"student": "model.layers.*", "role": "model.layers.*"}],
                "weigh_by": {"measure": "student_entropy"},
            },
            {
                "kind": "relational",
                "relation": "distance",
                "group": 4,
                "layers": [{"student": "model.norm", "role": "model.layers.1.mlp"}],
            },
        ]
    },
    "selection": {
        "terms": [CE, KL],
        "select": {"measure": "student_entropy", "share": 0.5, "group": 2},
    },
    "changing data": {
        "terms": [CE, KL],
        "between_epochs": {"kind": "condense", "every": 1, "keep": 0.4, "stages": 2},
    },
    "several roles": {
        "terms": [
            CE,
            {
                **KL,
                "target": [
                    {
                        "kind": "mix",
                        "roles": ["second"],
                        "weights": [{"kind": "linear", "start": 1.0, "end": 0.0}, 0.5],
                        "by": "entropy",
                    }
                ],
            },
        ]
    },
}
ADAPTIVE = ("forward_kl.temperature", "forward_kl.target.0.share")
STAIRS = {
    "terms": [
        {
            **KL,
            "temperature": {
                "kind": "step",
                "start": 4.0,
                "factor": 0.5,
                "every": 1,
                "floor": 1.0,
                "per": "epoch",
            },
        },
        {**CE, "weight": {"kind": "linear", "start": 0.0, "end": 1.0, "per": "epoch"}},
    ]
}


@dataclass
class Played:
    """What a job left."""

    summary: dict[str, Any]
    folder: Path
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)  # by steps done

    @property
    def losses(self) -> list[float]:
        return [self.metrics[step]["loss/total"] for step in sorted(self.metrics)]


class House(Player):
    """One session of a number of workers."""

    def job(self, objective: dict[str, Any], **training: Any) -> JobSpec:
        """A job of `STEPS` steps with rows of one sample each."""
        replica = {"resources": {"cpus": 0.25}}
        teachers = {"teacher": "teacher", "second": "second"}
        roles = {
            name: {"path": str(self.root / path), **replica} for name, path in teachers.items()
        }
        data = {"sources": [{"kind": "text", "path": str(self.root / "text")}], "context": 64}
        return tiny.job(
            self.root / "teacher",
            self.root / "text",
            self.root / f"runs-{self.workers}",
            roles=roles,
            data={**data, "held_out": 0.1, "packing": False, "long_documents": "truncate"},
            objective=objective,
            training={
                "steps": STEPS,
                "global_batch": 8,
                "micro_batch": 4,
                "workers": self.workers,
                "resources": {"cpus": 0.25},
                "optimizer": {"lr": 3e-3, "eps": 1e-3},
                "checkpoint": {"every_steps": STEPS},
                **training,
            },
            evaluation={"before": False, "rows": 8, "generate": None, "against": "teacher"},
        )

    def trained(self, spec: JobSpec, stop_after: int | None = None) -> Played:
        """Run a job; with `stop_after`, stop it there once and go on."""
        summary, metrics = self.play(spec, stop_after)
        return Played(summary, RunFolder.at(spec.storage, summary["run_id"]).local, metrics)


def _houses(root: Path, workers: int) -> Iterator[House]:
    house = House(root, workers)
    with Session([house.job(OBJECTIVES["target"])], lambda event: house.hear(event)) as session:
        house.session = session
        yield house


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("mechanisms")
    tiny.save_teacher(found / "teacher")
    tiny.save_teacher(found / "second", seed=1)
    tiny.save_text(found / "text", documents=60)
    return found


@pytest.fixture(scope="module")
def alone(root: Path) -> Iterator[dict[str, Played]]:
    """Every mechanism on one rank: undisturbed, and stopped in the middle."""
    for house in _houses(root, 1):
        played = {
            name: house.trained(house.job(objective)) for name, objective in OBJECTIVES.items()
        }
        for name, objective in OBJECTIVES.items():
            long = house.job(objective, steps=LONG)
            played[f"{name}, long"] = house.trained(long)
            spec = house.job(objective, steps=LONG, checkpoint={"every_steps": 3})
            played[f"{name}, resumed"] = house.trained(spec, stop_after=STOP)
        played["replayed"] = house.trained(house.job(_replayed(played["adaptive schedules"])))
        epochs = {"steps": None, "epochs": 2, "checkpoint": {"every_steps": STEPS}}
        played["epochs"] = house.trained(house.job(STAIRS, **epochs))
        yield played


def _replayed(adapted: Played) -> dict[str, Any]:
    """The objective of adaptive schedules, with the way they took in their place."""
    history = read_history(adapted.folder)
    temperature, share = (
        recorded_schedule(history, name).model_dump(mode="json") for name in ADAPTIVE
    )
    kl, *others = OBJECTIVES["adaptive schedules"]["terms"]
    target = [{"kind": "towards_student", "share": share}]
    return {"terms": [{**kl, "temperature": temperature, "target": target}, *others]}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_job_that_was_stopped_ends_with_the_weights_of_one_that_was_not(
    alone: dict[str, Played], name: str
) -> None:
    whole, resumed = alone[f"{name}, long"], alone[f"{name}, resumed"]
    assert len(whole.losses) == LONG and whole.losses[-1] < whole.losses[0]
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]
    schedules = [key for key in whole.metrics[1] if key.startswith("schedule/")]
    for step, metrics in resumed.metrics.items():
        assert [metrics[k] for k in schedules] == [whole.metrics[step][k] for k in schedules]


def _way(played: Played, number: str) -> list[float]:
    """Values of a number at all steps."""
    return [played.metrics[step][f"schedule/{number}"] for step in sorted(played.metrics)]


def test_adaptive_schedules_go_where_the_measured_means_send_them(
    alone: dict[str, Played],
) -> None:
    played = alone["adaptive schedules"]
    temperature, share = (_way(played, name) for name in ADAPTIVE)
    line = [0.8 + 0.2 * step / STEPS for step in range(STEPS)]
    assert share == sorted(share) and share[:2] == pytest.approx(line[:2])
    assert all(reached > least for reached, least in zip(share[2:], line[2:], strict=True))
    gaps = [played.metrics[step]["loss/gap"] for step in sorted(played.metrics)]
    mean, wanted = gaps[0], [1.0]
    for gap in gaps:
        mean = 0.5 * mean + 0.5 * gap
        wanted.append(1.0 + 2.0 * mean / 4.0)
    assert temperature == pytest.approx(wanted[:STEPS]) and len(set(temperature)) == STEPS


def test_a_recorded_way_taken_again_gives_the_same_values_and_weights(
    alone: dict[str, Played],
) -> None:
    adapted, replayed = alone["adaptive schedules"], alone["replayed"]
    for number in ADAPTIVE:
        assert _way(replayed, number) == _way(adapted, number)
    assert replayed.losses == adapted.losses
    assert replayed.summary["weights_sha256"] == adapted.summary["weights_sha256"]


def test_a_schedule_of_epochs_moves_between_them_only(alone: dict[str, Played]) -> None:
    """54 samples, 8 a step: 7 steps an epoch."""
    assert _way(alone["epochs"], "forward_kl.temperature") == [4.0] * 7 + [2.0] * 7
    assert _way(alone["epochs"], "cross_entropy.weight") == [0.0] * 7 + [0.5] * 7


def test_a_selection_asks_for_its_share_only(alone: dict[str, Played]) -> None:
    whole, chosen = alone["target"].summary["pool"], alone["selection"].summary["pool"]
    assert chosen["samples"]["consumed"] == whole["samples"]["consumed"] / 2


def test_a_set_that_shrinks_is_walked_through_as_its_sizes_say(
    alone: dict[str, Played], root: Path, tmp_path: Path
) -> None:
    spec = House(root, 1).job(OBJECTIVES["changing data"])
    samples = len(prepare(spec.data, str(tiny.TOKENIZER), str(tmp_path)).train)
    between = spec.objective.between_epochs
    assert isinstance(between, CondenseSpec)
    left, epoch, expected = 0, -1, 0
    for _ in range(STEPS):
        if not left:
            epoch += 1
            left = size_after(between, samples, epoch)
        expected += min(8, left)
        left -= min(8, left)
    assert epoch >= 2 and size_after(between, samples, epoch) < samples / 2
    assert alone["changing data"].summary["pool"]["samples"]["consumed"] == expected


@pytest.fixture(scope="module")
def beside(root: Path, alone: dict[str, Played]) -> Iterator[dict[str, Played]]:
    """Every mechanism on two ranks, after the first session has ended."""
    for house in _houses(root, 2):
        yield {name: house.trained(house.job(objective)) for name, objective in OBJECTIVES.items()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_ranks_learn_what_one_learns(
    alone: dict[str, Played], beside: dict[str, Played], name: str
) -> None:
    assert beside[name].losses == pytest.approx(alone[name].losses, rel=2e-4)
    assert beside[name].losses[0] == pytest.approx(alone[name].losses[0], rel=1e-5)
