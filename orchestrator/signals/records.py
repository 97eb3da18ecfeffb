"""What crosses the wire between a student and a served role. Numpy and the standard library only.

Records carry a protocol version, because an engine may live in another environment. Arrays are
numpy, never torch tensors: Ray moves numpy out of band. bfloat16 travels as a uint16 view.

Samples travel end to end without padding, and every array of an answer has one entry a wanted
position, in the samples' order. So an answer can be cut into the answers of its samples, which is
what the cache keeps, and joined again for another batch.

Shape letters: S samples, M tokens of all samples, N wanted positions in order, K kept entries,
L rungs of the temperature ladder, d width, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

PROTOCOL = 2

FloatWire = Literal["float32", "bfloat16", "float16"]
LogWire = Literal["float32", "float16", "int8"]


@dataclass(frozen=True, slots=True)
class FullAsk:
    """Logits of the whole vocabulary; `signals.layouts` has the arrays."""

    dtype: FloatWire
    kind: Literal["full"] = "full"


@dataclass(frozen=True, slots=True)
class HiddenAsk:
    """Last hidden states; `signals.layouts` has the arrays."""

    dtype: FloatWire
    kind: Literal["hidden"] = "hidden"


@dataclass(frozen=True, slots=True)
class TopKAsk:
    """The k likeliest entries; `signals.layouts` has the arrays."""

    k: int
    dtype: LogWire
    temperatures: tuple[float, ...]
    kind: Literal["topk"] = "topk"


@dataclass(frozen=True, slots=True)
class SampledAsk:
    """Entries drawn from the role; `signals.layouts` has the arrays.

    The draws of a position depend on `seed`, the sample's tokens and the position alone.
    """

    draws: int
    temperature: float  # of the proposal
    dtype: LogWire
    seed: int
    kind: Literal["sampled"] = "sampled"


@dataclass(frozen=True, slots=True)
class LayersAsk:
    """Outputs of named modules; `signals.layouts` has the arrays."""

    layers: tuple[str, ...]  # module paths
    dtype: FloatWire
    project: int | None = None  # width of a fixed random projection made on the replica
    seed: int = 0  # of the projection
    kind: Literal["layers"] = "layers"


@dataclass(frozen=True, slots=True)
class AttentionAsk:
    """Attention probabilities of named modules; `signals.layouts` has the arrays."""

    layers: tuple[str, ...]
    dtype: FloatWire
    kind: Literal["attention"] = "attention"


@dataclass(frozen=True, slots=True)
class GradientsAsk:
    """Gradients of log max p, a classifier's confidence; `signals.layouts` has the arrays."""

    layers: tuple[str, ...]  # paths of what they are taken by: modules, or `INPUT`
    dtype: FloatWire
    by_token: bool  # texts: one at each token; else one a sample
    kind: Literal["gradients"] = "gradients"


@dataclass(frozen=True, slots=True)
class VjpAsk:
    """What a classifier gives at an input that may be new, and how that changes with the input.

    A sample is its features, or a text with what is added to its embedded tokens, and behind them
    float32 numbers c, one a class; so c is part of what is sent, hashed and cached. With o what is
    given, the gradient by the features, or by what is added, is that of c . o (`product`: a
    vector-Jacobian product) or of |o - c|^2 (`distance`). `signals.layouts` has the arrays.
    """

    of: Literal["product", "distance"]
    output: Literal["logits", "probabilities"]  # o
    temperature: float  # of the probabilities; 1 for logits
    dtype: FloatWire
    by_word: bool = False  # texts: the gradient has a number a word, 0 where that is none to move
    kind: Literal["vjp"] = "vjp"


INPUT = "(input)"
"""Path of what enters a classifier: features as they are, a text's tokens once embedded."""

SignalAsk = (
    FullAsk | HiddenAsk | TopKAsk | SampledAsk | LayersAsk | AttentionAsk | GradientsAsk | VjpAsk
)


@dataclass(frozen=True, slots=True)
class Request:
    """What one role is asked about some samples.

    `request_id` is unique per (tenant, work); a re-dispatch keeps it and raises `attempt`, so an
    answer is idempotent and a late one can be dropped.
    """

    request_id: str
    role: str
    tenant: str
    ask: SignalAsk
    tokens: np.ndarray  # [M] int32, samples end to end
    lengths: np.ndarray  # [S] int32, tokens of each sample
    wanted: np.ndarray  # [M] bool: positions whose answer crosses back
    fingerprint: str | None = None  # the role fingerprint expected; None: whatever is served
    attempt: int = 1
    protocol: int = PROTOCOL
    weight: float = 1.0  # of the tenant, > 0: its share of a busy replica


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer for the wanted positions of a request, in order. Every array is [N, ...]."""

    request_id: str
    role: str
    ask: SignalAsk
    arrays: dict[str, np.ndarray]
    vocabulary: int
    fingerprint: str
    attempt: int = 1
    forward_s: float = 0.0  # time the replica's model worked, for pool busy and cost
    queued_s: float = 0.0
    protocol: int = PROTOCOL

    @property
    def nbytes(self) -> int:
        """Bytes of arrays on the wire."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, slots=True)
class RoleDescription:
    """What a role serves, the same on all its replicas."""

    role: str
    fingerprint: str
    vocabulary: int
    width: int  # d of the last hidden state
    parameters: int
    layers: Mapping[str, int] = field(default_factory=dict)  # width of modules' outputs by path
    attention: Mapping[str, int] = field(default_factory=dict)  # heads of those that tell it
    reads: str = "tokens"  # what its samples are to it; of a classifier, `Reading.label`
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of layers that give maps
    input_width: int = 0  # numbers of a sample or of an embedded token; 0: gradients are not told


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """A role's output head, sent once per node: see `strategies.contract.Head` for the formula."""

    role: str
    fingerprint: str
    weight: np.ndarray  # [V, d] float32, or a uint16 view of bfloat16
    bias: np.ndarray | None
    scale: float
    softcap: float | None
    bfloat16: bool = False
    protocol: int = PROTOCOL
