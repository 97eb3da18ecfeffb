"""How large a model is, told from its config or the headers of its weights.

Promises: reads JSON and safetensors headers only; imports neither torch nor transformers. What
cannot be told is None, never a guess: a hub id not on this machine, an import path, a registry URI.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.models.folder import is_adapter, weight_files
from orchestrator.models.made import is_made
from orchestrator.spec import JobSpec
from orchestrator.spec.models import ModelSpec, StudentSpec

_WIDTH = ("hidden_size", "n_embd", "d_model", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "d_ff")
_ABSOLUTE_POSITIONS = {"gpt2": "n_positions", "opt": "max_position_embeddings"}
_UNGATED = frozenset({"gpt2", "gpt_neo", "gpt_neox", "opt", "bloom", "phi", "falcon", "gptj"})


@dataclass(frozen=True, slots=True)
class ModelSize:
    """None where it cannot be told without loading the model."""

    parameters: int | None = None
    width: int | None = None  # of the last hidden state
    vocabulary: int | None = None  # or classes


def model_size(
    spec: ModelSpec, earlier: Sequence[JobSpec] = (), vocabulary: int | None = None
) -> ModelSize:
    """Size of the model that `spec` names.

    Args:
        spec: the model.
        earlier: the jobs before this one in its file; `{job: name}` models are looked up there.
        vocabulary: ids of the job's tokenizer: what a fresh architecture gets by default.
    """
    if isinstance(spec, StudentSpec) and spec.members is not None:
        return _together([model_size(one, earlier, vocabulary) for one in spec.members.values()])
    kind, value = spec.source
    classifier = spec.task == "classifier"
    if kind == "architecture":
        return _from_config({"vocab_size": vocabulary, **value}, None, classifier)
    if kind == "path" and is_made(value):
        return ModelSize(parameters=_stored_parameters(Path(value)))  # at most, of an edited copy
    if kind == "path" and Path(value).is_dir() and not is_adapter(value):
        config = json.loads((Path(value) / "config.json").read_text(encoding="utf-8"))
        stored = None if spec.edit else _stored_parameters(Path(value))
        return _from_config({**config, **spec.edit}, stored, classifier)
    if kind == "job":
        for index, job in enumerate(earlier):
            if job.name == value:
                return model_size(job.student.model_of(spec.member), earlier[:index], vocabulary)
    return ModelSize()


def _together(sizes: Sequence[ModelSize]) -> ModelSize:
    """Of members, of the same classes."""
    counts = [size.parameters for size in sizes]
    known = [count for count in counts if count is not None]
    classes = next((size.vocabulary for size in sizes if size.vocabulary is not None), None)
    return ModelSize(sum(known) if len(known) == len(counts) else None, None, classes)


def _from_config(config: Mapping[str, Any], stored: int | None, classifier: bool) -> ModelSize:
    nested = config.get("text_config")
    text = {**config, **nested} if isinstance(nested, Mapping) else config
    return ModelSize(
        parameters=stored if stored is not None else estimate_parameters(text),
        width=_first(text, _WIDTH),
        vocabulary=_classes(config) if classifier else _first(text, ("vocab_size",)),
    )


def _classes(config: Mapping[str, Any]) -> int | None:
    """Classes of a classifier's config: it names them, or transformers' default of two holds."""
    named = config.get("id2label")
    return _first(config, ("num_labels",)) or (len(named) if isinstance(named, Mapping) else 2)


def estimate_parameters(config: Mapping[str, Any]) -> int | None:
    """Parameters of a dense decoder by its config: matrices exactly, norms and biases left out.

    Good to a few per cent for the Llama, Qwen, Mistral, Gemma and GPT-2 families; each expert of a
    mixture counts. None if the config does not state width, layers and vocabulary.
    """
    width, layers = _first(config, _WIDTH), _first(config, _LAYERS)
    vocabulary = _first(config, ("vocab_size",))
    if width is None or layers is None or vocabulary is None:
        return None
    family = str(config.get("model_type", ""))
    heads = _first(config, ("num_attention_heads", "n_head")) or 1
    head_width = _first(config, ("head_dim",)) or width // heads
    kv_heads = _first(config, ("num_key_value_heads",)) or heads
    attention = 2 * width * heads * head_width + 2 * width * kv_heads * head_width
    inner = _first(config, _INNER) or 4 * width
    experts = _first(config, ("num_local_experts", "num_experts")) or 1
    inner = (_first(config, ("moe_intermediate_size",)) or inner) if experts > 1 else inner
    mlp = experts * (2 if family in _UNGATED else 3) * width * inner
    tied = bool(config.get("tie_word_embeddings", family in _UNGATED))
    positions = _first(config, (_ABSOLUTE_POSITIONS.get(family, ""),)) or 0
    return layers * (attention + mlp) + (vocabulary * (1 if tied else 2) + positions) * width


def _stored_parameters(folder: Path) -> int | None:
    try:
        files = weight_files(folder)
    except FileNotFoundError:
        return None  # pickled weights that the job allows: only loading would tell
    return sum(_elements(file) for file in files)


def _elements(file: Path) -> int:
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        count = 1
        for length in tensor["shape"]:
            count *= length
        total += count
    return total


def _first(config: Mapping[str, Any], names: Sequence[str]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
