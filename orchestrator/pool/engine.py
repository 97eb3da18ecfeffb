"""The engine behind a replica: one causal model of ours, run in eager torch; classifiers have
theirs in `classifier`.

Torch and the model room are imported inside the replica only, so that a driver can name `load_role`
without loading either.
"""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.errors import SpecError
from orchestrator.signals.layouts import empty
from orchestrator.signals.records import (
    AttentionAsk,
    HeadRecord,
    LayersAsk,
    Request,
    RoleDescription,
    SampledAsk,
    SignalAsk,
)
from orchestrator.spec.models import RoleSpec

from .answers import wanted_counts
from .classifier import ClassifierEngine
from .forwards import CPU_TOKENS, GPU_TOKENS, Rows, arrange, lay_out
from .records import RoleLoad

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.load import Loaded
    from orchestrator.signals.encodings import RoleOutputs


class ModelEngine:
    """`Engine` over a loaded model.

    Deterministic: every sample runs alone at its own length, so its answer is a function of the
    sample, to the last bit. Otherwise samples of like length share a forward; see `forwards`.
    A module that is no transformers model always runs so, because nobody has promised that padding
    to the right of a sample leaves it as it is.
    """

    def __init__(self, role: str, loaded: "Loaded", *, deterministic: bool = False) -> None:
        from orchestrator.models.capture import inside
        from orchestrator.models.forward import backbone, input_device

        found = inside(loaded.module)
        self._loaded, self._role = loaded, role
        self._device = input_device(loaded.module)
        self._has_backbone = backbone(loaded.module) is not None
        self._tokens = CPU_TOKENS if self._device.type == "cpu" else GPU_TOKENS
        if deterministic or not self._has_backbone:
            self._tokens = 1
        # The last bits of an answer depend on these, and a cache must not mix them.
        how = f"{self._device.type}{'-alone' if self._tokens == 1 else ''}"
        self._description = RoleDescription(
            role,
            f"{loaded.fingerprint}/{how}",
            loaded.vocabulary,
            loaded.width,
            sum(p.numel() for p in loaded.module.parameters()),
            found.layers,
            found.attention,
        )

    def describe(self) -> RoleDescription:
        """What is loaded."""
        return self._description

    def head(self) -> HeadRecord | None:
        """The output head; None if it cannot be told apart from the model."""
        from orchestrator.signals.encodings import head_record

        head = self._loaded.head()
        if head is None:
            return None
        return head_record(self._role, self._description.fingerprint, head)

    def forward(self, request: Request) -> dict[str, np.ndarray]:
        """Arrays as the request's ask declares them.

        Raises:
            SpecError: the role cannot answer the ask.
            ValueError: the request is malformed, or a value is not finite or overflows the wire.
        """
        import torch

        from orchestrator.signals.encodings import encode

        ask, counts = request.ask, wanted_counts(request)
        longest = int(request.lengths.max(initial=0))
        answer = empty(ask, self._description, int(counts.sum()), longest)
        asked = np.flatnonzero(counts).tolist()  # samples without a wanted position are not run
        entries = np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1])  # by sample
        for group in arrange([int(request.lengths[i]) for i in asked], self._tokens):
            samples = [asked[i] for i in group]
            at = np.concatenate([entries[i] for i in samples])
            with torch.inference_mode():
                part = encode(ask, self._outputs(ask, lay_out(request, samples)))
            for name, array in part.items():
                if isinstance(ask, AttentionAsk):
                    answer[name][at, :, : array.shape[-1]] = array
                else:
                    answer[name][at] = array
        return answer

    def _outputs(self, ask: SignalAsk, rows: Rows) -> "RoleOutputs":
        """One forward, at its wanted positions."""
        import torch

        from orchestrator.models.capture import attention_of, output_of, watching
        from orchestrator.models.forward import forward_hidden, forward_logits
        from orchestrator.signals.encodings import RoleOutputs
        from orchestrator.signals.encodings.uniforms import token_hash

        row, place = torch.from_numpy(rows.row), torch.from_numpy(rows.place)

        def wanted(tensor: "Tensor") -> "Tensor":
            # Flash attention runs all rows end to end as one.
            tensor = tensor.reshape(*rows.ids.shape, *tensor.shape[2:])
            return tensor[row.to(tensor.device), place.to(tensor.device)]

        captured: dict[str, Tensor] = {}

        def take(path: str, output: Any) -> None:
            by_head = isinstance(ask, AttentionAsk)
            tensor = attention_of(output) if by_head else output_of(output)
            if tensor is None:
                raise ValueError(f"{path} gave {type(output).__name__}, unlike when it was loaded")
            captured[path] = wanted(tensor.transpose(1, 2) if by_head else tensor)

        module, head = self._loaded.module, self._loaded.head()
        inner = isinstance(ask, LayersAsk | AttentionAsk)
        ids = torch.from_numpy(rows.ids).to(self._device)
        positions = torch.arange(ids.shape[1], device=self._device).expand(ids.shape)
        with watching(module, ask.layers if inner else (), take):
            if head is None and not (inner and self._has_backbone):
                logits = wanted(forward_logits(module, ids, positions))
                hidden = None
            else:
                hidden = wanted(forward_hidden(module, ids, positions))
                logits = None
        samples = None
        if isinstance(ask, SampledAsk):
            samples = np.array([token_hash(tokens) for tokens in rows.tokens], np.uint64)[rows.row]
        return RoleOutputs(hidden, head, logits, captured, samples, rows.place)


def load_role(what: RoleLoad) -> "ModelEngine | ClassifierEngine":
    """Load a role's model in this process; the default `Loader`.

    Raises:
        SpecError: the model cannot be loaded as asked.
    """
    spec = what.spec
    if what.deterministic and spec.resources.gpus:
        # Read by cuBLAS when its first handle is made, which is after this line.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    from orchestrator.models.load import load_role_model

    torch.set_num_threads(spec.threads)
    torch.use_deterministic_algorithms(what.deterministic)
    loaded = load_role_model(what.role, spec, device=_device(spec), seed=what.seed)
    if loaded.task == "causal_lm":
        return ModelEngine(what.role, loaded, deterministic=what.deterministic)
    if what.reading is None:
        raise SpecError(
            f"roles.{what.role}.task",
            "is classifier, and nothing says how it reads its samples",
            "Start the pool with a job whose data have format labelled_text or features",
        )
    return ClassifierEngine(what.role, loaded, what.reading, deterministic=what.deterministic)


def _device(spec: RoleSpec) -> str:
    """cpu, the one GPU of this actor, or all of them with the layers laid over them."""
    if not spec.resources.gpus:
        return "cpu"
    return "auto" if spec.resources.gpus > 1 else "cuda"
