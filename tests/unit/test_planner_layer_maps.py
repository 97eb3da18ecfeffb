"""Patterns of layers become pairs, or are refused with what there is."""

from pathlib import Path
from typing import Any

import digits
import pytest
import tiny
from pydantic import ValidationError

from orchestrator.errors import SpecError
from orchestrator.planner.layer_maps import LayerMaps, Projector, layer_maps, logit_asks
from orchestrator.signals.records import AttentionAsk, HiddenAsk, LayersAsk, RoleDescription
from orchestrator.spec import JobSpec
from strategies.pairs import Pair


def known(
    layers: dict[str, int], attention: dict[str, int], **shapes: tuple[int, ...]
) -> RoleDescription:
    return RoleDescription("role", "f", 9, 8, 7, layers, attention, shapes=shapes)


def layered(width: int, count: int, heads: int = 4) -> Any:
    paths = [f"m.{i}" for i in range(count)]
    return known(
        {**dict.fromkeys(paths, width), "m.1.mlp": 7, "norm": width},
        {f"{path}.self": heads for path in paths},
    )


STUDENT, TEACHER = layered(32, 3), layered(48, 12, heads=8)


def job(*terms: dict[str, Any], project: int | None = None, **changes: Any) -> JobSpec:
    role = {"teacher": {"path": "x", "layers_dtype": "bfloat16", "layers_project": project}}
    return tiny.job(
        Path("x"), Path("x"), Path("x"), objective={"terms": list(terms)}, roles=role, **changes
    )


def digits_job(*terms: dict[str, Any]) -> JobSpec:
    role = {"teacher": {"import": digits.MLP, "task": "classifier"}}
    return digits.job(objective={"terms": list(terms)}, roles=role)


def found(*terms: dict[str, Any], student: Any = STUDENT, teacher: Any = TEACHER) -> LayerMaps:
    return layer_maps(job(*terms), student, lambda role: teacher)


def hidden(student: str, role: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "hidden_states", "layers": [{"student": student, "role": role}], **fields}


def test_wildcards_pair_in_order_and_evenly() -> None:
    maps = found(hidden("m.*", "m.*", projector="linear"))
    pairs = maps.pairs["hidden_states"]
    assert [(p.student, p.role) for p in pairs] == [("m.0", "m.3"), ("m.1", "m.7"), ("m.2", "m.11")]
    assert maps.layers == ("m.0", "m.1", "m.2") and not maps.attention
    assert maps.asks == {"teacher.layers": LayersAsk(("m.3", "m.7", "m.11"), "bfloat16")}
    lineage = "linear: m.2 -> teacher: m.11"
    assert maps.projectors[2] == Projector("hidden_states_2", "linear", "m.2", 32, 48, lineage)
    assert pairs[2].projector == "hidden_states_2"


def test_what_several_terms_look_at_is_asked_once() -> None:
    maps = found(
        hidden("m.0", "m.10", projector="orthogonal"),
        {"kind": "attention_transfer", "layers": [{"student": "norm", "role": "m.2"}]},
        {"kind": "attention_maps", "layers": [{"student": "m.*.self", "role": "m.*.self"}]},
        {"kind": "forward_kl"},
    )
    assert maps.asks == {
        "teacher.layers": LayersAsk(("m.2", "m.10"), "bfloat16"),
        "teacher.attention": AttentionAsk(("m.3.self", "m.7.self", "m.11.self"), "bfloat16"),
    }
    assert maps.layers == ("m.0", "norm")
    assert maps.attention == ("m.0.self", "m.1.self", "m.2.self")
    assert maps.pairs["attention_transfer"] == (Pair("norm", "m.2"),)


def test_a_role_whose_inside_alone_is_looked_at_is_not_asked_for_logits() -> None:
    inner = hidden("m.0", "m.0")
    assert logit_asks(job(inner)) == {}
    assert logit_asks(job(inner, {"kind": "forward_kl"})) == {"teacher": HiddenAsk("float32")}


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            hidden("m.0", "m.0"),
            r"objective\.terms\.0: pairs m\.0 of the student \(width 32\) with m\.0 of role "
            r"teacher \(width 48\), which hidden_states cannot compare\. Set projector: linear",
        ),
        (
            hidden("layers.0", "m.0"),
            r"objective\.terms\.0\.layers\.0\.student: is 'layers\.0', and the student has no such "
            r"layer; it has m\.0 \(width 32\), m\.1 \(width 32\), m\.1\.mlp \(width 7\)",
        ),
        (hidden("m.0", "m.12"), r"layers\.0\.role: is 'm\.12', and role teacher has no such layer"),
        (
            hidden("m.*", "m.[01]"),
            r"matches 3 layers of the student \(m\.0, m\.1, m\.2\) and 2 of role teacher "
            r"\(m\.0, m\.1\), which is no multiple\. Name the pairs one by one",
        ),
        (
            {
                "kind": "attention_maps",
                "heads": "each",
                "layers": [{"student": "m.0.self", "role": "m.0.self"}],
            },
            r"m\.0\.self of the student \(4 heads\) with m\.0\.self of role teacher \(8 heads\).*"
            r"heads: mean",
        ),
        (
            {"kind": "fsp", "flows": [{"student": ["m.*", "m.1"], "role": ["m.0", "m.1"]}]},
            r"flows\.0: names several layers at once",
        ),
        (
            {"kind": "fsp", "flows": [{"student": ["m.0", "m.1"], "role": ["m.0", "m.1"]}]},
            r"\(width 32\) with m\.0 of role teacher \(width 48\), which fsp cannot compare",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused_with_both(term: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        found(term)


def test_a_model_that_tells_no_attention_is_refused() -> None:
    term = {"kind": "attention_maps", "layers": [{"student": "m.*.self", "role": "m.*.self"}]}
    with pytest.raises(SpecError, match=r"student\.attention: does not tell.*eager"):
        found(term, student=known({"m.0": 32}, {}))


def test_maps_must_have_as_many_positions() -> None:
    student = known({"a": 64, "b": 32}, {}, a=(4, 4, 4), b=(8, 2, 2))
    teacher = known({"a": 128, "c": 64}, {}, a=(8, 4, 4))
    transfer = {"kind": "attention_transfer", "layers": [{"student": "a", "role": "a"}]}
    assert layer_maps(digits_job(transfer), student, lambda r: teacher).pairs
    with pytest.raises(SpecError, match=r"b of the student \(8 x 2 x 2\) with a .*\(8 x 4 x 4\)"):
        layer_maps(digits_job(hidden("b", "a")), student, lambda r: teacher)
    flat = {"kind": "attention_transfer", "layers": [{"student": "c", "role": "c"}]}
    with pytest.raises(SpecError, match="several positions: feature maps"):
        layer_maps(digits_job(flat), teacher, lambda r: teacher)
    flow = {"kind": "fsp", "flows": [{"student": ["a", "b"], "role": ["a", "a"]}]}
    eight = known({"a": 64}, {}, a=(4, 4, 4))
    wide = known({"a": 64, "b": 16}, {}, a=(4, 4, 4), b=(4, 2, 2))
    with pytest.raises(SpecError, match=r"goes from a \(4 x 4 x 4\) to b \(4 x 2 x 2\)"):
        layer_maps(digits_job(flow), wide, lambda r: eight)


def test_a_role_that_cannot_be_looked_into_says_what_it_needs() -> None:
    with pytest.raises(SpecError, match=r"roles\.teacher: has no layer.*give .*format a shape"):
        layer_maps(digits_job(hidden("a", "a")), known({"a": 3}, {}), lambda r: known({}, {}))


def blockwise(student: str, role: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "blockwise_logits", "layers": [{"student": student, "role": role}], **fields}


def test_layers_that_go_on_into_a_role_are_taken_whole_and_nobody_is_asked() -> None:
    maps = found(
        blockwise("m.*", "m.*", projector="linear"), hidden("norm", "norm", projector="linear")
    )
    assert maps.whole == ("m.0", "m.1", "m.2") and maps.layers == ("norm",)
    assert list(maps.asks) == ["teacher.layers"]
    assert maps.asks["teacher.layers"] == LayersAsk(("norm",), "bfloat16")
    assert [one.whole for one in maps.projectors] == [True, True, True, False]
    assert maps.pairs["blockwise_logits"][2] == Pair("m.2", "m.11", "blockwise_logits_2")


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        (("m.0", "m.3"), r"m\.0 of the student \(width 32\).*\(width 48\).*projector: linear"),
        (("m.0", "m.99"), r"layers\.0\.role: is 'm\.99'.*doctor --layers"),
        (("m.*", "m.?"), r"matches 3 layers.*and 10 of"),
    ],
)
def test_layers_that_cannot_go_on_are_refused(pair: tuple[str, str], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        found(blockwise(*pair))


# --- projected on the replica --------------------------------------------------------------------


MAPS = {"m.0": (16, 2, 2)}, {"m.3": (32, 2, 2)}


def projected(
    columns: int, *terms: dict[str, Any], student: Any = STUDENT, teacher: Any = TEACHER
) -> LayerMaps:
    return layer_maps(job(*terms, project=columns), student, lambda role: teacher)


def test_what_is_projected_is_asked_so_and_learned_in_its_columns() -> None:
    maps = projected(16, hidden("m.0", "m.3", projector="linear"))
    assert maps.asks == {"teacher.layers": LayersAsk(("m.3",), "bfloat16", 16)}
    (projector,) = maps.projectors
    assert (projector.inputs, projector.outputs) == (32, 16)


def test_what_no_term_looks_at_is_not_projected() -> None:
    terms = [{"kind": "forward_kl"}, {"kind": "attention_maps", "layers": [
        {"student": "m.0.self", "role": "m.0.self"}]}]  # fmt: skip
    with pytest.raises(ValidationError, match=r"layers_project: is 16, and no term looks at"):
        job(*terms, project=16)


def test_columns_that_match_the_student_need_no_projector() -> None:
    assert projected(32, hidden("m.0", "m.3")).pairs["hidden_states"]
    with pytest.raises(SpecError, match=r"width 32.*width 16.*Set projector: linear"):
        projected(16, hidden("m.0", "m.3"))


@pytest.mark.parametrize("columns", [48, 64])
def test_a_projection_that_saves_nothing_is_refused(columns: int) -> None:
    message = rf"roles\.teacher\.layers_project: is {columns}, and m\.3 gives width 48.*below 48"
    with pytest.raises(SpecError, match=message):
        projected(columns, hidden("m.0", "m.3", projector="linear"))


def test_maps_are_not_projected() -> None:
    ours, theirs = MAPS
    student, teacher = known({"m.0": 64}, {}, **ours), known({"m.3": 128}, {}, **theirs)
    with pytest.raises(SpecError, match=r"is 16, and m\.3 gives 32 x 2 x 2.*not projected"):
        projected(16, hidden("m.0", "m.3", projector="linear"), student=student, teacher=teacher)
