"""The arrays that answer an ask: names, shapes, types. Fixed by the ask and the sizes of the role.

Every array is [N, ...], an entry a wanted position in order, so an answer can be cut by sample and
joined again. Only the last axis of `attention`, of `gradients` by token and of the gradient of a
`vjp` by word depends on the request: it is as long as the longest sample and zero filled. Numpy
only: planners and clients know the bytes of an answer without torch.

| ask | array | after [N] | type |
|---|---|---|---|
| full | logits | [V] | the ask's float |
| hidden | hidden | [d] | the ask's float |
| topk | ids | [bytes] | uint8: k ids of `id_bits` bits each, see `encodings.bits` |
| | logprobs | [k] | float32 or float16; int8: uint8 codes, see `encodings.codes` |
| | range | [2] | float16, with int8 only: what the lowest and highest code stand for |
| | rest | [L] | float32: logsumexp of (log-probability / rung) over the entries not kept |
| sampled | ids | [bytes] | uint8: the draws, rising |
| | weights | [draws] | as `logprobs`: log of (role / proposal); unless the temperature is 1 |
| | range | [2] | float16, with `weights` in int8 |
| | entropy | [] | float32: the role's, nats |
| layers | the path | [d] or [project] | the ask's float, an array a layer |
| attention | the path | [heads, longest] | the ask's float, an array a layer |
| gradients | the path | [d], or by token [d, longest] | the ask's float, an array a path |
| vjp | output | [V] | the ask's float |
| | gradient | [d], or by word [longest] | the ask's float |

bfloat16 is its uint16 view. Letters: N wanted positions, V vocabulary, d width, L rungs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Protocol

import numpy as np

from orchestrator.errors import SpecError

from .records import (
    INPUT,
    AttentionAsk,
    FloatWire,
    FullAsk,
    GradientsAsk,
    HiddenAsk,
    LayersAsk,
    LogWire,
    SampledAsk,
    SignalAsk,
    TopKAsk,
    VjpAsk,
)

Layout = dict[str, tuple[tuple[int, ...], np.dtype]]
"""By array name: the shape after [N], and the type."""

_SHOWN = 12  # layers that a message lists


class Described(Protocol):
    """What a layout needs to know of a role."""

    @property
    def role(self) -> str:
        """Its name, for messages."""
        ...

    @property
    def vocabulary(self) -> int:
        """V."""
        ...

    @property
    def width(self) -> int:
        """d of the last hidden state."""
        ...

    @property
    def layers(self) -> Mapping[str, int]:
        """Width of the output of each module by path, a map's with all its positions."""
        ...

    @property
    def attention(self) -> Mapping[str, int]:
        """Heads of each module that tells its attention, by path."""
        ...

    @property
    def input_width(self) -> int:
        """Numbers of a sample or of an embedded token; 0: gradients are not told."""
        ...


@dataclass(frozen=True, slots=True)
class Sizes:
    """A `Described` of plain numbers; 0 and empty where an ask does not need them."""

    role: str = "role"
    vocabulary: int = 0
    width: int = 0
    layers: Mapping[str, int] = field(default_factory=dict)
    attention: Mapping[str, int] = field(default_factory=dict)
    input_width: int = 0


def layout(ask: SignalAsk, role: Described, longest: int = 0) -> Layout:
    """Shape after [N] and type of each array that answers `ask`.

    Args:
        ask: what is asked.
        role: who is asked.
        longest: words of the request's longest sample, on which only `attention`, `gradients` and
            `vjp` depend.

    Raises:
        SpecError: the role cannot answer: k above its vocabulary, a layer it lacks.
    """
    match ask:
        case FullAsk():
            return {"logits": ((role.vocabulary,), float_dtype(ask.dtype))}
        case HiddenAsk():
            return {"hidden": ((role.width,), float_dtype(ask.dtype))}
        case TopKAsk():
            if ask.k > role.vocabulary:
                raise SpecError(
                    f"roles.{role.role}.encoding.k",
                    f"is {ask.k}, and the role's vocabulary is {role.vocabulary}",
                    f"Set it to {role.vocabulary} or less",
                )
            return {
                "ids": _ids(ask.k, role),
                **_logs("logprobs", ask.k, ask.dtype),
                "rest": ((len(ask.temperatures),), np.dtype(np.float32)),
            }
        case SampledAsk():
            weighted = ask.temperature != 1.0
            return {
                "ids": _ids(ask.draws, role),
                **(_logs("weights", ask.draws, ask.dtype) if weighted else {}),
                "entropy": ((), np.dtype(np.float32)),
            }
        case LayersAsk():
            widths = _with_input(role)
            check_layers(ask.layers, widths, role.role)
            dtype = float_dtype(ask.dtype)
            return {path: ((ask.project or widths[path],), dtype) for path in ask.layers}
        case AttentionAsk():
            check_attention(ask.layers, role)
            dtype = float_dtype(ask.dtype)
            return {path: ((role.attention[path], longest), dtype) for path in ask.layers}
        case GradientsAsk():
            widths = _with_input(role) if role.input_width else {}
            check_layers(ask.layers, widths, role.role)
            dtype, tokens = float_dtype(ask.dtype), (longest,) if ask.by_token else ()
            return {path: ((widths[path], *tokens), dtype) for path in ask.layers}
        case VjpAsk():
            check_differentiable(role)
            dtype, numbers = float_dtype(ask.dtype), longest if ask.by_word else role.input_width
            return {"output": ((role.vocabulary,), dtype), "gradient": ((numbers,), dtype)}


def position_bytes(ask: SignalAsk, role: Described, longest: int = 0) -> int:
    """Bytes of one wanted position's answer."""
    return sum(
        int(np.prod(shape)) * dtype.itemsize for shape, dtype in layout(ask, role, longest).values()
    )


def empty(
    ask: SignalAsk, role: Described, positions: int, longest: int = 0
) -> dict[str, np.ndarray]:
    """Zeroed arrays for N = `positions`."""
    arrays = layout(ask, role, longest).items()
    return {name: np.zeros((positions, *shape), dtype) for name, (shape, dtype) in arrays}


def id_bits(vocabulary: int) -> int:
    """Bits that tell the ids of a vocabulary apart: ceil(log2 V), at least 1."""
    return max(1, (vocabulary - 1).bit_length())


def id_bytes(count: int, vocabulary: int) -> int:
    """Bytes of `count` packed ids."""
    return (count * id_bits(vocabulary) + 7) // 8


def float_dtype(dtype: FloatWire) -> np.dtype:
    """The type on the wire; bfloat16 as its uint16 view."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def check_layers(asked: Iterable[str], known: Mapping[str, int], role: str) -> None:
    """Refuse modules that a role does not have.

    Raises:
        SpecError: names the module and the role's own, shortened.
    """
    for path in asked:
        if path not in known:
            near = get_close_matches(path, known, _SHOWN, cutoff=0.5) or list(known)[:_SHOWN]
            more = f" and {len(known) - len(near)} more" if len(known) > len(near) else ""
            raise SpecError(
                f"roles.{role}",
                f"has no layer {path}; it has {', '.join(near) or 'none that can be told'}{more}",
                "Name layers of the role",
            )


def check_attention(asked: Iterable[str], role: Described) -> None:
    """Refuse attention that a role does not tell.

    Raises:
        SpecError: the role's attention does not give its probabilities, or has no such module.
    """
    if not role.attention:
        raise SpecError(
            f"roles.{role.role}.attention",
            "is of a kind that does not tell its probabilities",
            "Set it to eager",
        )
    check_layers(asked, role.attention, role.role)


def check_differentiable(role: Described) -> None:
    """Refuse gradients by the input of a role that has none.

    Raises:
        SpecError: nobody says what embeds its tokens, or how many numbers a sample has, or torch
            cannot differentiate it.
    """
    if not role.input_width:
        raise SpecError(
            f"roles.{role.role}",
            "has no gradient by its input that can be told",
            "Use a classifier that torch can differentiate: of features, and give "
            "data.sources.*.format a shape; or of text, with get_input_embeddings",
        )


def _with_input(role: Described) -> dict[str, int]:
    return {**role.layers, INPUT: role.input_width} if role.input_width else dict(role.layers)


def _ids(count: int, role: Described) -> tuple[tuple[int, ...], np.dtype]:
    return (id_bytes(count, role.vocabulary),), np.dtype(np.uint8)


def _logs(name: str, count: int, dtype: LogWire) -> Layout:
    """Logarithms, and what the codes of int8 stand for."""
    if dtype == "int8":
        return {
            name: ((count,), np.dtype(np.uint8)),
            "range": ((2,), np.dtype(np.float16)),
        }
    return {name: ((count,), np.dtype(dtype))}
