"""What diagnostics ask of a student on one rank: texts and gradients, against plain torch."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import digits
import numpy as np
import pytest
import torch
from tiny_models import tiny
from torch import Tensor, nn

from orchestrator.data import Flat, SampleStore, collate
from orchestrator.data.tokenise import Sample
from orchestrator.evaluation.diagnostics.draw import drawn, uniform
from orchestrator.models.forward import forward_hidden, forward_logits
from orchestrator.students.asked import Answered
from orchestrator.students.batches import to_device
from orchestrator.students.diagnostics.gradients import batch_gradients, mean_loss
from orchestrator.students.diagnostics.texts import sampling
from orchestrator.students.diagnostics.writing import (
    Prompt,
    as_samples,
    greedy,
    prompts_of,
    role_writes,
    student_writes,
    until_end,
)
from orchestrator.students.held_out import HeldOut
from orchestrator.students.inside import trained
from orchestrator.students.module import StudentModule
from strategies.contract import Batch, DenseSignal, HiddenSignal, LogitSignal
from strategies.objective import build_objective
from strategies.progress import Progress
from strategies.specs import ObjectiveSpec

CPU = torch.device("cpu")


@dataclass
class Engine:
    """As much of an engine as writing needs."""

    module: nn.Module
    device: torch.device = CPU


class Role:
    """A model that answers questions about single positions, as `Questions` would."""

    def __init__(self, name: str, seed: int) -> None:
        self.loaded, self.asked, self.answers = tiny(name, seed=seed), [], {}

    def exact_ask(self, role: str) -> None:
        return None

    def ask(self, role: str, work: str, flat: Flat, ask: None) -> str:
        assert work not in self.answers
        ends = np.cumsum(flat.lengths)
        rows = []
        for end, length in zip(ends, flat.lengths, strict=True):
            assert flat.wanted[end - length : end].nonzero()[0].tolist() == [length - 1]
            ids = torch.from_numpy(flat.tokens[end - length : end].astype(np.int64))[None]
            positions = torch.arange(int(length))[None]
            with torch.no_grad():
                rows.append(forward_hidden(self.loaded.module, ids, positions)[0, -1])
        head = self.loaded.head()
        assert head is not None
        self.answers[work] = HiddenSignal(torch.stack(rows), head)
        return work

    def logits(self, role: str, name: str, device: torch.device) -> LogitSignal:
        return self.answers[name]


def _student(name: str = "llama", seed: int = 0) -> tuple[nn.Module, StudentModule]:
    loaded = tiny(name, seed=seed)
    loaded.module.train()
    return loaded.module, StudentModule(loaded.module, loaded.head())


class AskedBefore:
    """An `Asker` whose role has answered."""

    def __init__(self, answered: Answered) -> None:
        self.questions, self._answered = self, answered

    def exact_ask(self, role: str) -> None:
        return None

    def answered(self, *_: object) -> list[Answered]:
        return [self._answered]


def _prompts(count: int, length: int = 5) -> list[Prompt]:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, 97, (count, length), generator=generator).tolist()
    return [Prompt(f"doc-{i}", tuple(row)) for i, row in enumerate(tokens)]


def _continued(module: Any, prompt: Prompt, tokens: int) -> list[int]:
    """The likeliest continuation, by the whole text's logits of each step alone."""
    text = list(prompt.tokens)
    module.eval()
    for _ in range(tokens):
        ids = torch.tensor([text])
        with torch.no_grad():
            logits = forward_logits(module, ids, torch.arange(len(text))[None])
        text.append(int(logits[0, -1].argmax()))
    return text[len(prompt.tokens) :]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_a_student_writes_what_its_own_forward_says(name: str) -> None:
    _, wrapped = _student(name)
    prompts = _prompts(3)
    engine: Any = Engine(wrapped)
    written = student_writes(engine, [prompts[:2], prompts[2:], []], 6, [greedy] * 3)
    plain = tiny(name).module
    assert written == [
        [_continued(plain, prompt, 6) for prompt in part] for part in (prompts[:2], prompts[2:], [])
    ]
    assert wrapped.training  # as it was


def test_a_role_writes_what_its_own_forward_says() -> None:
    role: Any = Role("llama", seed=4)
    prompts = _prompts(3)
    written = role_writes(role, "teacher", prompts, 5, 97, CPU, "x")
    assert written == [_continued(role.loaded.module, prompt, 5) for prompt in prompts]
    assert role_writes(role, "teacher", [], 5, 97, CPU, "y") == []


def test_a_role_is_seen_through_the_students_vocabulary() -> None:
    role: Any = Role("llama", seed=4)
    written = role_writes(role, "teacher", _prompts(4), 8, 10, CPU, "x")
    assert max(token for text in written for token in text) < 10


def test_drawn_texts_do_not_depend_on_how_prompts_are_cut() -> None:
    _, wrapped = _student()
    engine: Any = Engine(wrapped)
    prompts = _prompts(4)

    def choose(part: list[Prompt], logits: Tensor, position: int) -> Tensor:
        return drawn(logits, [uniform(0, prompt.id, position) for prompt in part])

    def texts(parts: list[list[Prompt]]) -> list[list[int]]:
        chosen = [partial(choose, part) for part in parts]
        return [text for part in student_writes(engine, parts, 8, chosen) for text in part]

    together = texts([prompts])
    assert together == texts([[prompt] for prompt in prompts]) == texts([prompts[:3], prompts[3:]])
    greedily = student_writes(engine, [prompts], 8, [greedy])[0]
    assert together != greedily


def test_a_student_writes_no_token_that_a_narrower_role_cannot_read() -> None:
    _, wrapped = _student()
    engine: Any = Engine(wrapped)
    prompts = _prompts(4)

    def written(entries: int) -> list[int]:
        texts = student_writes(engine, [prompts], 8, sampling([prompts], entries, 0))[0]
        return [token for text in texts for token in text]

    assert max(written(97)) >= 40 > max(written(40))


@pytest.mark.parametrize("label", [None, "label"])
def test_held_out_numbers_that_need_labels_are_those_of_labelled_data(label: str | None) -> None:
    _, wrapped = _student()
    batch = _micro()
    theirs = torch.randn(len(batch.kept_targets), 97)
    asker: Any = AskedBefore(Answered(batch, {"teacher": DenseSignal(theirs)}, None))
    engine: Any = Engine(wrapped)
    source = {"kind": "import", "target": "a:b", "format": {"kind": "features", "label": label}}
    terms = [{"kind": "forward_kl"}]
    teacher = {"path": "x", "task": "classifier"}
    spec = digits.job(
        data={"sources": [source]}, objective={"terms": terms}, roles={"teacher": teacher}
    )
    store = SampleStore.of([Sample("s", np.arange(9, dtype=np.int32), np.arange(9) > 0)])
    measured = HeldOut(engine, store, spec, 0, 1, asker, "teacher").measure()
    assert measured is not None and not measured.members
    found = measured.own
    assert found.kl is not None and found.top1_agreement is not None
    for value in (found.student_loss, found.student_accuracy, found.teacher_loss):
        assert (value is None) == (label is None)


def test_texts_end_with_their_first_end_token() -> None:
    assert until_end([4, 0, 5, 0], 0) == [4, 0]
    assert until_end([4, 5], 0) == until_end([4, 5], None) == [4, 5]


def test_only_what_was_written_bears_loss() -> None:
    store = as_samples([Prompt("a", (1, 2, 3)), Prompt("b", (4, 5))], [[6, 7], [8]])
    batch = collate(store, [(0,), (1,)], 6)
    assert batch.targets.tolist() == [
        [-100, -100, 6, 7, -100, -100],
        [-100, 8, -100, -100, -100, -100],
    ]
    assert store.wanted(0).tolist() == [False, False, True, True, False]


def test_prompts_are_beginnings_of_samples_that_are_longer() -> None:
    samples = [
        Sample(f"s{n}", np.arange(n, dtype=np.int32), np.arange(n) > 0) for n in (2, 3, 4, 9, 30)
    ]
    store = SampleStore.of(samples)
    found = prompts_of(store, 8, 3)
    assert sorted(prompt.id for prompt in found) == ["s30", "s4", "s9"]
    assert all(prompt.tokens == (0, 1, 2) for prompt in found)
    assert prompts_of(store, 2, 3) == found[:2]


def _micro(loaded_width: int = 97) -> Batch:
    generator = torch.Generator().manual_seed(9)
    samples = []
    for i, n in enumerate((7, 5, 9)):
        tokens = torch.randint(1, loaded_width, (n,), generator=generator).numpy().astype(np.int32)
        samples.append(Sample(f"s{i}", tokens, np.arange(n) > 0))
    store = SampleStore.of(samples)
    return to_device(collate(store, [(0, 1), (2,)], 16), CPU)


def test_gradients_are_those_of_plain_losses_in_float64() -> None:
    """Two losses of one forward, through the chunked pass, with a frozen parameter."""
    module, wrapped = _student("llama_tied")
    wrapped.double()
    next(module.parameters()).requires_grad_(True)
    frozen = dict(module.named_parameters())["model.norm.weight"]
    frozen.requires_grad_(False)
    batch = _micro()
    theirs = torch.randn(len(batch.kept_targets), 97, dtype=torch.float64)
    specs = [{"kind": "cross_entropy"}, {"kind": "forward_kl"}]
    objectives = [build_objective(ObjectiveSpec.model_validate({"terms": [s]})) for s in specs]
    answered = Answered(batch, {"teacher": DenseSignal(theirs)}, None)
    losses = [
        partial(mean_loss, one, answered, one.numbers(Progress(0, 1, 0, None), one.start()))
        for one in objectives
    ]
    found = batch_gradients(wrapped, batch, losses)
    logits = forward_logits(module, batch.inputs["input_ids"], batch.inputs["position_ids"])
    log_q = torch.log_softmax(logits[batch.mask], 1)
    n = len(batch.kept_targets)
    ce = -log_q[torch.arange(n), batch.kept_targets].mean()
    kl = (torch.softmax(theirs, 1) * (torch.log_softmax(theirs, 1) - log_q)).sum(1).mean()
    names = list(trained(wrapped))
    assert "model.model.norm.weight" not in names and len(names) == len(found[0])
    for plain, gradients in zip((ce, kl), found, strict=True):
        parameters = list(trained(wrapped).values())
        expected = torch.autograd.grad(plain, parameters, retain_graph=True)
        for name, a, b in zip(names, gradients, expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-9), name
    assert all(p.grad is None for p in wrapped.parameters())
