"""Train the tokenizer of the examples: byte-level BPE on the standard library's source.

Held-out documents are never shown to it. The same interpreter and `tokenizers` version write the
same bytes. Run with Stillhouse installed: `python docs/examples/make_tokenizer.py`.
"""

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from orchestrator.data.split import is_held_out
from orchestrator.data.stdlib import documents

END = "<|endoftext|>"
VOCABULARY = 4096
HELD_OUT = 0.05


def train() -> Tokenizer:
    """A byte-level BPE tokenizer with GPT-2's splitting rule; every byte has a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (record["text"] for name, record in documents() if not is_held_out(name, HELD_OUT))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the three files `AutoTokenizer` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": END, "eos_token": END}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        **special,
    }
    for name, content in (("tokenizer_config", config), ("special_tokens_map", special)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parent / "teacher"
    parser.add_argument("folder", type=Path, nargs="?", default=default)
    write(train(), parser.parse_args().folder)
