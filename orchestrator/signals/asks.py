"""The asks that a job's encodings stand for. Loads no torch."""

from orchestrator.signals.records import FullAsk, HiddenAsk, SampledAsk, SignalAsk, TopKAsk
from orchestrator.spec.models import (
    EncodingSpec,
    FullEncoding,
    HiddenEncoding,
    RoleSpec,
    SampledEncoding,
    TopKEncoding,
)


def training_ask(role: RoleSpec) -> SignalAsk:
    """What a student asks of a role while it trains."""
    return ask_of(role.encoding)


def ask_of(encoding: EncodingSpec) -> SignalAsk:
    """What a role of this encoding is asked."""
    match encoding:
        case FullEncoding():
            return FullAsk(encoding.dtype)
        case HiddenEncoding():
            return HiddenAsk(encoding.dtype)
        case TopKEncoding():
            return TopKAsk(encoding.k, encoding.dtype, tuple(encoding.temperatures))
        case SampledEncoding():
            return SampledAsk(encoding.draws, encoding.temperature, encoding.dtype, encoding.seed)


def exact_ask(*, has_head: bool) -> SignalAsk:
    """What evaluation asks: it loses nothing."""
    return HiddenAsk("float32") if has_head else FullAsk("float32")
