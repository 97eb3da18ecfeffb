"""Plans by hand-computed numbers, what never fits, and whose a run folder is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from orchestrator.errors import SpecError
from orchestrator.planner import Inventory, Node, check_run_folder, plan, preflight
from orchestrator.planner.capacity import (
    bytes_per_position,
    check_roles_fit,
    checkpoint_bytes,
    no_more_than_served,
)
from orchestrator.planner.imports import check_import
from orchestrator.planner.machine import this_machine
from orchestrator.planner.sizes import ModelSize, estimate_parameters, model_size
from orchestrator.planner.tokenizers import job_tokenizer
from orchestrator.spec import JobSpec, resolved_yaml
from orchestrator.spec.models import (
    FullEncoding,
    HiddenEncoding,
    ModelSpec,
    SampledEncoding,
    TopKEncoding,
)

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 100,
    "tie_word_embeddings": True,
}
# 2 layers * (4 * 8 * 8 attention + 3 * 8 * 16 mlp) + 100 * 8 embedding
PARAMETERS = 2 * (256 + 384) + 800
GPU_NODE = Node("gpu", {"CPU": 8.0, "GPU": 4.0})
CPU_NODE = Node("cpu", {"CPU": 4.0})


def job(**changes: Any) -> JobSpec:
    """A small distillation job."""
    raw: dict[str, Any] = {
        "name": "job",
        "student": {"architecture": ARCHITECTURE},
        "roles": {"teacher": {"architecture": {**ARCHITECTURE, "hidden_size": 16}}},
        "data": {"sources": [{"kind": "text", "path": "a"}], "context": 32},
        "objective": {"terms": [{"kind": "forward_kl"}]},
        "training": {"steps": 100, "global_batch": 16, "micro_batch": 2, "workers": 2},
    }
    return JobSpec.model_validate({**raw, **changes})


def refusal(spec: JobSpec, *nodes: Node) -> SpecError:
    """Why a cluster cannot hold a job."""
    with pytest.raises(SpecError) as caught:
        plan(spec, Inventory(nodes))
    return caught.value


# --- the plan ------------------------------------------------------------------------------------


def test_a_plan_counts_rows_resources_and_bytes() -> None:
    planned = plan(job(), Inventory((CPU_NODE,)))
    (teacher,) = planned.roles
    assert (planned.rows_per_worker, planned.micro_batches) == (8, 4)
    assert planned.tokens_per_step == 16 * 32
    assert planned.resources == {"CPU": 3.0}
    assert planned.student_parameters == PARAMETERS
    assert teacher.bytes_per_position == 16 * 4
    assert teacher.request_bytes == 16 * 4 * 2 * 32
    assert teacher.head_bytes == 100 * 16 * 4
    assert teacher.window_requests == 8  # the limit on requests, not on bytes
    assert planned.warnings == ()


@pytest.mark.parametrize(
    ("fields", "bytes_each"),
    [
        ({"kind": "forward_kl"}, 0),
        ({"kind": "role_gradient"}, 4 + 4),
        ({"kind": "role_gradient", "unbiased": True}, 4 + 4 + 4),
        ({"kind": "blockwise_logits", "layers": [{"student": "a", "role": "b"}]}, 4),
    ],
)
def test_a_plan_counts_what_a_role_takes_beside_the_student(
    fields: dict[str, Any], bytes_each: int
) -> None:
    terms = [{"kind": "cross_entropy"}, fields]
    twin = {"teacher": {"architecture": ARCHITECTURE}}
    spec = job(objective={"terms": terms}, roles=twin)
    (teacher,) = plan(spec, Inventory((CPU_NODE,))).roles
    assert teacher.resident_bytes == bytes_each * PARAMETERS


def test_a_role_that_cannot_be_the_students_twin_is_refused_at_once() -> None:
    objective = {"terms": [{"kind": "role_gradient"}]}
    with pytest.raises(SpecError, match=r"^roles\.teacher: has width 16 and the student 8"):
        plan(job(objective=objective), None)


def test_a_window_smaller_than_one_request_holds_one_and_warns() -> None:
    planned = plan(job(pool={"kind": "ephemeral", "window_bytes": 4095}), None)
    assert planned.roles[0].window_requests == 1
    assert "4095" in planned.warnings[0]
    assert plan(job(pool={"kind": "ephemeral", "window_bytes": 4096}), None).warnings == ()


def test_a_role_that_nobody_asks_is_warned_of_and_not_counted() -> None:
    spec = job(objective={"terms": [{"kind": "cross_entropy"}]})
    planned = plan(spec, Inventory((CPU_NODE,)))
    assert planned.resources == {"CPU": 2.0}
    assert planned.roles == ()
    assert "teacher" in planned.warnings[0]


@pytest.mark.parametrize(
    ("encoding", "vocabulary", "expected"),
    [
        (HiddenEncoding(kind="hidden", dtype="float32"), 100, 64),
        (HiddenEncoding(kind="hidden", dtype="bfloat16"), 100, 32),
        (TopKEncoding(kind="topk", k=8), 65536, 16 + 8 * 2 + 4),
        (TopKEncoding(kind="topk", k=8), 65537, 17 + 8 * 2 + 4),
        (
            TopKEncoding(kind="topk", k=10, dtype="int8", temperatures=[1.0, 2.0]),
            10,
            5 + 10 + 2 * 2 + 8,
        ),
        (SampledEncoding(kind="sampled"), 65536, 12 * 2 + 4),
        (SampledEncoding(kind="sampled", temperature=2.0), 65536, 12 * 2 + 12 + 4 + 4),
        (FullEncoding(kind="full", dtype="float16"), 100, 200),
    ],
)
def test_bytes_of_a_position(encoding: Any, vocabulary: int, expected: int) -> None:
    assert bytes_per_position(encoding, ModelSize(1, 16, vocabulary)) == expected
    assert bytes_per_position(encoding, ModelSize()) is None


def test_more_entries_than_the_vocabulary_are_refused_by_the_planner() -> None:
    with pytest.raises(SpecError, match=r"roles\.tutor\.encoding\.k: is 64, .* is 10"):
        bytes_per_position(TopKEncoding(kind="topk"), ModelSize(1, 16, 10), "tutor")


@pytest.mark.parametrize(
    ("training", "per_parameter"),
    [({}, 4 + 8), ({"zero": 2}, 4 + 4 + 8), ({"precision": "bf16"}, 2 + 4 + 8)],
)
def test_bytes_of_a_checkpoint(training: dict[str, Any], per_parameter: int) -> None:
    spec = job(training={"steps": 100, **training})
    assert checkpoint_bytes(spec, ModelSize(parameters=10)) == 10 * per_parameter
    assert checkpoint_bytes(spec, ModelSize()) is None


# --- what never fits -----------------------------------------------------------------------------


def test_too_many_replicas_say_how_many_fit() -> None:
    role = {"architecture": ARCHITECTURE, "replicas": 9, "resources": {"cpus": 0.5, "gpus": 1}}
    error = refusal(job(roles={"teacher": role}), GPU_NODE, CPU_NODE)
    assert error.field == "roles.teacher.replicas"
    assert "is 9" in error.problem and "4 such processes" in error.problem
    assert "5 too many" in error.problem


def test_a_process_larger_than_every_node_is_refused_though_the_sum_suffices() -> None:
    role = {"architecture": ARCHITECTURE, "resources": {"gpus": 6}, "parallel": "layers"}
    error = refusal(job(roles={"teacher": role}), GPU_NODE, GPU_NODE)
    assert error.field == "roles.teacher.resources"
    assert "GPU 6" in error.problem and "GPU 4" in error.problem


def test_halves_of_two_nodes_do_not_make_a_whole_process() -> None:
    training = {"steps": 100, "global_batch": 6, "micro_batch": 2, "workers": 3}
    spec = job(training={**training, "resources": {"cpus": 3}})
    error = refusal(spec, CPU_NODE, CPU_NODE)
    assert error.field == "training.workers"
    assert "2 such processes" in error.problem


def test_workers_and_replicas_together_may_be_too_much() -> None:
    error = refusal(job(), Node("small", {"CPU": 2.0}))
    assert error.field == "training.workers"
    assert "3 CPU" in error.problem and "1 too few" in error.problem


def test_a_standing_pool_takes_nothing_from_the_job_s_share() -> None:
    standing = job(pool={"kind": "standing", "name": "shared"})
    planned = plan(standing, Inventory((Node("small", {"CPU": 2.0}),)))
    assert planned.resources == {"CPU": 2.0}
    assert planned.roles[0].replicas == 0
    with pytest.raises(SpecError, match=r"roles\.teacher\.replicas"):
        roles = {"teacher": standing.roles["teacher"].model_copy(update={"replicas": 3})}
        check_roles_fit(roles, Inventory((Node("small", {"CPU": 2.0}),)))


def test_fractions_that_fill_a_node_exactly_fit() -> None:
    role = {"architecture": ARCHITECTURE, "replicas": 10, "resources": {"cpus": 0.1}}
    training = {"steps": 100, "workers": 3, "global_batch": 12, "resources": {"cpus": 1}}
    assert plan(job(roles={"teacher": role}, training=training), Inventory((CPU_NODE,)))


def test_a_process_that_takes_nothing_fits_any_number_of_times() -> None:
    role = {"architecture": ARCHITECTURE, "replicas": 999, "resources": {"cpus": 0}}
    assert plan(job(roles={"teacher": role}), Inventory((CPU_NODE,)))


def test_a_job_that_joins_a_cluster_is_not_judged_by_this_machine(tmp_path: Path) -> None:
    absent = tmp_path / "no_cluster"
    assert this_machine("10.0.0.1:6379", absent) is None
    here = this_machine(None, absent, which=lambda name: None)
    assert here is not None and here.total("CPU") >= 1
    absent.write_text("127.0.0.1:6379")
    assert this_machine(None, absent) is None


# --- sizes ---------------------------------------------------------------------------------------


def test_the_parameters_of_a_folder_are_those_of_its_headers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURE))
    tensors = {"a": np.zeros((3, 5), np.float32), "b": np.zeros((7,), np.float32)}
    save_file(tensors, tmp_path / "model.safetensors")
    size = model_size(ModelSpec(path=str(tmp_path)))
    assert size == ModelSize(parameters=22, width=8, vocabulary=100)


@pytest.mark.parametrize(
    "config",
    [
        {**ARCHITECTURE, "hidden_size": 64, "intermediate_size": 160},
        {
            "model_type": "qwen3",
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "vocab_size": 500,
            "tie_word_embeddings": False,
        },
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 500}
        | {"n_positions": 128},
    ],
    ids=lambda config: config["model_type"],
)
def test_the_estimate_is_within_a_few_per_cent_of_the_real_model(config: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        real = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **fields)
        )
    exact = sum(parameter.numel() for parameter in real.parameters())
    assert estimate_parameters(config) == pytest.approx(exact, rel=0.03)


def test_the_student_of_an_earlier_job_has_its_size_and_tokenizer(tmp_path: Path) -> None:
    Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    fresh = {key: value for key, value in ARCHITECTURE.items() if key != "vocab_size"}
    first = job(name="first", student={"architecture": fresh, "tokenizer": str(tmp_path)})
    second = job(name="second", student={"job": "first"})
    assert job_tokenizer(second, [first]) == str(tmp_path)
    assert plan(second, None, [first]).student_parameters == PARAMETERS - 98 * 8


# --- files ---------------------------------------------------------------------------------------


def test_a_disk_must_hold_the_checkpoints_of_all_jobs_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("words " * 100)
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    plain = {
        "student": {"architecture": ARCHITECTURE, "tokenizer": str(tmp_path)},
        "roles": {},
        "objective": {"terms": [{"kind": "cross_entropy"}]},
        "data": {"sources": [{"kind": "text", "path": str(tmp_path / "a")}], "context": 32},
        "storage": str(tmp_path / "not/yet/there"),
    }
    jobs = [job(**plain, name="one"), job(**plain, name="two")]
    each = 3 * 12 * PARAMETERS  # keep is 2, and a new one is whole before an old one goes
    preflight(jobs, free_bytes=lambda folder: 2 * each)
    with pytest.raises(SpecError) as caught:
        preflight(jobs, free_bytes=lambda folder: 2 * each - 1)
    assert caught.value.field == "jobs.1.storage"
    preflight([job(**{**plain, "storage": "s3://bucket/x"})], free_bytes=lambda folder: 0)


def test_a_run_folder_belongs_to_the_jobs_it_was_made_for(tmp_path: Path) -> None:
    mine, other = [job()], [job(seed=1)]
    check_run_folder(tmp_path / "absent", mine)
    check_run_folder(tmp_path, mine)
    (tmp_path / "job.yaml").write_text(resolved_yaml(mine))
    check_run_folder(tmp_path, mine)
    with pytest.raises(SpecError, match=r"belongs to another job.*another seed.*resume"):
        check_run_folder(tmp_path, other)
    with pytest.raises(SpecError, match=r"another job \(job\)"):
        check_run_folder(tmp_path, [job(name="new")])


def test_a_folder_with_something_else_in_it_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"\xff")
    with pytest.raises(SpecError, match="is no run folder"):
        check_run_folder(tmp_path, [job()])
    with pytest.raises(SpecError, match="is a file"):
        check_run_folder(tmp_path / "holiday.jpg", [job()])


def test_an_import_path_is_found_without_running_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bomb.py").write_text(
        "raise SystemExit\nif True:\n    def build(): ...\nother = 1\nfrom os import path as p\n"
    )
    (tmp_path / "anything.py").write_text("def __getattr__(name): ...\n")
    (tmp_path / "torn.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("build", "other", "p"):
        check_import(f"bomb:{name}", "student.import")
    check_import("anything:at_all", "student.import")
    with pytest.raises(SpecError, match="Did you mean 'bomb:build'"):
        check_import("bomb:built", "student.import")
    with pytest.raises(SpecError, match="is not Python"):
        check_import("torn:f", "student.import")
    with pytest.raises(SpecError, match="no module"):
        check_import("json.absent:f", "student.import")


@pytest.mark.parametrize(
    ("replicas", "resources", "evaluation", "held"),
    [
        (1, {"cpus": 1}, {}, True),
        (2, {"cpus": 0.5}, {}, True),
        (2, {"cpus": 1}, {}, False),
        (1, {"cpus": 1, "gpus": 1}, {}, False),
        (2, {"cpus": 1}, {"against": "judge"}, True),
    ],
)
def test_a_writer_has_the_place_of_the_roles_that_are_served(
    replicas: int, resources: dict[str, Any], evaluation: dict[str, Any], held: bool
) -> None:
    small = {"architecture": ARCHITECTURE, "resources": {"cpus": 1}}
    writer = {"architecture": ARCHITECTURE, "replicas": replicas, "resources": resources}
    roles = {"teacher": small, "judge": small, "writer": writer}
    spec = job(roles=roles, evaluation=evaluation)
    assert no_more_than_served(spec.roles["writer"], spec) is held
    for pool in ({"kind": "standing", "name": "shared"}, {"kind": "none"}):
        elsewhere = job(roles=roles, evaluation=evaluation, pool=pool)
        assert not no_more_than_served(elsewhere.roles["writer"], elsewhere)


@pytest.mark.parametrize("pool", [{"kind": "standing", "name": "shared"}, {"kind": "none"}])
def test_roles_that_the_job_has_not_served_need_no_place(pool: dict[str, Any]) -> None:
    teacher = {"architecture": ARCHITECTURE, "resources": {"gpus": 1}}
    planned = plan(job(roles={"teacher": teacher}, pool=pool), Inventory((CPU_NODE,)))
    assert planned.resources == {"CPU": 2.0} and planned.roles[0].replicas == 0
    assert "GPU" in str(refusal(job(roles={"teacher": teacher}), CPU_NODE))
