"""What the engine is told: rates, parameter groups, DeepSpeed's configuration."""

from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.errors import SpecError
from orchestrator.spec.job import (
    OWNED_DEEPSPEED_KEYS,
    JobSpec,
    LearningRateSpec,
    OptimizerSpec,
    TrainingSpec,
)
from orchestrator.spec.load import load_jobs
from orchestrator.students.engine import (
    deepspeed_config,
    learning_rate,
    parameter_groups,
    rate_at,
)
from strategies.progress import Progress


@pytest.mark.parametrize(
    ("decay", "warmup", "expected"),
    [
        # peak 2, end 0.1, 5 steps
        ("constant", 0, [2.0, 2.0, 2.0, 2.0, 2.0]),
        ("constant", 2, [1.0, 2.0, 2.0, 2.0, 2.0]),
        ("linear", 0, [2.0, 1.55, 1.1, 0.65, 0.2]),
        ("linear", 2, [1.0, 2.0, 2.0, 1.1, 0.2]),
        ("cosine", 0, [2.0, 1.7363961, 1.1, 0.4636039, 0.2]),
        ("cosine", 3, [2 / 3, 4 / 3, 2.0, 2.0, 0.2]),
    ],
)
def test_rates_follow_the_schedule(decay: Any, warmup: int, expected: list[float]) -> None:
    spec = LearningRateSpec(warmup_steps=warmup, decay=decay, end=0.1)
    found = [learning_rate(spec, 2.0, step, 5) for step in range(5)]
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_peak_may_be_a_schedule() -> None:
    lr = {"kind": "piecewise", "points": [[0, 2.0], [2, 2.0], [3, 4.0]]}
    shape = {"warmup_steps": 2, "decay": "linear", "end": 0.1}
    training = TrainingSpec.model_validate(
        {
            "steps": 5,
            "optimizer": {"lr": lr},
            "learning_rate": shape,
            "checkpoint": {"every_steps": 1},
        }
    )
    found = [rate_at(training, Progress(step, 5)) for step in range(5)]
    assert found == pytest.approx([1.0, 2.0, 2.0, 2 * 1.1, 2 * 0.2])


def test_a_job_of_one_step_has_a_rate() -> None:
    assert learning_rate(LearningRateSpec(), 2.0, 0, 1) == 2.0


def test_matrices_decay_and_vectors_do_not() -> None:
    module = nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    module[2].bias.requires_grad_(False)
    groups = parameter_groups(module, OptimizerSpec(weight_decay=0.3))
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    shapes = [[tuple(p.shape) for p in group["params"]] for group in groups]
    assert shapes == [[(5, 3), (2, 3)], [(3,), (3,)]]


def test_a_group_without_parameters_is_left_out() -> None:
    groups = parameter_groups(nn.Linear(3, 2, bias=False), OptimizerSpec())
    assert len(groups) == 1


def test_a_tied_matrix_is_in_one_group_once() -> None:
    module = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    module[1].weight = module[0].weight
    groups = parameter_groups(module, OptimizerSpec())
    assert [len(group["params"]) for group in groups] == [1]


def test_a_partitioned_matrix_is_still_a_matrix() -> None:
    """ZeRO-3 leaves an empty vector in place of a partitioned parameter."""
    parameter: Any = nn.Parameter(torch.empty(0))
    parameter.ds_shape = (4, 3)
    module = nn.Module()
    module.register_parameter("weight", parameter)
    groups = parameter_groups(module, OptimizerSpec(weight_decay=0.3))
    assert [group["weight_decay"] for group in groups] == [0.3]


def _raw(**training: Any) -> dict[str, Any]:
    return {
        "name": "a",
        "student": {"path": "x"},
        "data": {"sources": [{"kind": "text", "path": "x"}]},
        "objective": {"terms": [{"kind": "cross_entropy"}]},
        "training": {"steps": 100, "global_batch": 16, "micro_batch": 2, **training},
    }


def test_deepspeed_gets_the_jobs_own_numbers() -> None:
    job = JobSpec.model_validate(_raw(workers=2, zero=2, clip=0.5, precision="bf16"))
    config = deepspeed_config(job, 1000)
    assert config["train_batch_size"] == 16
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 0.5
    assert config["bf16"] == {"enabled": True}
    assert config["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}


def test_a_bucket_is_no_larger_than_deepspeeds_own() -> None:
    config = deepspeed_config(JobSpec.model_validate(_raw(zero=2)), 10**12)
    assert config["zero_optimization"]["reduce_bucket_size"] == 500_000_000


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("bf16", 1)])
def test_bf16_adds_gradients_in_fp32_at_every_stage(precision: str, stage: int) -> None:
    config = deepspeed_config(JobSpec.model_validate(_raw(precision=precision, zero=0)), 1000)
    assert config["zero_optimization"]["stage"] == stage
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}


def test_offload_without_a_stage_that_offloads_is_refused(tmp_path: Any) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(str(_raw(offload="cpu", zero=0)))
    with pytest.raises(SpecError, match=r"training\.offload: is cpu, and training\.zero is 0"):
        load_jobs(str(file))


def test_no_clip_means_no_clipping() -> None:
    job = JobSpec.model_validate(_raw(clip=None))
    assert deepspeed_config(job, 1000)["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("zero", "offloaded"), [(2, {"offload_optimizer"}), (3, {"offload_optimizer", "offload_param"})]
)
def test_offload_goes_into_the_zero_section(zero: int, offloaded: set[str]) -> None:
    job = JobSpec.model_validate(_raw(zero=zero, offload="cpu"))
    section = deepspeed_config(job, 1000)["zero_optimization"]
    assert {key for key, value in section.items() if value == {"device": "cpu"}} == offloaded


def test_a_users_section_is_merged_below_the_jobs() -> None:
    further = {
        "zero_optimization": {"reduce_bucket_size": 1000},
        "wall_clock_breakdown": True,
        "comms_logger": {"enabled": False},
    }
    config = deepspeed_config(JobSpec.model_validate(_raw(zero=1, deepspeed=further)), 5000)
    assert config["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 1000}
    assert config["wall_clock_breakdown"] is True
    assert config["comms_logger"] == {"enabled": False}


OWNED = [*OWNED_DEEPSPEED_KEYS, "zero_optimization.stage", "zero_optimization.offload_param"]


@pytest.mark.parametrize("key", OWNED)
def test_a_key_that_the_job_owns_is_refused_with_the_field_to_set(key: str, tmp_path: Any) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(str(_raw()))
    with pytest.raises(SpecError, match=rf"training.deepspeed.{key}.*instead"):
        load_jobs(str(file), [f"training.deepspeed.{key}=1"])


def test_no_key_that_the_job_sets_is_left_for_the_user_to_overrule() -> None:
    job = JobSpec.model_validate(_raw())
    free = {"wall_clock_breakdown", "steps_per_print", "zero_allow_untested_optimizer"}
    mine = set(deepspeed_config(job, 1000)) - free - {"zero_optimization"}
    assert mine <= set(OWNED_DEEPSPEED_KEYS)
