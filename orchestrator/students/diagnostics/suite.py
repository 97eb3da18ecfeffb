"""A job's diagnostics: which are due, and what they find."""

from collections.abc import Collection, Mapping
from typing import Any

from orchestrator.data import TokenData
from orchestrator.data.tokenizer import load_tokenizer
from orchestrator.errors import SpecError
from orchestrator.spec import JobSpec
from orchestrator.spec.diagnostics import (
    DiagnosticSpec,
    FidelitySpec,
    GradientNoiseSpec,
    GradientNormSpec,
    InputGradientsSpec,
    LogitDistanceSpec,
    ModifiedGradientSpec,
    ObjectiveLossSpec,
    OmegaSpec,
    PrecisionRecallSpec,
    RankingSpec,
)
from strategies.objective import Objective

from .distance import measure_logit_distance
from .inputs import measure_input_gradients
from .modified import measure_modified_gradient
from .noise import measure_noise, measure_norms
from .objective import measure_objective
from .positions import measure_omega
from .ranking import measure_ranking
from .site import Site, training_rows
from .texts import measure_fidelity, measure_precision_recall
from .writing import prompts_of


def check_diagnostics(job: JobSpec, data: TokenData, crossing: Collection[str]) -> None:
    """Refuse diagnostics that data or roles cannot answer. Every rank finds the same.

    Args:
        job: as its file says.
        data: its samples.
        crossing: roles with another tokenizer.

    Raises:
        SpecError: names what is lacking.
    """
    for index, spec in enumerate(job.evaluation.diagnostics):
        field = f"evaluation.diagnostics.{index}"
        for named in spec.asked:
            if (named or job.compared_with(crossing)) in (None, *crossing):
                raise SpecError(
                    f"{field}.role",
                    f"is {named or 'absent'}, and {spec.kind} compares with a role of the job's "
                    f"tokenizer (with another: {', '.join(crossing)})",
                    "Name a role that has it, or remove the diagnostic",
                )
        if isinstance(spec, GradientNoiseSpec | GradientNormSpec | ModifiedGradientSpec):
            wanted = spec.batches * job.training.micro_batch
            found = len(training_rows(job, data, spec.batches))
            if found < wanted:
                raise SpecError(
                    f"{field}.batches",
                    f"is {spec.batches} of {job.training.micro_batch} rows each, and the training "
                    f"data have {found} rows",
                    "Lower it, or training.micro_batch",
                )
        elif not len(data.held_out):
            raise SpecError(
                field,
                f"is {spec.kind}, which looks at held-out data, and there are none",
                "Raise data.held_out",
            )
        if isinstance(spec, RankingSpec):
            _check_lists(spec, data.classes, field)
        if spec.written_tokens and not prompts_of(data.held_out, 1, spec.written_tokens[0]):
            raise SpecError(
                f"{field}.prompt_tokens",
                f"is {spec.written_tokens[0]}, and no held-out sample is longer",
                "Lower it",
            )


def _check_lists(spec: RankingSpec, items: int, field: str) -> None:
    limits = {"cutoffs": max(spec.cutoffs), "strata": spec.strata}
    for name, value in limits.items():
        if value > items:
            raise SpecError(
                f"{field}.{name}",
                f"is {value}, and the data have {items} items",
                f"Set it to {items} or less",
            )


def end_token(job: JobSpec, tokenizer: str | None) -> int | None:
    """The token that ends a text, where a diagnostic of the job writes some."""
    writes = any(spec.written_tokens for spec in job.evaluation.diagnostics)
    return load_tokenizer(tokenizer).end if writes and tokenizer is not None else None


def is_due(spec: DiagnosticSpec, step: int, *, last: bool) -> bool:
    """Whether to measure after `step` optimiser steps; `last`: training is over."""
    return last or (spec.every_steps is not None and step > 0 and step % spec.every_steps == 0)


def diagnose(
    site: Site, step: int, objective: Objective, numbers: Mapping[str, float], *, last: bool
) -> dict[str, Any]:
    """What is due, by name: plain nested numbers, equal on every rank. Collective.

    Args:
        site: this rank.
        step: optimiser steps done.
        objective: the job's.
        numbers: its numbers at this step.
        last: whether training is over.
    """
    found: dict[str, Any] = {}
    for spec in site.job.evaluation.diagnostics:
        if not is_due(spec, step, last=last):
            continue
        work = f"{spec.title}-{step}"
        match spec:
            case GradientNoiseSpec():
                found[spec.title] = measure_noise(site, spec, work)
            case ModifiedGradientSpec():
                found[spec.title] = measure_modified_gradient(site, spec, work)
            case GradientNormSpec():
                found[spec.title] = measure_norms(site, spec, work, objective, numbers)
            case OmegaSpec():
                found[spec.title] = measure_omega(site, spec, work)
            case InputGradientsSpec():
                found[spec.title] = measure_input_gradients(site, spec, work)
            case LogitDistanceSpec():
                found[spec.title] = measure_logit_distance(site, spec, work)
            case ObjectiveLossSpec():
                found[spec.title] = measure_objective(site, spec, work, objective, numbers)
            case FidelitySpec():
                found[spec.title] = measure_fidelity(site, spec, work)
            case PrecisionRecallSpec():
                found[spec.title] = measure_precision_recall(site, spec, work)
            case RankingSpec():
                found[spec.title] = measure_ranking(site, spec, work)
    return found
