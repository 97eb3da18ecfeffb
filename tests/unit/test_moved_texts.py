"""Texts that move at their embeddings: what they are on the way, and where gradients take them."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from classifiers import BERT, LLAMA, answered, engine_of, request
from fake_cache import MemoryLink
from pydantic import ValidationError
from served import EnginePool, asking
from torch import Tensor, nn

from orchestrator.data import OFFSET, Reading, SampleStore, end_to_end, inputs_of, moved_text
from orchestrator.data.collation import collate_classes
from orchestrator.data.tokenise import Sample
from orchestrator.errors import SpecError
from orchestrator.models.forward import classify, embedding_of
from orchestrator.signals.encodings.uniforms import token_hash
from orchestrator.signals.records import FullAsk, VjpAsk
from orchestrator.spec import JobSpec
from orchestrator.students import fit, moving
from orchestrator.students.batches import to_device
from orchestrator.students.moves import Mover
from orchestrator.students.moving import Moving
from orchestrator.students.places import TextPlaces
from strategies.moving import draws, embedding_map
from strategies.specs import AscendSpec, BoundarySpec

CPU = torch.device("cpu")
TEXT = Reading()
FULL = FullAsk("float32")
IDS = np.arange(100, dtype=np.int32)
LENGTHS = (5, 9, 3, 7, 1, 12, 4, 6)
ROLE = {**BERT, "vocab_size": 100}
SMALL = {**ROLE, "hidden_size": 8, "intermediate_size": 16}


def texts(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    draw = np.random.default_rng(3)
    return [draw.integers(1, 100, n).astype(np.int32) for n in lengths]


def store_of(lengths: tuple[int, ...] = LENGTHS) -> SampleStore:
    return SampleStore.of(
        [Sample(str(i), ids, np.zeros(len(ids), bool), i % 3)
         for i, ids in enumerate(texts(lengths))],
        "v",
    )  # fmt: skip


def ascent(**fields: Any) -> AscendSpec:
    whole = {"every": 1, "rounds": 2, "steps": 1, "size": 1e-3, **fields}
    return AscendSpec.model_validate({"kind": "ascend", **whole})


class House:
    """An untrained student of width 8 and role of width 16 over one vocabulary."""

    def __init__(
        self,
        rows: int = 3,
        cache: MemoryLink | None = None,
        role: dict[str, Any] = ROLE,
        student: dict[str, Any] = SMALL,
    ) -> None:
        engine = engine_of({"architecture": role}, TEXT, deterministic=True)
        self.role = engine._loaded.module
        self.student = engine_of({"architecture": student}, TEXT)._loaded.module
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)  # about as decided as trained ones
            for module, by in ((self.role, 3.0), (self.student, 2.0)):
                for parameter in module.parameters():
                    parameter.copy_(parameter * by + 0.02 * torch.randn_like(parameter))
                    parameter.requires_grad_(True)
        self.pool = EnginePool(engine)
        everything = SampleStore.of([Sample("", IDS, np.zeros(len(IDS), bool), 0)])
        self.mover = Mover(self.student, asking(self.pool, cache), TEXT, rows, CPU, everything)

    def places(self, words: list[np.ndarray] | None = None) -> TextPlaces:
        words = texts() if words is None else words
        found = self.mover.places("teacher", words, max(map(len, words)))
        assert isinstance(found, TextPlaces)
        return found

    def moved(self, spec: AscendSpec | BoundarySpec, places: TextPlaces, round_: int = 1) -> Tensor:
        return self.mover.moved(spec, places, torch.arange(len(places.ids)), round_)

    def apart(self, places: TextPlaces, x: Tensor) -> Tensor:
        """[R] float64: |S - T|^2, sample by sample, from formulas of its own."""
        found = []
        for row, ids in enumerate(places.ids):
            offset = x[row].view(-1, 8)[: len(ids)]
            ours = run(self.student, ids, offset)
            theirs = run(self.role, ids, offset @ places.to_role)
            found.append((ours.double() - theirs.double()).square().sum())
        return torch.stack(found)


def run(module: nn.Module, ids: np.ndarray, offset: Tensor) -> Tensor:
    """[V] logits by the model's own way to be given embeddings."""
    embedding: Any = embedding_of(module)
    tokens = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        whole = embedding(tokens) + offset.to(embedding.weight.dtype)
        return module.eval()(inputs_embeds=whole[None]).logits[0]


# --- on the way ----------------------------------------------------------------------------------


def test_a_moved_text_is_its_ids_and_what_is_added_to_each() -> None:
    first, second = texts((3, 2))
    offset = np.arange(6, dtype=np.float32).reshape(3, 2)
    arrays = inputs_of(TEXT, [moved_text(first, offset), second, np.zeros(0, np.int32)])
    assert arrays["input_ids"].tolist() == [[*first], [*second, 0], [0, 0, 0]]
    assert arrays["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert np.array_equal(arrays[OFFSET][0], offset) and not arrays[OFFSET][1:].any()
    assert OFFSET not in inputs_of(TEXT, [first, second])


def test_texts_that_two_models_embed_are_not_read_as_one() -> None:
    ids = texts((3,))[0]
    both = [moved_text(ids, np.zeros((3, width), np.float32)) for width in (2, 4)]
    with pytest.raises(ValueError, match="one model embeds"):
        inputs_of(TEXT, both)


@pytest.mark.parametrize("raw", [ROLE, LLAMA], ids=["bert", "llama"])
def test_what_is_added_reaches_the_model_and_padding_gets_nothing(raw: dict[str, Any]) -> None:
    engine = engine_of({"architecture": raw}, TEXT)
    module, words = engine._loaded.module, texts((6, 3))
    width = engine.describe().input_width
    offsets = [torch.randn(len(ids), width) for ids in words]
    there = [moved_text(ids, x.numpy()) for ids, x in zip(words, offsets, strict=True)]
    inputs = {n: torch.from_numpy(a) for n, a in inputs_of(TEXT, there).items()}
    with torch.no_grad():
        together = classify(module, inputs)
    for row, (ids, x) in enumerate(zip(words, offsets, strict=True)):
        torch.testing.assert_close(together[row], run(module, ids, x), rtol=1e-4, atol=1e-5)
    served = answered(engine, FULL, there).logits
    torch.testing.assert_close(served, together, rtol=1e-5, atol=1e-5)
    assert (served - answered(engine, FULL, words).logits).abs().max() > 1e-3


def test_a_text_that_has_not_moved_is_answered_as_its_tokens_are_to_the_bit() -> None:
    engine = engine_of({"architecture": ROLE}, TEXT, deterministic=True)
    words = texts()
    still = [moved_text(ids, np.zeros((len(ids), 16), np.float32)) for ids in words]
    assert torch.equal(answered(engine, FULL, still).logits, answered(engine, FULL, words).logits)


def test_moved_texts_share_a_forward_as_long_as_their_tokens_and_not_their_words() -> None:
    engine = engine_of({"architecture": ROLE}, TEXT)
    sizes = list[tuple[int, ...]]()
    engine._loaded.module.register_forward_pre_hook(
        lambda _m, _a, named: sizes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    there = [moved_text(ids, np.ones((len(ids), 16), np.float32)) for ids in texts()]
    for samples in (texts(), there):
        engine.forward(request(FULL, samples))
    half = len(sizes) // 2
    assert sizes[:half] == sizes[half:] and half < len(LENGTHS)
    assert len({token_hash(words) for words in there}) == len(there)


# --- gradients -----------------------------------------------------------------------------------

PRODUCT = VjpAsk("product", "logits", 1.0, "float32", by_word=True)
DISTANCE = VjpAsk("distance", "probabilities", 2.0, "float32", by_word=True)


@pytest.mark.parametrize("ask", [PRODUCT, DISTANCE], ids=["product", "distance"])
def test_a_served_gradient_equals_finite_differences(ask: VjpAsk) -> None:
    engine = engine_of({"architecture": ROLE}, TEXT, deterministic=True)
    module, (ids,) = engine._loaded.module, texts((4,))
    c = np.random.default_rng(1).standard_normal(3).astype(np.float32)
    offset = np.random.default_rng(2).standard_normal((4, 16)).astype(np.float32)
    sent = np.concatenate([moved_text(ids, offset), c.view(np.int32)])
    other = np.concatenate([moved_text(*(texts((9,))[0], np.zeros((9, 16), np.float32))),
                            c.view(np.int32)])  # fmt: skip
    got = answered(engine, ask, [sent, other])
    mine = got.gradient[0]
    assert got.gradient.shape == (2, len(other)) and not mine[:5].any()
    assert not mine[5 + 64 :].any()
    module.double()

    def number(x: Tensor) -> float:
        z = run(module, ids, x)
        if ask.output == "probabilities":
            z = torch.softmax(z / ask.temperature, 0)
        wide = torch.from_numpy(c).double()
        return float((z @ wide) if ask.of == "product" else (z - wide).square().sum())

    x, step = torch.from_numpy(offset).double(), 1e-5
    for place in range(0, 64, 7):
        move = torch.zeros(64, dtype=torch.float64)
        move[place] = step
        wanted = (number(x + move.view(4, 16)) - number(x - move.view(4, 16))) / (2 * step)
        assert float(mine[5 + place]) == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_a_sample_without_its_cotangent_is_refused() -> None:
    engine = engine_of({"architecture": ROLE}, TEXT)
    with pytest.raises(ValueError, match=r"16 for each of 5 tokens and 3 of its classes"):
        engine.forward(request(PRODUCT, texts((5,))))


def test_the_map_is_that_of_least_squares_and_exact_where_there_is_one() -> None:
    draw = torch.Generator().manual_seed(0)
    ours, exact = (torch.randn(40, 6, generator=draw, dtype=torch.float64), None)
    exact = torch.randn(6, 9, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(embedding_map(ours, ours @ exact), exact)
    theirs = torch.randn(40, 9, generator=draw, dtype=torch.float64)
    found = embedding_map(ours, theirs)
    normal = torch.linalg.solve(ours.T @ ours, ours.T @ theirs)
    torch.testing.assert_close(found, normal, rtol=1e-9, atol=1e-9)
    flat = torch.cat([ours[:, :3], ours[:, :3]], 1)  # of half its rank
    assert torch.isfinite(embedding_map(flat, theirs)).all()


def test_the_tables_are_compared_id_by_id_and_the_roles_is_asked_once() -> None:
    house = House()
    first = house.places()
    asked = house.pool.samples
    second = house.places()
    ours, theirs = (embedding_of(m).weight.detach() for m in (house.student, house.role))  # type: ignore[union-attr]
    wanted = torch.linalg.lstsq(ours.double(), theirs.double()).solution
    torch.testing.assert_close(first.to_role.double(), wanted, rtol=1e-4, atol=1e-5)
    assert asked == len(ours) and house.pool.samples == asked
    assert torch.equal(first.to_role, second.to_role)
    with torch.no_grad():
        embedding_of(house.student).weight.mul_(2.0)  # type: ignore[union-attr]
    torch.testing.assert_close(house.places().to_role, first.to_role / 2, rtol=1e-4, atol=1e-6)


# --- where they go -------------------------------------------------------------------------------


def test_a_step_goes_along_the_gradient_of_both_networks_through_the_map() -> None:
    house = House()
    places = house.places()
    got = house.moved(ascent(size=1.0, normalised=False), places)
    for row, ids in enumerate(places.ids):
        leaf = torch.zeros(len(ids), 8, requires_grad=True)
        tokens = torch.from_numpy(ids.astype(np.int64))
        outputs = []
        for module, through in ((house.student, None), (house.role, places.to_role)):
            own: Any = embedding_of(module)
            offset = leaf if through is None else leaf @ through
            outputs.append(module.eval()(inputs_embeds=(own(tokens) + offset)[None]).logits[0])
        (wanted,) = torch.autograd.grad((outputs[0] - outputs[1]).square().sum(), leaf)
        mine = got[row].view(-1, 8)
        torch.testing.assert_close(mine[: len(ids)], wanted, rtol=2e-3, atol=1e-5)
        assert not mine[len(ids) :].any()


def test_a_small_step_takes_student_and_role_apart() -> None:
    house = House(rows=16)
    places = house.places(texts(tuple(3 + i % 9 for i in range(100))))
    there = house.moved(ascent(size=1e-2), places)
    further = house.apart(places, there) > house.apart(places, places.start())
    assert further.double().mean() >= 0.99
    torch.testing.assert_close(there.norm(dim=1), torch.full((100,), 1e-2), rtol=1e-4, atol=0)


def test_the_random_control_goes_as_far_and_the_same_however_long_its_neighbours_are() -> None:
    house, spec = House(), ascent(size=0.05, steps=4, by="random")
    places = house.places()
    there = house.moved(spec, places)
    torch.testing.assert_close(there.norm(dim=1), torch.full((8,), 0.2), rtol=1e-4, atol=0)
    for row, ids in enumerate(places.ids):
        assert not there[row].view(-1, 8)[len(ids) :].any()
    beside = house.moved(spec, house.places([*texts(), *texts((30,))]))
    torch.testing.assert_close(beside[:8, : 12 * 8], there, rtol=1e-5, atol=1e-7)


def test_a_rank_without_samples_runs_no_model() -> None:
    house = House()
    places = house.mover.places("teacher", [], 12)
    there, distances = house.mover.climb(ascent(), places, places.start(), "w")
    assert there.shape == (0, 96) and distances.shape == (0,)


def test_tables_of_other_sizes_are_compared_by_the_ids_that_the_data_hold() -> None:
    house = House(student={**SMALL, "vocab_size": 150})
    ours, theirs = (
        embedding_of(m).weight.detach().double()  # type: ignore[union-attr]
        for m in (house.student, house.role)
    )
    wanted = torch.linalg.lstsq(ours[:100], theirs).solution
    torch.testing.assert_close(house.places().to_role.double(), wanted, rtol=1e-4, atol=1e-5)


BART = {
    "model_type": "bart",
    "vocab_size": 100,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_labels": 3,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def test_a_model_whose_embedding_is_not_the_one_it_tells_is_found_out() -> None:
    engine = engine_of({"architecture": BART}, TEXT)
    assert engine.describe().input_width == 0
    ids = np.array([5, 6, 1], np.int32)
    assert answered(engine, FULL, [ids]).logits.shape == (1, 3)
    with pytest.raises(ValueError, match=r"ran 0 times in a forward, and not once"):
        engine.forward(request(FULL, [moved_text(ids, np.ones((3, 16), np.float32))]))
    with pytest.raises(SpecError, match="no gradient by its input"):
        engine.forward(request(PRODUCT, [ids]))
    assert engine_of({"architecture": ROLE}, TEXT).describe().input_width == 16


def test_what_is_moved_does_not_depend_on_how_it_is_cut() -> None:
    wide, narrow = (House(rows=rows) for rows in (8, 3))
    found = [h.moved(ascent(steps=3, size=0.1), h.places()) for h in (wide, narrow)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_texts_are_taken_past_the_roles_border() -> None:
    house = House(rows=8)
    places = house.places(texts((6,) * 30))
    spec = BoundarySpec.model_validate(
        {"kind": "boundary", "every": 1, "rounds": 1, "steps": 60, "rate": 0.5, "margin": 0.05}
    )
    there = house.mover.crossed(spec, places, draws(torch.arange(30), 1, 0), "w")
    flipped = 0
    for row, ids in enumerate(places.ids):
        offset = there[row].view(6, 8)
        before, after = (run(house.role, ids, x @ places.to_role) for x in (0 * offset, offset))
        flipped += int(before.argmax() != after.argmax())
    assert flipped >= 27


def test_no_weight_changes_and_moving_again_is_read_from_the_cache() -> None:
    cache = MemoryLink()
    house, again = House(cache=cache), House(cache=cache)
    before = [p.detach().clone() for m in (house.student, house.role) for p in m.parameters()]
    spec = ascent(steps=2, size=0.1)
    first = house.moved(spec, house.places())
    after = [p for m in (house.student, house.role) for p in m.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))
    assert torch.equal(first, again.moved(spec, again.places())) and again.pool.samples == 0


# --- data that gain them -------------------------------------------------------------------------


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "gathered", lambda mine: mine)


def test_a_moved_text_is_one_thing_to_the_student_and_another_to_the_role(one_rank: None) -> None:
    house = House()
    data = Moving(ascent(size=0.5), store_of(), house.mover, 0, 1)
    assert [len(data.store.tokens(8 + i)) for i in range(8)] == list(
        LENGTHS
    )  # before there are any
    data.epoch_over(1, CPU)
    batch = to_device(collate_classes(data.store, [(1,), (9,), ()], TEXT), CPU)
    offset = batch.inputs[OFFSET]
    assert offset.shape == (3, 9, 8) and not offset[0].any() and not offset[2].any()
    assert float(offset[1].norm()) == pytest.approx(0.5, rel=1e-4)
    assert torch.equal(batch.inputs["input_ids"][0], batch.inputs["input_ids"][1])
    flat = end_to_end(data.store.as_asked, [(1,), (9,)])
    sent = np.split(flat.tokens, np.cumsum(flat.lengths)[:-1])
    assert flat.wanted.sum() == 2 and flat.wanted[np.cumsum(flat.lengths) - 1].all()
    read = inputs_of(TEXT, sent)[OFFSET]
    assert read.shape == (2, 9, 16) and not read[0].any()
    q = house.places().to_role
    torch.testing.assert_close(torch.from_numpy(read[1]), offset[1] @ q, rtol=1e-4, atol=1e-6)


def test_what_was_restored_is_what_was_there(one_rank: None) -> None:
    spec = ascent(steps=2, size=0.1, samples=5)
    data, again = (Moving(spec, store_of(), House().mover, 0, 1) for _ in range(2))
    data.epoch_over(1, CPU)
    with torch.no_grad():  # its weights are others by then, and must not matter
        for parameter in again._mover.model.parameters():
            parameter.zero_()
    again.restore(json.loads(json.dumps(data.state())))
    for place in range(8, 13):
        assert np.array_equal(again.store.tokens(place), data.store.tokens(place))
        assert np.array_equal(again.store.as_asked.tokens(place), data.store.as_asked.tokens(place))


def test_two_ranks_share_the_moving_and_have_the_same_data(
    monkeypatch: pytest.MonkeyPatch, one_rank: None
) -> None:
    spec = ascent(size=0.1, samples=5)
    whole = Moving(spec, store_of(), House().mover, 0, 1)
    whole.epoch_over(1, CPU)
    told: list[list[np.ndarray]] = []
    for rank in (0, 1):
        part = Moving(spec, store_of(), House().mover, rank, 2)
        part._epochs = 1
        monkeypatch.setattr(part, "_tell", lambda mine, role, _device: told.append(mine))
        part.epoch_over(1, CPU)
    mine = [words for part in told for words in part]
    for place, words in enumerate(mine):
        wanted = whole.store.tokens(8 + place)
        ids = 1 - int(wanted[0])
        assert np.array_equal(words[:ids], wanted[:ids])
        np.testing.assert_allclose(
            words[ids:].view(np.float32), wanted[ids:].view(np.float32), rtol=1e-3, atol=1e-6
        )
    assert len(mine) == 5


# --- job files -----------------------------------------------------------------------------------


def raw_job(**changes: Any) -> dict[str, Any]:
    source = {"kind": "jsonl", "path": "x", "format": {"kind": "labelled_text"}}
    return {
        "name": "texts",
        "student": {"architecture": SMALL, "task": "classifier", "tokenizer": "t"},
        "roles": {
            "teacher": {"architecture": ROLE, "task": "classifier", "tokenizer": "t"},
            "other": {"architecture": ROLE, "task": "classifier", "tokenizer": "t"},
        },
        "data": {"sources": [source], "context": 16},
        "objective": {"recipe": {"kind": "backward_pass", "every": 1, "rounds": 1}},
        "training": {"epochs": 3, "global_batch": 4, "micro_batch": 4},
        **changes,
    }


def test_texts_may_move() -> None:
    job = JobSpec.model_validate(raw_job())
    assert isinstance(job.objective.between_epochs, AscendSpec)


MOVES = {"kind": "ascend", "every": 1, "rounds": 1, "steps": 1, "size": 0.1}


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([{"kind": "forward_kl"}, {"kind": "forward_kl", "role": "other", "name": "b"}],
         r"between_epochs\.role: is 'teacher'.*role 'other' is asked.*Ask one role"),
        ([{"kind": "forward_kl"}, {"kind": "input_gradients"}],
         r"terms\.1\.kind: is input_gradients.*token by token"),
        ([{"kind": "forward_kl"}, {"kind": "blockwise_logits", "layers": [
            {"student": "bert.encoder.layer.0", "role": "bert.encoder.layer.0"}]}],
         r"between_epochs\.kind: moves texts.*role 'teacher' lies beside it"),
    ],
)  # fmt: skip
def test_what_keeps_texts_where_they_are_is_refused(
    terms: list[dict[str, Any]], message: str
) -> None:
    raw = raw_job(objective={"terms": terms, "between_epochs": MOVES})
    raw["student"]["attention"] = "eager"
    with pytest.raises(ValidationError, match=message):
        JobSpec.model_validate(raw)


@pytest.mark.parametrize("by", ["moves", "diagnostic"])
def test_a_student_that_hides_its_embedding_is_refused(by: str) -> None:
    raw = raw_job()
    if by == "diagnostic":
        raw["objective"] = {"terms": [{"kind": "forward_kl"}]}
        raw["evaluation"] = {"diagnostics": [{"kind": "logit_distance"}], "against": "teacher"}
    job = JobSpec.model_validate(raw)
    described = SimpleNamespace(describe=lambda _role: SimpleNamespace(role="t", input_width=16))
    questions: Any = SimpleNamespace(source=described)
    ends = Sample("", np.array([5, 6, 1], np.int32), np.zeros(3, bool), 0)  # as a Bart's text does
    data: Any = SimpleNamespace(train=SampleStore.of([ends]))
    student = engine_of({"architecture": BART}, TEXT)._loaded
    with pytest.raises(SpecError, match=r"student: has no gradient by its input.*get_input_emb"):
        fit._check_moves(job, data, student, questions)
    fit._check_moves(job, data, engine_of({"architecture": SMALL}, TEXT)._loaded, questions)
