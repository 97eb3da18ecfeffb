"""Jobs from spec to registered student: the wire tells the truth, tracking loses nothing."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from mlflow.tracking import MlflowClient
from mlflow_server import Server
from transformers import AutoModelForCausalLM

from orchestrator.data import Order, collate, prepare
from orchestrator.events import Event, StepDone
from orchestrator.run_folder import RunFolder
from orchestrator.session import Session
from orchestrator.spec import JobSpec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@dataclass
class House:
    """One Ray session for the whole file."""

    root: Path
    session: Session | None = None
    hear: Callable[[Event], None] = lambda event: None
    played: int = 0

    def job(self, **changes: Any) -> JobSpec:
        return tiny.job(self.root / "teacher", self.root / "text", self.root / "runs", **changes)

    def play(
        self, spec: JobSpec, hear: Callable[[Event], None] = lambda event: None
    ) -> tuple[dict[str, Any], RunFolder]:
        self.played += 1
        self.hear = hear
        folder = RunFolder.at(spec.storage, f"run-{self.played}")
        folder.write([spec], 0, [folder.run_id])
        assert self.session is not None
        return self.session.run_job(spec, folder, {}, resume=False), folder


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    found = House(tmp_path_factory.mktemp("house"))
    tiny.save_teacher(found.root / "teacher")
    tiny.save_text(found.root / "text")
    with Session([found.job()], lambda event: found.hear(event)) as session:
        found.session = session
        yield found


@pytest.mark.parametrize(
    ("encoding", "temperature"),
    [
        ({"kind": "hidden", "dtype": "float32"}, 3.0),
        ({"kind": "topk", "k": 64, "dtype": "float32", "temperatures": [1.0, 2.0]}, 2.0),
    ],
)
def test_the_same_model_as_teacher_and_student_gives_zero(
    house: House, encoding: dict[str, Any], temperature: float
) -> None:
    steps: list[StepDone] = []
    teacher = {"path": str(house.root / "teacher"), "resources": {"cpus": 0.5}}
    spec = house.job(
        student={"path": str(house.root / "teacher")},
        roles={"teacher": {**teacher, "encoding": encoding}},
        objective={"terms": [{"kind": "forward_kl", "temperature": temperature}]},
        training={
            **{"steps": 2, "global_batch": 4, "micro_batch": 2, "resources": {"cpus": 0.5}},
            **{"optimizer": {"lr": 1e-12}, "checkpoint": {"every_steps": 2}},
        },
    )
    summary, _ = house.play(spec, lambda e: steps.append(e) if isinstance(e, StepDone) else None)
    assert abs(steps[0].metrics["loss/forward_kl"]) < 1e-6
    assert abs(summary["evaluation"]["kl"]) < 1e-6
    assert summary["evaluation"]["top1_agreement"] == 1.0
    assert summary["evaluation"]["student"]["loss"] == pytest.approx(
        summary["evaluation"]["teacher"]["loss"], rel=1e-6
    )


@pytest.mark.parametrize("cached", [False, True])
def test_hidden_learns_what_full_logits_in_one_process_learn(house: House, cached: bool) -> None:
    """The same 24 steps here: both models side by side, full softmax, autograd, torch's AdamW."""
    cache = {"path": str(house.root / "cache")} if cached else {"enabled": False}
    start = tiny.save_teacher(house.root / f"student-{cached}", seed=5, width=32)
    spec = house.job(student={"path": str(start)}, cache=cache)
    losses: list[float] = []

    def hear(event: Event) -> None:
        if isinstance(event, StepDone):
            losses.append(event.metrics["loss/forward_kl"])

    house.play(spec, hear)
    assert losses == pytest.approx(_in_one_process(spec, house.root / "data"), rel=2e-5)


def _in_one_process(spec: JobSpec, data_folder: Path) -> list[float]:
    """The loss of each step of a forward-KL job, by the shortest way."""
    teacher_path, student_path = str(spec.roles["teacher"].path), str(spec.student.path)
    teacher: Any = AutoModelForCausalLM.from_pretrained(teacher_path).eval()
    student: Any = AutoModelForCausalLM.from_pretrained(student_path).train()
    training, optimizer = spec.training, spec.training.optimizer
    groups = [
        {"params": [p for p in student.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in student.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps)
    store = prepare(spec.data, str(tiny.TOKENIZER), str(data_folder)).train
    order = Order(store, spec.data.context, training.global_batch, spec.seed, spec.data.packing)
    steps = training.steps or 0
    losses = []
    for step in range(steps):
        batch = collate(store, order.rows(step), spec.data.context)
        ids, positions = (torch.tensor(array) for array in batch.inputs.values())
        mask = torch.tensor(batch.targets != -100)
        with torch.no_grad():
            wanted = teacher(input_ids=ids, position_ids=positions, use_cache=False).logits[mask]
        found = student(input_ids=ids, position_ids=positions, use_cache=False).logits[mask]
        p, q = (torch.log_softmax(z / 2.0, -1) for z in (wanted, found))
        loss = 4.0 * (p.exp() * (p - q)).sum(-1).mean()
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), training.clip or 1.0)
        for group in adam.param_groups:  # the default: half a cosine from the peak to a tenth
            group["lr"] = optimizer.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * step / (steps - 1))))
        adam.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_a_server_killed_in_the_middle_holds_the_whole_run_in_the_end(
    house: House, tmp_path: Path
) -> None:
    server = Server.on_a_free_port(tmp_path)
    server.start()

    def strike(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 6:
            server.kill()
        if isinstance(event, StepDone) and event.step == 12:
            server.start()

    tracking = {"uri": server.uri, "experiment": "whole", "register_as": "tiny-student"}
    try:
        summary, folder = house.play(house.job(tracking=tracking), strike)
        client = MlflowClient(server.uri)
        experiment = client.get_experiment_by_name("whole")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        points = client.get_metric_history(run.info.run_id, "loss/forward_kl")
        assert sorted(p.step for p in points) == list(range(1, 25))
        assert run.info.status == "FINISHED"
        assert run.data.tags["lineage.student"] == summary["weights_sha256"]
        assert run.data.tags["lineage.data"] == summary["data_version"]
        assert run.data.tags["lineage.roles.teacher"]
        assert run.data.metrics["held_out/kl"] == pytest.approx(summary["evaluation"]["kl"])
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert {"report.html", "job.yaml", "summary.json"} <= files
        (version,) = client.search_model_versions("name='tiny-student'")
        assert version.run_id == run.info.run_id

        # A later job takes the student from the registry, by another name for the same weights.
        spec = house.job(
            student={"registry": "models:/tiny-student/1"},
            tracking={"uri": server.uri, "experiment": "whole"},
            training={
                **{"steps": 1, "global_batch": 4, "micro_batch": 2, "resources": {"cpus": 0.5}},
                **{"optimizer": {"lr": 1e-12}, "checkpoint": {"every_steps": 1}},
            },
        )
        again, _ = house.play(spec)
        assert again["evaluation"]["student"]["loss"] == pytest.approx(
            summary["evaluation"]["student"]["loss"], rel=1e-6
        )
    finally:
        server.stop()
    assert (folder.local / "report.html").stat().st_size > 10_000
