"""A model folder by its content: how a job without a pool knows whose signals it wants.

A role's fingerprint needs the loaded model; this digest needs its files only. Labelling notes which
fingerprint a digest had. Imports neither torch nor transformers.
"""

import hashlib
import json
from pathlib import Path

from orchestrator.spec.models import RoleSpec

from .folder import is_adapter, weight_files

_NOT_OUTPUTS = {"replicas", "resources", "threads", "parallel", "max_queue", "path"}
_NOT_OUTPUTS |= {"member"}  # of a job that has become a folder
# How answers are carried is each request's own.
_NOT_OUTPUTS |= {"encoding", "layers_dtype", "layers_project"}


def source_digest(spec: RoleSpec, *, deterministic: bool, reads: str = "tokens") -> str | None:
    """Hash of a model folder's configs and weights, and of how they are loaded, run and asked.

    Reads the weights once. `reads` is as in `RoleDescription`. None where files do not tell: an
    import, a fresh architecture, an adapter (its base lies elsewhere), weights that are not
    safetensors, code beside the weights.
    """
    if spec.path is None or spec.allow_pickle or spec.allow_remote_code or is_adapter(spec.path):
        return None
    folder = Path(spec.path)
    how = spec.model_dump(mode="json", by_alias=True, exclude=_NOT_OUTPUTS)
    how |= {"deterministic": deterministic, "gpu": spec.resources.gpus > 0, "reads": reads}
    total = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
    for file in sorted([*folder.glob("*.json"), *weight_files(folder)]):
        with file.open("rb") as stream:
            total.update(
                f"\0{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}".encode()
            )
    return total.hexdigest()
