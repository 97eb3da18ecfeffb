"""What it costs to look inside: gradients, layers on the wire, training stage by stage.

    python tests/benchmarks/features.py --only gradient

Without a pool: roles answer here, through a replica's engine, before a student begins; students
step through the module that DeepSpeed wraps, on one thread. What is compared runs in turn, and
ratios are taken within a round, so that a slow moment of the machine hits all alike.

gradient: the student's step of `gradient_kd` (arXiv:2211.01071) over that of `forward_kl` at the
same temperature and share of labels, without the optimiser, which is the same for both; and a
role's answer about gradients over one about logits. A role of `gradient_kd` gives both.
bytes: what the quickstart's teacher says of its layers, over its last hidden state.
stages: steps of the jobs of `docs/examples/studies/stagewise.yaml`, optimiser and all, over that of
the student that learns the same layers and the labels together. Each has as many steps; the last
stage, the study's learner, trains the head.

Small models of the studies are ruled by what a step costs in Python, hence wider ones beside them.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from workload import TOKENIZER, VOCABULARY, machine

from orchestrator.data import inputs_of, reading_of
from orchestrator.data.digits import documents
from orchestrator.models.capture import inside_classifier
from orchestrator.models.load import load_model
from orchestrator.models.trainable import apply_trainable, frozen_parts
from orchestrator.planner.layer_maps import layer_maps, logit_asks
from orchestrator.pool.classifier import ClassifierEngine
from orchestrator.pool.engine import ModelEngine, load_role
from orchestrator.pool.records import RoleLoad
from orchestrator.signals.encodings import decode
from orchestrator.signals.records import (
    INPUT,
    FullAsk,
    GradientsAsk,
    HiddenAsk,
    LayersAsk,
    Reply,
    Request,
    SignalAsk,
    TopKAsk,
)
from orchestrator.spec import JobSpec
from orchestrator.spec.models import RoleSpec, StudentSpec
from orchestrator.students.inside import Inside, trained
from orchestrator.students.module import StudentModule
from orchestrator.study.load import load_study
from orchestrator.study.plan import plan_study
from strategies.contract import Batch
from strategies.objective import build_objective
from strategies.progress import Progress

STUDIES = Path(__file__).parents[2] / "docs/examples/studies"
ALPHA, TEMPERATURE = 0.5, 5.0
"""Defaults of `gradient_kd`, and what the study gives its plain student."""
RECIPES = {
    "plain": {"kind": "forward_kl", "label_share": 1 - ALPHA, "temperature": TEMPERATURE},
    "gradients": {"kind": "gradient_kd", "alpha": ALPHA, "temperature": TEMPERATURE},
}
TEXTS, TEXT_TOKENS, CLASSES = 16, 64, 6
SAMPLES, LENGTH = 4, 256
SMALL_TIMES = 20
"""Steps of a small model that are measured as one."""
WIDE_GRADIENT = {"width": 1024, "depth": 2}
WIDE_STAGES = {"width": 4096}

Step = Callable[[], object]
Seconds = Mapping[str, Sequence[float]]
"""By what took them, one a round."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Of a classifier."""

    words: list[np.ndarray]  # [n] int32 each
    labels: list[int]


def texts() -> Samples:
    """Random ones: speed does not depend on what they say."""
    draw = np.random.default_rng(0)
    words = draw.integers(1, VOCABULARY, (TEXTS, TEXT_TOKENS)).astype(np.int32)
    return Samples(list(words), draw.integers(0, CLASSES, TEXTS).tolist())


def digits(count: int) -> Samples:
    """The first of the handwritten ones."""
    records = [record for _, record in documents(count)]
    numbers = [np.array(record["features"], np.float32).view(np.int32) for record in records]
    return Samples(numbers, [record["label"] for record in records])


# --- students and roles --------------------------------------------------------------------------


def answer(
    engine: ClassifierEngine | ModelEngine, ask: SignalAsk, samples: Sequence[np.ndarray]
) -> Reply:
    """What a role says: a classifier of each sample, a causal model of each position."""
    everywhere = isinstance(engine, ModelEngine)
    wanted = [np.full(len(sample), everywhere) for sample in samples]
    for one in wanted:
        one[-1] = True
    lengths = np.array([len(sample) for sample in samples], np.int32)
    told, role = np.concatenate(samples), engine.describe()
    request = Request("b", role.role, "b", ask, told, lengths, np.concatenate(wanted))
    return Reply("b", role.role, ask, engine.forward(request), role.vocabulary, role.fingerprint)


def classifier(spec: RoleSpec, job: JobSpec) -> ClassifierEngine:
    """The engine of a job's role, with fresh weights."""
    engine = load_role(RoleLoad("teacher", spec, reading=reading_of(job.data)))
    assert isinstance(engine, ClassifierEngine)
    return engine


def learned_from(teacher: JobSpec) -> RoleSpec:
    """What a role is that another job's student becomes."""
    made = teacher.student
    return RoleSpec.model_validate(
        {"import": made.import_, "arguments": made.arguments, "task": made.task}
    )


def with_student(job: JobSpec, student: StudentSpec, **arguments: int) -> JobSpec:
    """A job of which the same part of another student is trained, made with some arguments."""
    given = {**student.arguments, **arguments}
    changes = {"trainable": job.student.trainable, "arguments": given}
    return job.model_copy(update={"student": student.model_copy(update=changes)})


def stepper(
    job: JobSpec, role: ClassifierEngine, samples: Samples, *, optimise: bool = False
) -> Step:
    """One step of a job's student, with the role's answers at hand."""
    reading, rows = reading_of(job.data), len(samples.labels)
    assert reading is not None  # of classifiers
    student = load_model(job.student, for_training=True, seed=job.seed)
    if job.student.trainable is not None:
        apply_trainable(student.module, job.student.trainable)
    frozen = [] if job.student.trainable is None else frozen_parts(student.module)
    arrays = inputs_of(reading, samples.words, len(samples.words[0]))
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    batch = Batch(inputs, torch.tensor(samples.labels)[:, None], torch.arange(rows)[:, None])
    maps = layer_maps(job, inside_classifier(student.module, inputs), lambda _: role.describe())
    asks = {**logit_asks(job), **maps.asks}
    signals = {
        key: decode(answer(role, ask, samples.words), None, positions=rows)
        for key, ask in asks.items()
    }
    inside = Inside(maps, job.seed) if maps.pairs else None
    module = StudentModule(student.module, student.head(), None, inside, frozen)
    objective = build_objective(job.objective, maps.pairs)
    optimizer = torch.optim.AdamW(trained(module).values()) if optimise else None
    state, at = objective.start(), Progress(3, 10, 3, 10)

    def step() -> None:
        numbers = objective.numbers(at, state)
        scales = {
            term: numbers[f"{term}.weight"] / max(1.0, float(count))
            for term, count in objective.counts(batch, signals).items()
        }
        loss = module(
            batch, lambda outputs: objective.loss(outputs, batch, signals, numbers, scales)[0]
        )
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        module.zero_grad()

    return step


# --- measuring -----------------------------------------------------------------------------------


def in_turn(steps: Mapping[str, Step], rounds: int, times: int = 1) -> Seconds:
    """Seconds of one step of each, `times` of which are measured as one."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(times):
                step()
            if round_:  # the first warms up
                seconds[name].append((time.perf_counter() - began) / times)
    return seconds


def over(seconds: Sequence[float], base: Sequence[float]) -> list[float]:
    """Ratios, each within its round."""
    return [one / other for one, other in zip(seconds, base, strict=True)]


def shown(values: Sequence[float], digits: int = 2) -> str:
    """Median (minimum to maximum)."""
    figures = (statistics.median(values), min(values), max(values))
    middle, low, high = (f"{figure:.{digits}f}" for figure in figures)
    return f"{middle} ({low} to {high})"


def milliseconds(seconds: Sequence[float]) -> str:
    """Median alone."""
    return f"{statistics.median(seconds) * 1000:.2f}"


# --- gradient ------------------------------------------------------------------------------------


def text_job(recipe: Mapping[str, Any]) -> JobSpec:
    """Two layers of 128 learn from four."""

    def bert(layers: int) -> dict[str, Any]:
        architecture = {
            "model_type": "bert",
            "vocab_size": VOCABULARY,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "max_position_embeddings": TEXT_TOKENS,
            "num_labels": CLASSES,
        }
        return {"architecture": architecture, "task": "classifier", "attention": "eager"}

    source = {"kind": "jsonl", "path": "texts.jsonl", "format": {"kind": "labelled_text"}}
    return JobSpec.model_validate(
        {
            "name": "text",
            "student": bert(2),
            "roles": {"teacher": bert(4)},
            "data": {"sources": [source]},
            "objective": {"recipe": recipe},
            "training": {"steps": 100, "global_batch": TEXTS, "micro_batch": TEXTS},
        }
    )


def studied(name: str, method: str) -> dict[str, JobSpec]:
    """The jobs of a study's first seed and one of its methods, by their names in the file."""
    plan = plan_study(load_study(STUDIES / f"{name}.yaml"))
    cell = next(cell for cell in plan.cells if cell.arms["method"] == method)
    return {template: plan.job(key).spec for template, key in cell.jobs.items()}


def gradient(rounds: int) -> None:
    """Steps and answers with gradients, over those without."""
    print("| | plain, ms | with gradients, ms | with gradients over plain |\n|---|---|---|---|")

    def compare(name: str, steps: Mapping[str, Step], times: int) -> None:
        seconds = in_turn(steps, rounds, times)
        ratio = shown(over(seconds["gradients"], seconds["plain"]))
        each = " | ".join(milliseconds(seconds[what]) for what in RECIPES)
        print(f"| {name} | {each} | {ratio} |", flush=True)

    def both(name: str, jobs: Mapping[str, JobSpec], spec: RoleSpec, samples: Samples) -> None:
        job = jobs["gradients"]
        role, text = classifier(spec, job), job.data.reads_text
        times = 1 if text else SMALL_TIMES
        steps = {what: stepper(one, role, samples) for what, one in jobs.items()}
        compare(f"{name}, student's step", steps, times)
        asks = {"plain": FullAsk("float32"), "gradients": GradientsAsk((INPUT,), "float32", text)}

        def asked(ask: SignalAsk) -> Step:
            return lambda: answer(role, ask, samples.words)

        compare(f"{name}, role's answer", {what: asked(ask) for what, ask in asks.items()}, times)

    jobs = {what: text_job(recipe) for what, recipe in RECIPES.items()}
    spec = jobs["gradients"].roles["teacher"]
    both(f"text, {TEXTS} of {TEXT_TOKENS} tokens", jobs, spec, texts())
    study = {"plain": studied("gradient-kd", "kd"), "gradients": studied("gradient-kd", "gkd")}
    learners = {what: named["learner"] for what, named in study.items()}
    spec = learned_from(study["gradients"]["teacher"])
    samples = digits(learners["gradients"].training.micro_batch)
    both("digits, as in the study", learners, spec, samples)
    wide = {what: with_student(job, job.student, **WIDE_GRADIENT) for what, job in learners.items()}
    wide_role = spec.model_copy(update={"arguments": {**spec.arguments, **WIDE_GRADIENT}})
    both(f"digits, {WIDE_GRADIENT['width']} wide", wide, wide_role, samples)


# --- bytes ---------------------------------------------------------------------------------------


def asks_of(layers: tuple[str, ...]) -> dict[str, SignalAsk]:
    """By the name of the row; the first is what others are compared with."""
    return {
        "hidden bfloat16": HiddenAsk("bfloat16"),
        "hidden float32": HiddenAsk("float32"),
        "full float32": FullAsk("float32"),
        "full bfloat16": FullAsk("bfloat16"),
        "topk 64 float16": TopKAsk(64, "float16", (1.0,)),
        f"{len(layers)} layers float32": LayersAsk(layers, "float32"),
        f"{len(layers)} layers float16": LayersAsk(layers, "float16"),
        f"{len(layers)} layers bfloat16": LayersAsk(layers, "bfloat16"),
        "1 layer float32": LayersAsk(layers[-1:], "float32"),
        "1 layer bfloat16": LayersAsk(layers[-1:], "bfloat16"),
        f"{len(layers)} layers to 128 columns bfloat16": LayersAsk(layers, "bfloat16", project=128),
        f"{len(layers)} layers to 64 columns bfloat16": LayersAsk(layers, "bfloat16", project=64),
        "1 layer to 64 columns bfloat16": LayersAsk(layers[-1:], "bfloat16", project=64),
    }


def wire(rounds: int) -> None:
    """Bytes and seconds of answers, over those about the last hidden state."""
    engine = load_role(RoleLoad("teacher", RoleSpec.model_validate({"path": str(TOKENIZER)})))
    known = engine.describe().layers
    blocks = (f"model.layers.{index}" for index in range(len(known)))
    asks = asks_of(tuple(path for path in blocks if path in known))
    draw = np.random.default_rng(0)
    samples = list(draw.integers(0, VOCABULARY, (SAMPLES, LENGTH)).astype(np.int32))
    replies: dict[str, Reply] = {}

    def asked(name: str, ask: SignalAsk) -> Step:
        def step() -> None:
            replies[name] = answer(engine, ask, samples)

        return step

    seconds = in_turn({name: asked(name, ask) for name, ask in asks.items()}, rounds)
    base = next(iter(asks))
    print(f"{base}: {milliseconds(seconds[base])} ms for {SAMPLES} samples of {LENGTH} tokens\n")
    print(f"| answer | bytes a token | kB a sample | bytes over {base} | seconds over it |")
    print("|---|---|---|---|---|")
    for name, reply in replies.items():
        size, ratio = reply.nbytes / SAMPLES, shown(over(seconds[name], seconds[base]))
        print(
            f"| {name} | {size / LENGTH:,.0f} | {size / 1000:,.0f} | "
            f"{reply.nbytes / replies[base].nbytes:.2f} | {ratio} |"
        )


# --- stages --------------------------------------------------------------------------------------


def stages(rounds: int) -> None:
    """Steps of each stage, and of the student that learns all at once."""
    jobs, joint = studied("stagewise", "stagewise"), studied("stagewise", "together")["learner"]
    role = classifier(learned_from(jobs.pop("teacher")), joint)
    samples = digits(joint.training.micro_batch)
    print(f"| student | {', ms | '.join(jobs)}, ms | sum, ms | together, ms | sum over together |")
    print("|---" * (len(jobs) + 4) + "|")
    sizes = {"as in the study": {}, f"{WIDE_STAGES['width']} wide": WIDE_STAGES}
    for name, arguments in sizes.items():
        made = {
            part: with_student(job, joint.student, **arguments)
            for part, job in {**jobs, "together": joint}.items()
        }
        steps = {part: stepper(job, role, samples, optimise=True) for part, job in made.items()}
        seconds = in_turn(steps, rounds, SMALL_TIMES)
        together, each = seconds["together"], [seconds[part] for part in jobs]
        total = [sum(parts) for parts in zip(*each, strict=True)]
        cells = " | ".join(milliseconds(one) for one in (*each, total, together))
        print(f"| {name} | {cells} | {shown(over(total, together))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {"gradient": gradient, "bytes": wire, "stages": stages}
    parser.add_argument("--only", choices=parts)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = machine()
    for name, part in parts.items():
        if options.only in (None, name):
            print(f"\n{name}\n")
            part(options.rounds)
    print(f"\nbefore: {before}\nafter: {machine()}")


if __name__ == "__main__":
    main()
