"""Inputs moved by what student and role say of them: one round trip to the role a step.

The student's part of a gradient is taken here, the role's on its replica, which is sent the inputs
with what the student gives there, or with what to weigh its logits by. Weights are looked at and
never changed. Nothing is collective: every rank moves inputs of its own.

Shape letters: R samples, n numbers of one, V classes.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.data import Flat, Reading, reading_of
from orchestrator.models.forward import evaluating
from orchestrator.models.gradients import gradient_by, run_from
from orchestrator.signals.records import SignalAsk, VjpAsk
from orchestrator.spec import JobSpec
from strategies.contract import DenseSignal, Signal, VjpSignal
from strategies.moving import (
    ascended,
    class_difference,
    draws,
    other_class,
    output_of,
    past_boundary,
    random_ways,
    squared_distance,
)
from strategies.specs import AscendSpec, BoundarySpec

from .engine import Engine
from .questions import Questions

What = TypeVar("What")


@dataclass(frozen=True, slots=True)
class Mover:
    """One rank's way to move inputs."""

    model: nn.Module  # the student's, with whole weights
    questions: Questions
    reading: Reading  # how models take the features
    rows: int  # of one forward and one question
    device: torch.device

    def moved(
        self, spec: AscendSpec | BoundarySpec, x: Tensor, samples: Tensor, round_: int
    ) -> Tensor:
        """The inputs where one round leaves them.

        Args:
            spec: which way they go.
            x: [R, n] float32.
            samples: [R] int64: which samples they are; what is drawn depends on them.
            round_: from 1.

        Returns:
            [R, n] float32.
        """
        work = f"moved-{round_}"
        if isinstance(spec, BoundarySpec):
            return self.crossed(spec, x, draws(samples, round_, spec.seed), work)
        if spec.by == "difference":
            return self.climbed(spec, x, work)
        ways = random_ways(samples, x.shape[1], round_, spec.seed)
        return x + spec.size * spec.steps * ways.to(x.device, x.dtype)

    def climbed(self, spec: AscendSpec, x: Tensor, work: str) -> Tensor:
        """[R, n]: `steps` steps towards a larger squared distance of student and role."""
        for step in range(spec.steps):
            x, _ = self.climb(spec, x, f"{work}.{step}")
        return x

    def climb(self, spec: AscendSpec, x: Tensor, work: str) -> tuple[Tensor, Tensor]:
        """One step: [R, n] where it leads, and [R] the squared distance where it began."""
        ask = VjpAsk("distance", spec.output, spec.temperature, "float32")
        moved, distances = torch.empty_like(x), x.new_empty(len(x))
        with evaluating(self.model), torch.enable_grad():
            asked = self._outputs(spec, x)
            for (part, leaf, ours), signal in self._answers(spec.role, ask, asked, work):
                assert isinstance(signal, VjpSignal)  # it was asked for
                distance = squared_distance(ours, signal.output.float())
                gradient = gradient_by(leaf, distance) + signal.gradient.float()
                moved[part] = ascended(x[part], gradient, spec.size, normalised=spec.normalised)
                distances[part] = distance.detach()
        return moved, distances

    def crossed(self, spec: BoundarySpec, x: Tensor, draw: Tensor, work: str) -> Tensor:
        """[R, n]: until the role's likeliest class is another, or `steps` steps.

        Args:
            spec: the steps.
            x: [R, n].
            draw: [R] in (0, 1): by which each sample's other class is chosen.
            work: begins the questions' names.
        """
        ask = VjpAsk("product", "logits", 1.0, "float32")
        ahead, behind, left = self._classes(spec, x, draw, work)
        x, cotangents = x.clone(), class_difference(ahead, behind, self._classes_of(spec))
        for step in range(spec.steps):
            parts = (left[part] for part in self._parts(len(left)))
            asked = ((part, _words(x[part], cotangents[part])) for part in parts)
            still: list[Tensor] = []
            for part, signal in self._answers(spec.role, ask, asked, f"{work}.{step}"):
                assert isinstance(signal, VjpSignal)  # it was asked for
                z, gradient = signal.output.float(), signal.gradient.float()
                here = z.argmax(1) == ahead[part]
                lead = (z * cotangents[part]).sum(1)
                there = past_boundary(x[part], lead, gradient, spec.rate, spec.margin)
                x[part[here]] = there[here]
                still.append(part[here])
            left = torch.cat([left[:0], *still])
        return x

    def _classes(
        self, spec: BoundarySpec, x: Tensor, draw: Tensor, work: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[R] the role's likeliest class, [R] the one to go to, [R] all rows."""
        ask = self.questions.exact_ask(spec.role)
        asked = ((part, _words(x[part])) for part in self._parts(len(x)))
        ahead = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        behind = ahead.clone()
        for part, signal in self._answers(spec.role, ask, asked, work):
            assert isinstance(signal, DenseSignal)  # of a classifier
            ahead[part] = signal.logits.argmax(1)
            behind[part] = other_class(signal.logits, draw[part.cpu()])
        return ahead, behind, torch.arange(len(x), device=x.device)

    def _classes_of(self, spec: BoundarySpec) -> int:
        return self.questions.vocabulary(spec.role)

    def _outputs(
        self, spec: AscendSpec, x: Tensor
    ) -> Iterator[tuple[tuple[slice, Tensor, Tensor], Flat]]:
        """What the student gives, with its graph: one forward for each question in the window."""
        assert self.reading.input is not None  # of features
        shape = self.reading.shape or (x.shape[1],)
        for start in range(0, len(x), self.rows):
            part = slice(start, start + self.rows)
            inputs = {self.reading.input: x[part].reshape(-1, *shape)}
            leaf, logits = run_from(self.model, inputs)
            ours = output_of(logits, spec.output, spec.temperature)
            yield (part, leaf, ours), _words(x[part], ours.detach())

    def _parts(self, count: int) -> Iterator[Tensor]:
        return iter(torch.arange(count, device=self.device).split(self.rows))

    def _answers(
        self, role: str, ask: SignalAsk, asked: Iterable[tuple[What, Flat]], work: str
    ) -> Iterator[tuple[What, Signal]]:
        """Each thing with its answer, asking as far ahead as the window allows."""
        key, waiting = f"{role}.{ask.kind}", deque[tuple[What, str]]()
        answer = partial(self.questions.answer, key, device=self.device)
        for index, (what, flat) in enumerate(asked):
            name = self.questions.ask(key, f"{work}.{index}", flat, ask)
            waiting.append((what, name))
            while waiting and not self.questions.source.room():
                first, name = waiting.popleft()
                yield first, answer(name)
        for first, name in waiting:
            yield first, answer(name)


def mover_of(job: JobSpec, engine: Engine, questions: Questions) -> Mover:
    """This rank's, for a job whose samples are features and whose weights are whole on a rank."""
    reading, model = reading_of(job.data), engine.whole_module.model
    assert reading is not None and isinstance(model, nn.Module)  # of a `StudentModule`
    return Mover(model, questions, reading, job.training.micro_batch, engine.device)


def _words(x: Tensor, behind: Tensor | None = None) -> Flat:
    """Samples of [r, n] features, with [r, V] numbers behind them; asked about at the last word."""
    whole = x if behind is None else torch.cat([x, behind.to(x.dtype)], 1)
    rows = np.ascontiguousarray(whole.detach().cpu().numpy().astype(np.float32))
    count, words = rows.shape
    wanted = np.zeros((count, words), bool)
    wanted[:, -1:] = True
    return Flat(rows.view(np.int32).ravel(), np.full(count, words, np.int32), wanted.ravel())
