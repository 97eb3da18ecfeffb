"""Whether student and role look at the same parts of a held-out sample."""

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.models.forward import classify, evaluating
from orchestrator.models.gradients import by_sample, confidence_gradients, placing
from orchestrator.signals.records import INPUT, GradientsAsk
from orchestrator.spec.diagnostics import InputGradientsSpec
from strategies.contract import Batch, GradientsSignal
from strategies.features import gradient_pairs

from .site import Site


def measure_input_gradients(site: Site, spec: InputGradientsSpec, work: str) -> dict[str, float]:
    """`cosine`: mean over `places` of that between gradients of log max p by the input. Collective.

    Places are samples, or the tokens of texts, where the role's gradient is not 0.
    """
    role, text = site.role(spec.role), site.job.data.reads_text
    key = f"{role}.gradients"
    asks = {key: GradientsAsk((INPUT,), "float32", by_token=text)}
    sums = {"cosine": 0.0, "places": 0.0}
    parts = site.held_out.parts
    for answered in site.asker.answered(site.held_out.store, parts, asks, work):
        signal = answered.signals[key]
        assert isinstance(signal, GradientsSignal)  # it was asked for
        ours, theirs, pointing = gradient_pairs(
            _student(site, answered.batch, text=text), signal.gradients[INPUT]
        )
        cosine = functional.cosine_similarity(ours.double(), theirs.double(), dim=1)
        sums["cosine"] += float(cosine[pointing].sum())
        sums["places"] += float(pointing.sum())
    found = site.sum_numbers(sums)
    return {**found, "cosine": found["cosine"] / max(found["places"], 1.0)}


def _student(site: Site, batch: Batch, *, text: bool) -> Tensor:
    """The student's gradients of the N samples."""
    model = site.engine.whole_module.model
    assert isinstance(model, torch.nn.Module)  # of a `StudentModule`
    with (
        torch.enable_grad(),
        evaluating(model),
        placing(model, (INPUT,), INPUT, text=text) as places,
    ):
        logits = classify(model, batch.inputs)
        found = confidence_gradients(logits, places, create_graph=False)
    return by_sample(found[INPUT], batch.inputs.get("attention_mask"))[batch.mask[:, 0]]
