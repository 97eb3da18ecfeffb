"""The engine behind a replica of a classifier: a row of logits a sample, or features of its layers.

Torch and the model room are imported inside the replica only, as in `engine`.

Shape letters: R samples of a forward, V classes.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.data import TEXT, Reading, inputs_of, parts_of_text
from orchestrator.errors import SpecError
from orchestrator.signals.layouts import empty
from orchestrator.signals.records import (
    INPUT,
    FullAsk,
    GradientsAsk,
    HeadRecord,
    LayersAsk,
    Request,
    RoleDescription,
    SampledAsk,
    SignalAsk,
    TopKAsk,
    VjpAsk,
)

from .answers import wanted_counts
from .forwards import CPU_TOKENS, GPU_TOKENS, arrange

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.capture import Inside
    from orchestrator.models.load import Loaded
    from orchestrator.signals.encodings import RoleOutputs

FEATURE_WORDS = 1 << 16
"""Numbers of one forward at most: 1024 digits of 8 by 8, 21 images of 3 by 32 by 32."""


class ClassifierEngine:
    """`Engine` over a loaded classifier. The answer about a sample is at its last word.

    Deterministic: every sample runs alone. Otherwise samples share a forward, texts padded on the
    right and masked; an imported module is never asked to honour the mask, so its texts run alone.

    Args:
        role: its name.
        loaded: the classifier.
        reading: how it reads a sample.
    """

    def __init__(
        self, role: str, loaded: "Loaded", reading: Reading, *, deterministic: bool = False
    ) -> None:
        from orchestrator.models.forward import input_device

        self._loaded, self._reading = loaded, reading
        self._device = input_device(loaded.module)
        self._reads_text = reads_text = reading.input is None and not reading.ranks_items
        if not reads_text:
            self._words = FEATURE_WORDS
        else:
            self._words = CPU_TOKENS if self._device.type == "cpu" else GPU_TOKENS
        alone = deterministic or (reads_text and loaded.made is not None)
        if alone:
            self._words = 1
        # The last bits of an answer depend on these, and a cache must not mix them.
        how = f"{self._device.type}{'-alone' if alone else ''}/{reading.label}"
        found = self._inside()
        self._description = RoleDescription(
            role,
            f"{loaded.fingerprint}/{how}",
            loaded.vocabulary,
            loaded.width,
            sum(p.numel() for p in loaded.module.parameters()),
            found.layers,
            reads=reading.label,
            shapes=found.shapes,
            input_width=found.input_width,
        )

    def _inside(self) -> "Inside":
        """What layers give; nothing where nobody says how many numbers a sample has."""
        import torch

        from orchestrator.models.capture import Inside, inside_classifier

        if self._reading.probe is None:
            return Inside()
        inputs = self._inputs([self._reading.probe] * 2)
        with torch.inference_mode():
            return inside_classifier(self._loaded.module, inputs)

    def describe(self) -> RoleDescription:
        """What is loaded."""
        return self._description

    def head(self) -> HeadRecord | None:
        """None: a classifier answers with its logits."""
        return None

    def forward(self, request: Request) -> dict[str, np.ndarray]:
        """Arrays as the request's ask declares them.

        Raises:
            SpecError: the ask is about neither logits nor layers nor gradients.
            ValueError: the request is malformed, or a value is not finite or overflows the wire.
        """
        import torch

        from orchestrator.signals.encodings import encode

        _check(request.ask, self._description.role, self._reading)
        samples = _samples(request)
        longest = max(map(len, samples), default=0)
        answer = empty(request.ask, self._description, len(samples), longest)
        for group in arrange([self._length(sample) for sample in samples], self._words):
            mine = [samples[i] for i in group]
            if isinstance(request.ask, GradientsAsk):
                part = encode(request.ask, self._gradients(request.ask, mine))
            elif isinstance(request.ask, VjpAsk):
                part = encode(request.ask, self._vjp(request.ask, mine))
            else:
                with torch.inference_mode():
                    part = encode(request.ask, self._outputs(request.ask, mine))
            for name, array in part.items():
                if array.ndim == 1:
                    answer[name][group] = array
                else:  # by token or word: others of the request may be longer
                    answer[name][group, ..., : array.shape[-1]] = array
        return answer

    def _length(self, sample: np.ndarray) -> int:
        """What a sample costs in a forward: a text's tokens, moved or not, or all words."""
        return len(parts_of_text(sample)[0]) if self._reads_text else len(sample)

    def _inputs(self, samples: list[np.ndarray]) -> "dict[str, Tensor]":
        import torch

        arrays = inputs_of(self._reading, samples, len(samples[0]))
        return {name: torch.from_numpy(a).to(self._device) for name, a in arrays.items()}

    def _gradients(self, ask: GradientsAsk, samples: list[np.ndarray]) -> "RoleOutputs":
        """One forward, and one backward to what is asked by."""
        import torch

        from orchestrator.models.forward import classify
        from orchestrator.models.gradients import by_sample, confidence_gradients, placing
        from orchestrator.signals.encodings import RoleOutputs

        inputs = self._inputs(samples)
        with (
            torch.enable_grad(),
            placing(self._loaded.module, ask.layers, INPUT, text=self._reads_text) as places,
        ):
            logits = classify(self._loaded.module, inputs)
            found = confidence_gradients(logits, places, create_graph=False)
        mask = inputs.get("attention_mask")
        return RoleOutputs(captured={path: by_sample(g, mask) for path, g in found.items()})

    def _vjp(self, ask: VjpAsk, samples: list[np.ndarray]) -> "RoleOutputs":
        """One forward, and one backward to what can move, which c follows in each sample."""
        import torch

        from orchestrator.models.gradients import gradient_by, run_from
        from orchestrator.signals.encodings import RoleOutputs
        from strategies.moving import output_of, squared_distance

        classes = self._description.vocabulary
        for sample in samples:
            self._check_movable(sample)
        own = [sample[: len(sample) - classes] for sample in samples]
        given = np.stack([sample[len(sample) - classes :] for sample in samples]).view(np.float32)
        c = torch.from_numpy(given).to(self._device)
        leaf, logits = run_from(self._loaded.module, self._inputs(own))
        output = output_of(logits, ask.output, ask.temperature)
        number = (c * output).sum(1) if ask.of == "product" else squared_distance(output, c)
        gradient = gradient_by(leaf, number)
        if ask.by_word:
            gradient = self._by_word(gradient.view(leaf.shape), samples)
        return RoleOutputs(captured={"output": output.detach(), "gradient": gradient})

    def _check_movable(self, sample: np.ndarray) -> None:
        """
        Raises:
            ValueError: a sample of a `vjp` has not the words that one has.
        """
        width, classes = self._description.input_width, self._description.vocabulary
        tokens = 1
        if self._reads_text:
            ids, behind = parts_of_text(sample)
            tokens, sample = len(ids), behind
        if len(sample) != tokens * width + classes:
            raise ValueError(
                f"a sample of {len(sample)} numbers was sent, and this role reads {width} for each "
                f"of {tokens} tokens and {classes} of its classes behind them"
                if self._reads_text
                else f"a sample of {len(sample)} words was sent, and this role reads {width} "
                f"numbers and {classes} of its classes behind them"
            )

    def _by_word(self, gradient: "Tensor", samples: list[np.ndarray]) -> "Tensor":
        """[R, longest] of [R, T, d]: each number where the sample has what it is a gradient by."""
        answer = gradient.new_zeros(len(samples), max(map(len, samples)))
        for row, sample in enumerate(samples):
            ids, _ = parts_of_text(sample)
            mine = gradient[row, : len(ids)].flatten()
            answer[row, 1 + len(ids) : 1 + len(ids) + len(mine)] = mine
        return answer

    def _path(self, path: str) -> str:
        """Of the module that gives what an ask calls by this path."""
        from orchestrator.models.forward import embedding_of

        if path != INPUT:
            return path
        embedding = embedding_of(self._loaded.module)
        return next(n for n, m in self._loaded.module.named_modules() if m is embedding)

    def _outputs(self, ask: SignalAsk, samples: list[np.ndarray]) -> "RoleOutputs":
        """One forward."""
        from orchestrator.models.capture import by_sample, first_of, watching
        from orchestrator.models.forward import classify
        from orchestrator.signals.encodings import RoleOutputs
        from orchestrator.signals.encodings.uniforms import token_hash

        inputs = self._inputs(samples)
        captured: dict[str, Tensor] = {}

        def take(path: str, output: Any) -> None:
            tensor = first_of(output)
            if tensor is None:
                raise ValueError(f"{path} gave {type(output).__name__}, unlike when it was loaded")
            captured[path] = by_sample(tensor, inputs).flatten(1)

        asked = ask.layers if isinstance(ask, LayersAsk) else ()
        paths = {self._path(path): path for path in asked}
        with watching(self._loaded.module, tuple(paths), lambda p, o: take(paths[p], o)):
            logits = classify(self._loaded.module, inputs)
        if paths:
            return RoleOutputs(captured=captured)
        if not isinstance(ask, SampledAsk):
            return RoleOutputs(logits=logits)
        hashes = np.array([token_hash(sample) for sample in samples], np.uint64)
        places = np.array([len(sample) - 1 for sample in samples])
        return RoleOutputs(logits=logits, samples=hashes, positions=places)


def _check(ask: SignalAsk, role: str, reading: Reading) -> None:
    if isinstance(ask, GradientsAsk) and ask.by_token != (reading.input is None):
        raise ValueError("gradients of texts are by token, and those of features are not")
    if isinstance(ask, VjpAsk) and reading.ranks_items:
        raise SpecError(
            f"roles.{role}",
            f"reads {reading.label}, which do not move",
            "Use a classifier of features or text",
        )
    if isinstance(ask, LayersAsk) and INPUT in ask.layers and reading.label != TEXT:
        raise ValueError("features and users are not embedded, and nothing gives their input")
    if isinstance(ask, VjpAsk) and ask.by_word != (reading.input is None):
        raise ValueError("gradients of texts are by word, and those of features are not")
    if not isinstance(ask, FullAsk | TopKAsk | SampledAsk | LayersAsk | GradientsAsk | VjpAsk):
        raise SpecError(
            f"roles.{role}.encoding",
            f"is {ask.kind}, and a classifier answers with logits or outputs of layers only",
            "Use full, topk or sampled",
        )


def _samples(request: Request) -> list[np.ndarray]:
    """The samples that are asked about, [n] int32 each.

    Raises:
        ValueError: a position is wanted that is not a sample's last.
    """
    counts, ends = wanted_counts(request), np.cumsum(request.lengths)
    asked = np.flatnonzero(counts)
    if not (counts[asked] == 1).all() or not request.wanted[ends[asked] - 1].all():
        raise ValueError(
            f"request {request.request_id} wants positions inside a sample; a classifier answers "
            "at the last one"
        )
    return [request.tokens[ends[i] - request.lengths[i] : ends[i]] for i in asked]
