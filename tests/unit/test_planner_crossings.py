"""Roles with another tokenizer: which terms accept them, and what is told of them."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from other_tokenizer import save_other_teacher

from orchestrator.data import Crossing
from orchestrator.errors import SpecError
from orchestrator.planner.tokenizers import check_tokenizers, crossings
from orchestrator.spec import JobSpec

UNIVERSAL = {"kind": "universal"}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return save_other_teacher(tmp_path / "other", positions=99)


def job(teacher: Path, *terms: dict[str, Any], **changes: Any) -> JobSpec:
    text = teacher.parent / "text"
    if not text.exists():
        tiny.save_text(text, 3)
    return tiny.job(teacher, text, teacher.parent, objective={"terms": list(terms)}, **changes)


def test_ranks_may_be_learned_from_another_tokenizer(teacher: Path):
    spec = job(teacher, {"kind": "cross_entropy"}, UNIVERSAL)
    check_tokenizers(spec, [], "")
    assert crossings(spec, str(tiny.TOKENIZER)) == {"teacher": Crossing(str(teacher), 99)}


def test_one_term_that_compares_ids_refuses_it(teacher: Path):
    spec = job(teacher, UNIVERSAL, {"kind": "forward_kl"})
    with pytest.raises(SpecError, match=r"forward_kl compares ids.*`universal`"):
        check_tokenizers(spec, [], "")
    with pytest.raises(SpecError, match=r"forward_kl compares ids.*`universal`"):
        crossings(spec, str(tiny.TOKENIZER))


def test_agreement_with_it_is_refused_and_else_not_measured(teacher: Path):
    asked = {"before": False, "rows": 8, "generate": None, "against": "teacher"}
    with pytest.raises(SpecError, match=r"evaluation.against.*agreement and KL compare ids"):
        check_tokenizers(job(teacher, UNIVERSAL, evaluation=asked), [], "")
    fidelity = {"rows": 8, "generate": None, "diagnostics": [{"kind": "fidelity"}]}
    with pytest.raises(SpecError, match=r"diagnostics.0.*fidelity compares ids"):
        check_tokenizers(job(teacher, UNIVERSAL, evaluation=fidelity), [], "")
    spec = job(teacher, UNIVERSAL)
    assert spec.compared_with(("teacher",)) is None and spec.compared_role == "teacher"


def test_the_students_own_tokenizer_is_the_jobs_even_where_a_role_names_another(teacher: Path):
    spec = job(
        teacher,
        UNIVERSAL,
        student={"path": str(tiny.save_teacher(teacher.parent / "student"))},
        roles={"teacher": {"path": str(teacher), "tokenizer": str(teacher)}},
    )
    check_tokenizers(spec, [], "")
    assert set(crossings(spec, spec.student.path)) == {"teacher"}


def test_a_role_without_a_tokenizer_reads_the_jobs(teacher: Path):
    spec = job(teacher, UNIVERSAL, roles={"teacher": {"architecture": tiny.architecture()}})
    assert crossings(spec, str(tiny.TOKENIZER)) == {}
