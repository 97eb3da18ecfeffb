"""The engine behind a replica: one model of ours, run in eager torch.

Torch and the model room are imported inside the replica only, so that a driver can name `load_role`
without loading either.
"""

import os
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.signals.records import HeadRecord, HiddenAsk, Request
from orchestrator.spec.models import RoleSpec

from .records import RoleDescription, RoleLoad

if TYPE_CHECKING:
    from orchestrator.models.load import Loaded


class ModelEngine:
    """`Engine` over a loaded model. One request is one forward of exactly its shape."""

    def __init__(self, role: str, loaded: "Loaded") -> None:
        parameters = sum(p.numel() for p in loaded.module.parameters())
        self._loaded, self._role = loaded, role
        self._description = RoleDescription(
            role, loaded.fingerprint, loaded.vocabulary, loaded.width, parameters
        )

    def describe(self) -> RoleDescription:
        """What is loaded."""
        return self._description

    def head(self) -> HeadRecord | None:
        """The output head; None if it cannot be told apart from the model."""
        from orchestrator.signals.encode import head_record

        head = self._loaded.head()
        if head is None:
            return None
        return head_record(self._role, self._description.fingerprint, head)

    def forward(self, request: Request) -> dict[str, np.ndarray]:
        """Arrays as the request's ask declares them."""
        import torch

        from orchestrator.models.forward import forward_hidden, forward_logits, input_device
        from orchestrator.signals.encode import encode, encode_logits

        module, head = self._loaded.module, self._loaded.head()
        device = input_device(module)
        # Copies: arrays that came through Ray's store are read-only, and torch warns of those.
        ids = torch.tensor(request.input_ids, dtype=torch.int64, device=device)
        positions = torch.tensor(request.position_ids, dtype=torch.int64, device=device)
        wanted = torch.tensor(request.wanted, dtype=torch.bool, device=device)
        with torch.inference_mode():
            if head is None and not isinstance(request.ask, HiddenAsk):
                logits = forward_logits(module, ids, positions)
                return encode_logits(request.ask, logits[wanted.to(logits.device)])
            hidden = forward_hidden(module, ids, positions)
            return encode(request.ask, hidden[wanted.to(hidden.device)], head)


def load_role(what: RoleLoad) -> ModelEngine:
    """Load a role's model in this process; the default `Loader`.

    Raises:
        SpecError: the model cannot be loaded as asked.
    """
    spec = what.spec
    if what.deterministic and spec.resources.gpus:
        # Read by cuBLAS when its first handle is made, which is after this line.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    from orchestrator.models.load import load_model

    torch.set_num_threads(spec.threads)
    torch.use_deterministic_algorithms(what.deterministic)
    loaded = load_model(
        spec,
        device=_device(spec),
        tokenizer=spec.tokenizer,
        seed=what.seed,
        packing=what.packing,
        field=f"roles.{what.role}",
    )
    return ModelEngine(what.role, loaded)


def _device(spec: RoleSpec) -> str:
    """cpu, the one GPU of this actor, or all of them with the layers laid over them."""
    if not spec.resources.gpus:
        return "cpu"
    return "auto" if spec.resources.gpus > 1 else "cuda"
