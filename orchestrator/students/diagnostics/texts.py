"""Diagnostics that look at what the student writes."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from orchestrator.data import Row
from orchestrator.evaluation.diagnostics.bleu import bleu, bleu_counts
from orchestrator.evaluation.diagnostics.draw import drawn, uniform
from orchestrator.spec.diagnostics import FidelitySpec, PrecisionRecallSpec

from .positions import measure_agreement
from .site import Site
from .writing import Choose, Prompt, as_samples, greedy, role_writes, student_writes, until_end


def measure_fidelity(site: Site, spec: FidelitySpec, work: str) -> dict[str, float]:
    """See `agreement`; and where prompts are wanted `bleu_of_texts`. Collective."""
    role = site.role(spec.role)
    found = measure_agreement(site, role, work)
    if spec.prompts is None:
        return found
    parts = site.prompts(spec.prompts, spec.prompt_tokens)
    return found | bleu_of_texts(site, role, parts, spec.tokens, f"{work}-text")


def bleu_of_texts(
    site: Site, role: str, parts: Sequence[Sequence[Prompt]], tokens: int, work: str
) -> dict[str, float]:
    """Student and role continue each prompt by their likeliest tokens. Collective.

    Returns:
        `prompts`; `bleu`, 0 to 1, over the job's tokens with the role's texts as references;
        `same_text`: share of prompts that both continue alike.
    """
    ours = student_writes(site.engine, parts, tokens, [greedy] * len(parts))
    sums = {**bleu_counts((), ()), "prompts": 0.0, "same_text": 0.0}
    for index, (prompts, texts) in enumerate(zip(parts, ours, strict=True)):
        theirs = role_writes(
            site.questions,
            role,
            prompts,
            tokens,
            site.vocabulary,
            site.engine.device,
            f"{work}.{index}",
        )
        for mine, other in zip(texts, theirs, strict=True):
            candidate, reference = until_end(mine, site.end), until_end(other, site.end)
            for name, count in bleu_counts(candidate, reference).items():
                sums[name] += count
            sums["prompts"] += 1
            sums["same_text"] += candidate == reference
    whole = site.sum_numbers(sums)
    prompts = whole["prompts"]
    return {"prompts": prompts, "bleu": bleu(whole), "same_text": whole["same_text"] / prompts}


def measure_precision_recall(site: Site, spec: PrecisionRecallSpec, work: str) -> dict[str, float]:
    """How likely the student's text is to a role, and held-out text to the student. Collective.

    Returns:
        `written_tokens`; in nats a token `precision`: mean log-probability under the role of what
        the student draws at temperature 1, from what the role has entries for, after held-out
        prompts; `own`: the same under the student, minus its entropy as drawn; `recall`: mean
        log-probability of held-out text under the student.

    Source:
        Cha, Cho. "Why Knowledge Distillation Works in Generative Models: A Minimal Working
        Explanation." arXiv:2505.13111. Held-out text stands for samples of the reference.
    """
    role = site.role(spec.role)
    parts = site.prompts(spec.prompts, spec.prompt_tokens)
    choose = sampling(parts, site.questions.vocabulary(role), site.job.seed)
    texts = student_writes(site.engine, parts, spec.tokens, choose)
    written = as_samples(
        [prompt for prompts in parts for prompt in prompts],
        [until_end(text, site.end) for part in texts for text in part],
    )
    drawn_text = site.log_likelihoods(written, _rows(parts), role, f"{work}-text")
    held_out = site.log_likelihoods(site.held_out.store, site.held_out.parts, None, work)
    return {
        "written_tokens": drawn_text["count"],
        "precision": -drawn_text["teacher_nll"] / drawn_text["count"],
        "own": -drawn_text["nll"] / drawn_text["count"],
        "recall": -held_out["nll"] / held_out["count"],
    }


def sampling(parts: Sequence[Sequence[Prompt]], entries: int, seed: int) -> list[Choose]:
    """By part, how tokens are drawn at temperature 1: below `entries`, what a role can read.

    A student's vocabulary may be padded further than its role's.
    """
    return [partial(_drawn, seed, prompts, entries) for prompts in parts]


def _drawn(
    seed: int, prompts: Sequence[Prompt], entries: int, logits: Tensor, position: int
) -> Tensor:
    places = [uniform("text", seed, prompt.id, position) for prompt in prompts]
    return drawn(logits[:, :entries], places)


def _rows(parts: Sequence[Sequence[Prompt]]) -> list[list[Row]]:
    """Samples numbered through all parts, one a row; a part without any is a row of padding."""
    rows: list[list[Row]] = []
    first = 0
    for prompts in parts:
        rows.append([(first + i,) for i in range(len(prompts))] or [()])
        first += len(prompts)
    return rows
