"""Fetch a model from the hub into its cache: configs, tokenizer and safetensors, nothing that runs.

Imports neither torch nor ray.
"""

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from orchestrator.errors import SpecError
from orchestrator.spec.models import ModelSpec

TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")


def snapshot(name: str, spec: ModelSpec, field: str) -> str:
    """The local folder of a hub model, downloaded once, from the cache when offline.

    Only the top folder's files come, and only kinds that `spec` lets us read.

    Raises:
        SpecError: no such model or revision, no access, or neither network nor cached copy.
    """
    patterns = [*TOKENIZER_FILES, "*.safetensors"]
    patterns += ["*.bin"] if spec.allow_pickle else []
    patterns += ["*.py"] if spec.allow_remote_code else []
    return fetch(name, spec.revision, patterns, field)


def fetch(name: str, revision: str | None, patterns: list[str], field: str) -> str:
    """The files of a hub repository that match, as a local folder; errors as in `snapshot`."""
    try:
        return snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    except LocalEntryNotFoundError as error:
        raise SpecError(
            field, f"{name!r} cannot be reached and is not in the cache", "Go online, or use path"
        ) from error
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise SpecError(
            field, f"{name!r} cannot be fetched ({error})", "Check name, revision and access"
        ) from error
