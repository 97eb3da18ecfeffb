"""Load a tokenizer, and name what decides which ids a text becomes.

Imports transformers, and torch with it only for folders without a tokenizer.json.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat template, and the special tokens it may write, by name."""

    template: str
    variables: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """Text to ids. `backend` is a `tokenizers.Tokenizer` that truncates, pads and adds nothing.

    Its offsets hold every character: byte-level post-processors would take spaces out of them.
    """

    backend: Any
    before: tuple[int, ...]  # ids the tokenizer puts before a text, such as a begin token
    after: tuple[int, ...]
    end: int | None  # the end token
    chat: Chat | None

    @property
    def identity(self) -> str:
        """Hash of all that decides which ids a text becomes and which are added around it.

        Leaves out file names, the chat template, padding and truncation.
        """
        described = json.loads(self.backend.to_str())
        kept = {
            name: described.get(name)
            for name in ("model", "normalizer", "pre_tokenizer", "added_tokens")
        }
        kept["around"] = [self.before, self.after, self.end]
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def load_tokenizer(folder: str | Path) -> TextTokenizer:
    """The tokenizer of a folder in Hugging Face layout.

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
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    before, after = _around(backend)
    backend.post_processor = None
    return TextTokenizer(backend, before, after, tokenizer.eos_token_id, _chat(tokenizer))


def _load(folder: Path) -> Any:
    if (folder / "tokenizer.json").is_file():
        # Not AutoTokenizer: it imports torch, and may rebuild what the file already says.
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _around(backend: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids put before and after a text."""
    bare = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a").ids
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return tuple(whole[:start]), tuple(whole[start + len(bare) :])


def _chat(tokenizer: Any) -> Chat | None:
    if not tokenizer.chat_template:
        return None
    return Chat(tokenizer.get_chat_template(), dict(tokenizer.special_tokens_map))
