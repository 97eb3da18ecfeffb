"""The one place where a model is run forward, for the student and for served roles alike.

Promises: nothing is cached between calls; the hidden states are the very tensor that enters the
output head (after the final norm); attention stays inside each sample of a packed row. The last
holds because `position_ids` restart and `use_cache=False`: with transformers' default
(`use_cache=True`) the restarts are ignored and samples see each other, silently. Models for which
it does not hold are found by `packing_is_exact`. Imports torch; never ray, deepspeed or mlflow.

Shape letters: R rows, T positions, d width of the last hidden state, V vocabulary (or classes).
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from strategies.contract import Batch, Head, Outputs


def unwrapped(module: nn.Module) -> nn.Module:
    """The model itself, without peft's wrapper. Its LoRA layers stay in place and active."""
    # The model inside bears the adapters' config too, once it has been wrapped.
    return module.get_base_model() if hasattr(module, "get_base_model") else module  # type: ignore[operator]


def backbone(module: nn.Module) -> nn.Module | None:
    """The part of a transformers causal model below its output head; None for other modules."""
    model = unwrapped(module)
    if not hasattr(model, "get_decoder") or not hasattr(model, "get_output_embeddings"):
        return None
    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
    return None if decoder is model else decoder


def embedding_of(module: nn.Module) -> nn.Module | None:
    """What embeds a text's tokens; None where that is not told, or is no table."""
    model: Any = unwrapped(module)
    if not hasattr(model, "get_input_embeddings"):
        return None
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:  # what transformers raises for a model without one
        return None
    return embedding if hasattr(embedding, "embedding_dim") else None


def forward_hidden(module: nn.Module, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Hidden states as they enter the output head.

    Args:
        module: a transformers causal model, with or without peft's wrapper.
        input_ids: [R, T] int64.
        position_ids: [R, T] int64, restarting at 0 in each sample.

    Returns:
        [R, T, d], differentiable unless the caller says otherwise.

    Raises:
        TypeError: the module has no backbone that can be run alone; use `forward_logits`.
    """
    hidden = _run(_backbone_or_raise(module), input_ids, position_ids)
    return hidden[0] if isinstance(hidden, tuple) else hidden.last_hidden_state


def forward_routed(
    module: nn.Module, input_ids: Tensor, position_ids: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As `forward_hidden`, and what the routers of a mixture of experts said.

    Returns:
        [R, T, d], and per layer with experts [R * T, E] router logits; both differentiable.
    """
    decoder = _backbone_or_raise(module)
    output = _run(decoder, input_ids, position_ids, output_router_logits=True)
    return output.last_hidden_state, tuple(output.router_logits)


def _backbone_or_raise(module: nn.Module) -> nn.Module:
    decoder = backbone(module)
    if decoder is None:
        raise TypeError(
            f"{type(module).__name__} has no backbone apart from its head; use forward_logits"
        )
    return decoder


def forward_logits(module: nn.Module, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Logits of every position of a causal model.

    Args:
        module: any causal module of ours; see `load.load_model` for what an imported one must do.
        input_ids: [R, T] int64.
        position_ids: [R, T] int64, restarting at 0 in each sample.

    Returns:
        [R, T, V].
    """
    return logits_of(_run(module, input_ids, position_ids))


class NamedLogits(dict[str, Tensor]):
    """What a classifier with several outputs returns: the logits of each by name, [R, V].

    Args:
        named: the outputs.
        main: the name of the one that is the answer where one is wanted.
    """

    def __init__(self, named: Mapping[str, Tensor], main: str) -> None:
        super().__init__(named)
        self._main = main

    @property
    def logits(self) -> Tensor:
        """[R, V] of the main output."""
        return self[self._main]


def classify(module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits of every example of a classifier; of one with several outputs the main one's.

    Arguments and errors as in `classify_all`.

    Returns:
        [R, V].
    """
    return classify_all(module, inputs)[0]


def classify_all(
    module: nn.Module, inputs: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of every example of a classifier, and those of each output of one with several.

    Args:
        module: any classifier of ours; see `load.load_model` for what an imported one must do.
        inputs: by name, [R, ...]: whole numbers as they are, others cast to the module's dtype.
            `embedding_offset`, [R, T, d], is not the module's: it is added to its embedded tokens.
            Where there is an `attention_mask`, what it hides becomes the model's padding id: some
            families find the last token of a text by that id and not by the mask.

    Returns:
        [R, V], and by name [R, V]; nothing by name where it has one output.

    Raises:
        TypeError: the module returned something else.
        CannotMove: embeddings are to be moved, and what embeds tokens is not told rightly.
    """
    dtype = next(module.parameters()).dtype
    given = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    padding = getattr(getattr(module, "config", None), "pad_token_id", None)
    if padding is not None and "attention_mask" in given:
        hidden = given["attention_mask"] == 0
        given["input_ids"] = given["input_ids"].masked_fill(hidden, padding)
    with _offset(module, given.pop("embedding_offset", None)):
        output = module(**given)
    logits, rows = logits_of(output), next(iter(given.values())).shape[0]
    named = dict(output) if isinstance(output, NamedLogits) else {}
    for each in (logits, *named.values()):
        if each.ndim != 2 or each.shape != (rows, logits.shape[1]):
            raise TypeError(
                f"{type(module).__name__} returned logits of shape {list(each.shape)} for {rows} "
                "samples; a classifier returns [samples, classes]"
            )
    return logits, named


class CannotMove(ValueError):
    """A model's embedded tokens cannot be moved: where they are is not known."""


@contextmanager
def _offset(module: nn.Module, offset: Tensor | None) -> Iterator[None]:
    """Inside, a forward adds something to each embedded token."""
    if offset is None:
        yield
        return
    embedding, times = embedding_of(module), 0
    if embedding is None:
        raise CannotMove(f"{type(module).__name__} does not tell what embeds its tokens")

    def add(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
        nonlocal times
        times += 1
        if embedded.shape != offset.shape:
            shapes = f"{list(embedded.shape)}, not {list(offset.shape)}"
            raise CannotMove(f"what embeds the tokens of {type(module).__name__} gives {shapes}")
        return embedded + offset

    handle = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
    if times != 1:  # of some families the table that is told is not the one that is read
        raise CannotMove(
            f"what {type(module).__name__} tells to embed its tokens ran {times} times in a "
            "forward, and not once"
        )


def outputs_of(module: nn.Module, head: Head | None, batch: Batch) -> Outputs:
    """What a model of ours says at the N loss-bearing positions of a batch.

    Args:
        module: causal model or classifier, by the batch's inputs.
        head: its output head; None: it cannot be told apart, and logits are given, those of each
            member too where there are several.
        batch: its own inputs.
    """
    if head is None:
        return _logit_outputs(module, batch)
    hidden = forward_hidden(module, batch.inputs["input_ids"], batch.inputs["position_ids"])
    return Outputs(hidden=hidden[batch.mask], head=head)


def _logit_outputs(module: nn.Module, batch: Batch) -> Outputs:
    """Without a head; of a classifier with several outputs those of each besides."""
    if "position_ids" in batch.inputs:
        ids, positions = batch.inputs["input_ids"], batch.inputs["position_ids"]
        return Outputs(logits=forward_logits(module, ids, positions)[batch.mask])
    logits, named = classify_all(module, batch.inputs)
    learned = batch.mask[:, 0]
    members = {name: Outputs(logits=each[learned]) for name, each in named.items()}
    return Outputs(logits=logits[learned], members=members)


def logits_of(output: Any) -> Tensor:
    """What a module returned, as logits: a tensor, or an object with `.logits`."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model returned {type(output).__name__}; return a tensor of logits, or an object "
            "with .logits"
        )
    return logits


def packing_is_exact(module: nn.Module) -> bool:
    """Whether samples that share a row are strangers to each other, by trying it.

    Two tests on one tiny row of two samples: other tokens in the first sample must leave the second
    as it was (to the last bit but for experts that regroup), and the second sample alone must give
    what it gave packed. Run it once at load, before any engine wraps the module: four forwards of
    at most twelve tokens.
    """
    device, vocabulary = input_device(module), _vocabulary_floor(module)
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, vocabulary, (2, 12), generator=generator)
    other = ids.clone()
    other[:, :5] = (other[:, :5] + 1) % vocabulary
    restarting = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, 12)

    def second(tokens: Tensor, positions: Tensor) -> Tensor:
        tokens, positions = tokens.to(device), positions.to(device)
        if backbone(module) is None:
            return forward_logits(module, tokens, positions)[:, -7:].float()
        return forward_hidden(module, tokens, positions)[:, -7:].float()

    with torch.no_grad(), evaluating(module):
        packed, beside_other = second(ids, restarting), second(other, restarting)
        joined = second(ids, torch.arange(12).expand(2, 12))
        alone = second(ids[:, 5:], restarting[:, 5:])
    dtype = next(module.parameters()).dtype
    size, epsilon = alone.abs().max(), torch.finfo(dtype).eps
    half = dtype in (torch.bfloat16, torch.float16)
    if (packed - beside_other).abs().max() > epsilon * size * (1 if half else 8):
        return False
    # Alone, shapes differ and so do last bits: up to some per cent in half precision, where the
    # row run as one sample says how large a real difference would be.
    limit = 0.05 * (joined - alone).abs().max() if half else 1e-4 * size
    return bool((packed - alone).abs().max() <= limit)


def input_device(module: nn.Module) -> torch.device:
    """Where a module wants its inputs: the device of its first parameter."""
    return next(module.parameters()).device


@contextmanager
def evaluating(module: nn.Module):
    """Dropout off inside, and every submodule's mode as it was outside."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _run(model: nn.Module, input_ids: Tensor, position_ids: Tensor, **further: Any) -> Any:
    """One call, with the arguments that the module's forward takes."""
    rows, length = input_ids.shape
    # Flash attention reads restarts only in a batch of one, so there the rows are laid end to end.
    flat = rows > 1 and _attention(model) == "flash_attention_2"
    if flat:
        input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
    arguments: dict[str, Any] = {"input_ids": input_ids, **further}
    accepted = _parameters(model)
    if "position_ids" in accepted:
        arguments["position_ids"] = position_ids
    if "use_cache" in accepted:
        arguments["use_cache"] = False
    output = model(**arguments)
    if flat:
        for name in ("last_hidden_state", "logits"):
            value = getattr(output, name, None)
            if value is not None:
                setattr(output, name, value.reshape(rows, length, value.shape[-1]))
    return output


def _parameters(model: nn.Module) -> frozenset[str]:
    """Names that a forward takes; one with **kwargs passes what we give it to its decoder."""
    parameters = inspect.signature(unwrapped(model).forward).parameters.values()
    names = {p.name for p in parameters}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters) and hasattr(
        model, "config"
    ):
        names |= {"position_ids", "use_cache"}
    return frozenset(names)


def _attention(model: nn.Module) -> str | None:
    return getattr(getattr(model, "config", None), "_attn_implementation", None)


def _vocabulary_floor(module: nn.Module) -> int:
    """A number of token ids that the module surely knows."""
    model = unwrapped(module)
    if hasattr(model, "get_input_embeddings"):
        return int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    return 2
