"""Load a tokenizer, and name what decides which ids a text becomes.

Imports transformers, and torch with it only for folders without a tokenizer.json.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError


def load_tokenizer(folder: str | Path) -> Any:
    """A fast tokenizer of transformers, without truncation and padding.

    Raises:
        SpecError: the folder holds no tokenizer that can be loaded as a fast one.
    """
    try:
        tokenizer = _load(Path(folder))
    except Exception as error:  # both libraries raise many classes, bare Exception among them
        raise SpecError(
            str(folder),
            f"holds no tokenizer that can be read ({error})",
            "Use a folder with a tokenizer.json",
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise SpecError(
            str(folder), "holds a slow tokenizer", "Convert it: save it with a tokenizer.json"
        )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _load(folder: Path) -> Any:
    if (folder / "tokenizer.json").is_file():
        # Not AutoTokenizer: it imports torch, and may rebuild what the file already says.
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def tokenizer_identity(tokenizer: Any) -> str:
    """Hash of all that decides which ids a text becomes and which are added around it.

    Covers vocabulary, merges, normalisation, splitting, added tokens, the post-processor and the
    end token; leaves out file names, the chat template, padding and truncation.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = ("model", "normalizer", "pre_tokenizer", "post_processor", "added_tokens")
    kept = {name: described.get(name) for name in parts}
    kept["end"] = tokenizer.eos_token_id
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
