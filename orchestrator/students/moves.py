"""Samples moved by what student and role say of them: one round trip to the role a step.

The student's part of a gradient is taken here, the role's on its replica, which is sent the places
with what the student gives there, or with what to weigh its logits by. Weights are looked at and
never changed. Nothing is collective: every rank moves samples of its own.

Shape letters: R samples, n numbers of a place, V classes.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.data import Flat, Reading, end_to_end, reading_of
from orchestrator.data.order import permutation
from orchestrator.data.store import SampleStore
from orchestrator.data.tokenise import Sample
from orchestrator.models.forward import embedding_of, evaluating
from orchestrator.models.gradients import gradient_by, run_from
from orchestrator.signals.records import INPUT, LayersAsk, SignalAsk, VjpAsk
from orchestrator.spec import JobSpec
from strategies.contract import DenseSignal, LayersSignal, Signal, VjpSignal
from strategies.moving import (
    ascended,
    class_difference,
    draws,
    embedding_map,
    other_class,
    output_of,
    past_boundary,
    random_ways,
    squared_distance,
)
from strategies.specs import AscendSpec, BoundarySpec

from .engine import Engine
from .places import FeaturePlaces, Places, TextPlaces
from .questions import Questions

What = TypeVar("What")

COMPARED_IDS = 16
"""Token ids whose embeddings are compared, at most, for each number of the student's width."""


@dataclass(frozen=True, slots=True)
class Mover:
    """One rank's way to move samples."""

    model: nn.Module  # the student's, with whole weights
    questions: Questions
    reading: Reading  # how models take the samples
    rows: int  # of one forward and one question
    device: torch.device
    store: SampleStore  # whose ids tell how the embeddings of two models go together

    def places(self, role: str, words: Sequence[np.ndarray], longest: int) -> Places:
        """Where samples are, to move from there.

        Args:
            role: whose embeddings a text's places are mapped on.
            words: R samples of the data.
            longest: words of the longest sample that any rank moves.
        """
        if self.reading.input is None:
            return TextPlaces(list(words), longest, self._to_role(role), self.device)
        x = np.stack([np.zeros(longest, np.int32), *words])[1:].view(np.float32)
        return FeaturePlaces(self.reading, torch.from_numpy(x.copy()).to(self.device))

    def _to_role(self, role: str) -> Tensor:
        """[d, e] float32, of the student as it is now."""
        ids, theirs = self._table(role)
        embedding = embedding_of(self.model)
        assert embedding is not None  # `fit` has said so
        with torch.no_grad():
            ours = embedding(ids.to(self.device))
        return embedding_map(ours, theirs).float().to(self.device)

    def _table(self, role: str) -> tuple[Tensor, Tensor]:
        """[I] ids of the data, and [I, e] what a role embeds them as. It is asked once."""
        tables = self.questions.tables
        if role not in tables:
            known = self.questions.source.describe(role)
            embedding = embedding_of(self.model)
            most = COMPARED_IDS * int(embedding.embedding_dim)  # type: ignore[union-attr, arg-type]
            held = self.store.distinct()
            ids = held[permutation(len(held), "embeddings")[:most]]
            alone = SampleStore.of(Sample("", i[None], np.zeros(1, bool), 0) for i in ids)
            parts = self._parts(len(ids))
            asked = ((part, end_to_end(alone, [tuple(part.tolist())])) for part in parts)
            theirs = torch.zeros(len(ids), known.input_width)
            ask = LayersAsk((INPUT,), "float32")
            for part, signal in self._answers(role, ask, asked, "embeddings"):
                assert isinstance(signal, LayersSignal)  # it was asked for
                theirs[part.cpu()] = signal.outputs[INPUT].float().cpu()
            tables[role] = torch.from_numpy(ids.astype(np.int64)), theirs
        return tables[role]

    def moved(
        self, spec: AscendSpec | BoundarySpec, places: Places, samples: Tensor, round_: int
    ) -> Tensor:
        """Where one round leaves samples.

        Args:
            spec: which way they go.
            places: of R samples.
            samples: [R] int64: which samples they are; what is drawn depends on them.
            round_: from 1.

        Returns:
            [R, n] float32.
        """
        work, x = f"moved-{round_}", places.start()
        if isinstance(spec, BoundarySpec):
            return self.crossed(spec, places, draws(samples, round_, spec.seed), work)
        if spec.by == "difference":
            return self.climbed(spec, places, work)
        ways = random_ways(samples, x.shape[1], round_, spec.seed)
        return x + spec.size * spec.steps * places.directions(ways.to(x.device, x.dtype))

    def climbed(self, spec: AscendSpec, places: Places, work: str) -> Tensor:
        """[R, n]: `steps` steps towards a larger squared distance of student and role."""
        x = places.start()
        for step in range(spec.steps):
            x, _ = self.climb(spec, places, x, f"{work}.{step}")
        return x

    def climb(
        self, spec: AscendSpec, places: Places, x: Tensor, work: str
    ) -> tuple[Tensor, Tensor]:
        """One step: [R, n] where it leads, and [R] the squared distance where it began."""
        ask = VjpAsk("distance", spec.output, spec.temperature, "float32", self.reads_text)
        moved, distances = torch.empty_like(x), x.new_empty(len(x))
        with evaluating(self.model), torch.enable_grad():
            asked = self._outputs(spec, places, x)
            for (part, leaf, ours), signal in self._answers(spec.role, ask, asked, work):
                assert isinstance(signal, VjpSignal)  # it was asked for
                distance = squared_distance(ours, signal.output.float())
                gradient = places.own(gradient_by(leaf, distance), part)
                gradient += places.of_role(signal.gradient.float(), part)
                moved[part] = ascended(x[part], gradient, spec.size, normalised=spec.normalised)
                distances[part] = distance.detach()
        return moved, distances

    def crossed(self, spec: BoundarySpec, places: Places, draw: Tensor, work: str) -> Tensor:
        """[R, n]: until the role's likeliest class is another, or `steps` steps.

        Args:
            spec: the steps.
            places: of R samples.
            draw: [R] in (0, 1): by which each sample's other class is chosen.
            work: begins the questions' names.
        """
        ask = VjpAsk("product", "logits", 1.0, "float32", self.reads_text)
        x = places.start().clone()
        ahead, behind, left = self._classes(spec, places, x, draw, work)
        cotangents = class_difference(ahead, behind, self._classes_of(spec))
        for step in range(spec.steps):
            parts = (left[part] for part in self._parts(len(left)))
            asked = ((part, places.asked(x[part], part, cotangents[part])) for part in parts)
            still: list[Tensor] = []
            for part, signal in self._answers(spec.role, ask, asked, f"{work}.{step}"):
                assert isinstance(signal, VjpSignal)  # it was asked for
                z = signal.output.float()
                gradient = places.of_role(signal.gradient.float(), part)
                here = z.argmax(1) == ahead[part]
                lead = (z * cotangents[part]).sum(1)
                there = past_boundary(x[part], lead, gradient, spec.rate, spec.margin)
                x[part[here]] = there[here]
                still.append(part[here])
            left = torch.cat([left[:0], *still])
        return x

    def _classes(
        self, spec: BoundarySpec, places: Places, x: Tensor, draw: Tensor, work: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[R] the role's likeliest class, [R] the one to go to, [R] all rows."""
        ask = self.questions.exact_ask(spec.role)
        asked = ((part, places.asked(x[part], part)) for part in self._parts(len(x)))
        ahead = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        behind = ahead.clone()
        for part, signal in self._answers(spec.role, ask, asked, work):
            assert isinstance(signal, DenseSignal)  # of a classifier
            ahead[part] = signal.logits.argmax(1)
            behind[part] = other_class(signal.logits, draw[part.cpu()])
        return ahead, behind, torch.arange(len(x), device=x.device)

    def _classes_of(self, spec: BoundarySpec) -> int:
        return self.questions.vocabulary(spec.role)

    @property
    def reads_text(self) -> bool:
        """Whether places are those of texts."""
        return self.reading.input is None

    def _outputs(
        self, spec: AscendSpec, places: Places, x: Tensor
    ) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor], Flat]]:
        """What the student gives, with its graph: one forward for each question in the window."""
        for part in self._parts(len(x)):
            leaf, logits = run_from(self.model, places.inputs(x[part], part))
            ours = output_of(logits, spec.output, spec.temperature)
            yield (part, leaf, ours), places.asked(x[part], part, ours.detach())

    def _parts(self, count: int) -> Iterator[Tensor]:
        """Rows of each forward; nothing of nothing, on which no model runs."""
        return iter(torch.arange(count, device=self.device).split(self.rows) if count else ())

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


def mover_of(job: JobSpec, engine: Engine, questions: Questions, store: SampleStore) -> Mover:
    """This rank's, for a classifier whose weights are whole on a rank."""
    reading, model = reading_of(job.data), engine.whole_module.model
    assert reading is not None and isinstance(model, nn.Module)  # of a `StudentModule`
    return Mover(model, questions, reading, job.training.micro_batch, engine.device, store)
