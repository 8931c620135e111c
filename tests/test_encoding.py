"""Whatever can be encoded comes back to the bit; the rest is refused by its place."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bits import same
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pyro_vae.engine.checkpoint import CheckpointError, load, save
from pyro_vae.engine.encoding import decode, encode

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.complex128, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


@st.composite
def tensors(draw) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    values = torch.randn(shape, generator=generator, dtype=torch.float64).mul(100)
    tensor = values.to(dtype)
    return tensor.transpose(0, -1) if draw(st.booleans()) and shape else tensor


LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats() | st.text() | tensors()
)
KEYS = st.text() | st.integers() | st.sampled_from(["$tuple", "$tensor", "$float", "$", "a/b"])
STATES = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner),
        max_leaves=15,
    ),
)


@examples(12)
@given(state=STATES)
def test_every_state_comes_back_to_the_bit(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("round")
    assert same(decode(*encode(state)), state)
    assert same(load(save(folder, state, step=3)), state)


def test_the_awkward_states_come_back(tmp_path):
    shared = torch.arange(6.0)
    state = {
        "__metadata__": shared,
        "shared": [shared[:3], shared[3:], shared.reshape(2, 3).T, shared.expand(2, 6)],
        "a": {"b": torch.ones(1)},
        "a/b": torch.zeros(2),
        "collisions": [{"$tuple": [1]}, {"$dict": [], "x": 1}, {1: "int", "1": "str"}, {True: 0}],
        "numbers": [-0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, math.inf, -math.inf, math.nan],
        "grad": nn.Parameter(torch.ones(2)),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "empty": [{}, [], (), "", torch.empty(0, 3)],
    }
    loaded = load(save(tmp_path, state, step=0))
    expected = state | {"grad": torch.ones(2), "conjugate": torch.tensor([1 - 2j])}
    assert same(loaded, expected)
    loaded["shared"][0].add_(1)  # memory of its own, and writable
    assert same(loaded["shared"][1], shared[3:])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "a set at '/x/0'"),
        (np.zeros(2), "a ndarray at"),
        (1 << 5000, "over 4096 bits"),
        ({1.5: 0}, "key of type float"),
        ({1 << 5000: 0}, "key of type int"),
        (torch.zeros(2).to_sparse(), "only dense"),
        (torch.zeros(2, device="meta"), "only dense"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_place(tmp_path, value, message):
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path, {"x": [value]}, step=1)
    cyclic: dict = {}
    cyclic["self"] = cyclic
    with pytest.raises(CheckpointError, match="nested over"):
        save(tmp_path, cyclic, step=1)
    assert not list(tmp_path.iterdir())
