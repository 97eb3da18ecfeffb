"""The real engine behind a replica, on a tiny model and without Ray: served equals local."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pool_fakes import fake_request

from orchestrator.errors import SpecError
from orchestrator.models.forward import forward_hidden
from orchestrator.models.load import load_model
from orchestrator.pool.answers import layout
from orchestrator.pool.desk import Desk
from orchestrator.pool.engine import load_role
from orchestrator.pool.records import RoleLoad
from orchestrator.signals.records import HiddenAsk, Request, TopKAsk
from orchestrator.spec.models import RoleSpec

TINY = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
ROLE = RoleSpec.model_validate({"architecture": TINY})


@pytest.fixture(scope="module")
def engine():
    threads = torch.get_num_threads()
    yield load_role(RoleLoad("teacher", ROLE, seed=3))
    torch.set_num_threads(threads)


def request(ask: HiddenAsk | TopKAsk) -> Request:
    """Two rows, the second packed from two samples; some positions wanted."""
    return replace(
        fake_request("r"),
        ask=ask,
        input_ids=np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.int32),
        position_ids=np.array([[0, 1, 2, 3], [0, 1, 0, 1]], dtype=np.int32),
        wanted=np.array([[True, False, True, True], [False, True, True, False]]),
    )


def test_served_hidden_states_equal_local_ones_bit_for_bit(engine):
    asked = request(HiddenAsk("float32"))
    served = engine.forward(asked)["hidden"]
    module = load_model(ROLE, seed=3).module
    with torch.inference_mode():
        ids, positions = torch.tensor(asked.input_ids), torch.tensor(asked.position_ids)
        local = forward_hidden(module, ids.long(), positions.long())
    np.testing.assert_array_equal(served, local[torch.tensor(asked.wanted)].numpy())


@pytest.mark.parametrize(
    "ask",
    [HiddenAsk("float32"), HiddenAsk("bfloat16"), TopKAsk(5, "float16", (1.0, 2.0))],
)
def test_answers_have_the_shape_and_type_that_the_ask_declares(engine, ask):
    declared = layout(ask, 5, engine.describe())
    arrays = engine.forward(request(ask))
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == declared


def test_the_head_and_the_description_are_of_the_same_weights(engine):
    role, head = engine.describe(), engine.head()
    assert head is not None and head.weight.shape == (role.vocabulary, role.width) == (64, 16)
    assert head.fingerprint == role.fingerprint
    assert role.parameters == sum(p.numel() for p in load_model(ROLE, seed=3).module.parameters())


def test_a_model_that_is_not_there_is_a_spec_error_that_names_the_role():
    role = RoleSpec.model_validate({"path": "/nowhere/at/all"})
    desk = Desk("teacher", lambda: load_role(RoleLoad("teacher", role)), max_queue=1)
    with pytest.raises(SpecError, match=r"roles\.teacher\.path"):
        desk.head().result(60.0)
