"""What each recipe costs over plain forward KL: the student's step, the roles' answers at hand.

    python tests/benchmarks/recipes.py

Student and roles are shaped like the quickstart's, on one core and one thread, in turn, so that a
slow moment of the machine hits all alike. Every role is the same teacher with other weights.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workload import machine

from strategies.contract import Batch, Head, HiddenSignal, Outputs
from strategies.objective import build_objective
from strategies.progress import Progress
from strategies.recipes import RECIPES
from strategies.specs import FeatureTermSpec, ObjectiveSpec, RankTermSpec, RoleGradientSpec

VOCABULARY, ROWS, CONTEXT = 4096, 8, 128


def model(width: int, layers: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def hidden(one: LlamaForCausalLM, batch: Batch) -> Tensor:
    """[N, d] before the head."""
    decoder = one.model
    return decoder(**batch.inputs, use_cache=False).last_hidden_state[batch.mask]  # type: ignore[operator]


def a_batch() -> Batch:
    ids = torch.randint(0, VOCABULARY, (ROWS, CONTEXT), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(CONTEXT).expand(ROWS, CONTEXT)
    index = torch.arange(ROWS)[:, None].expand(ROWS, CONTEXT)
    return Batch({"input_ids": ids, "position_ids": positions}, ids.roll(-1, 1), index)


def specs() -> dict[str, ObjectiveSpec]:
    """By recipe, with its defaults; without those about a role's layers, its weights, items, or
    several students."""
    every = {kind: ObjectiveSpec.model_validate({"recipe": {"kind": kind}}) for kind in RECIPES}
    return {
        kind: spec
        for kind, spec in every.items()
        if not any(
            isinstance(term, FeatureTermSpec | RankTermSpec | RoleGradientSpec)
            or term.member is not None
            for term in spec.terms
        )
    }


def stepper(spec: ObjectiveSpec, student: LlamaForCausalLM, batch: Batch) -> Callable[[], None]:
    """One step of the student."""
    objective = build_objective(spec)
    signals = {}
    for seed, role in enumerate(spec.served_roles):
        teacher = model(256, 4, seed + 1)
        with torch.no_grad():
            teacher.lm_head.weight.mul_(4.0)
            signals[role] = HiddenSignal(
                hidden(teacher, batch), Head(teacher.lm_head.weight.detach())
            )
    state, at = objective.start(), Progress(3, 10, 3, 10)

    def step() -> None:
        numbers = objective.numbers(at, state)
        counts = objective.counts(batch, signals)
        scales = {
            term: numbers.get(f"{term}.weight", 0.0) / max(1.0, float(count))
            for term, count in counts.items()
        }
        outputs = Outputs(hidden(student, batch), Head(student.lm_head.weight))
        loss, _ = objective.loss(outputs, batch, signals, numbers, scales)
        loss.backward()
        student.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    before, student, batch = machine(), model(128, 2, 0), a_batch()
    steps = {kind: stepper(spec, student, batch) for kind, spec in specs().items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for round_ in range(options.rounds + 1):
        for kind, step in steps.items():
            began = time.perf_counter()
            step()
            if round_:  # the first warms up
                seconds[kind].append(time.perf_counter() - began)
    plain = seconds["forward_kl"]
    print(f"before: {before}\nafter: {machine()}\n")
    print(f"forward_kl: {statistics.median(plain) * 1000:.0f} ms a step\n")
    print("| recipe | step over forward_kl | min to max | roles asked |\n|---|---|---|---|")
    for kind, each in seconds.items():
        ratios = [one / other for one, other in zip(each, plain, strict=True)]
        roles = len(specs()[kind].served_roles)
        low, high = min(ratios), max(ratios)
        print(f"| {kind} | {statistics.median(ratios):.2f} | {low:.2f} to {high:.2f} | {roles} |")


if __name__ == "__main__":
    main()
