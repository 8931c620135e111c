"""What a run takes up goes on to the same bits, or is refused with nothing changed."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from bits import same
from torch import nn

from pyro_vae.engine.checkpoint import CheckpointError, latest, load, save
from pyro_vae.engine.restoring import load_strictly, random_state, set_random_state


def plain(value):
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def schedules(optimizer):
    yield torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    yield torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)


@pytest.mark.parametrize("which", [0, 1])
def test_an_optimizer_and_its_schedule_go_on_to_the_same_bits(tmp_path, which):
    def build():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        return module, optimizer, list(schedules(optimizer))[which]

    def advance(module, optimizer, schedule):
        for _ in range(5):
            optimizer.zero_grad()
            module(torch.randn(6, 3)).square().sum().backward()
            optimizer.step()
            schedule.step()

    straight = build()
    advance(*straight)
    names = ("module", "optimizer", "schedule")
    state = {n: part.state_dict() for n, part in zip(names, straight, strict=True)}
    save(tmp_path, state | {"random": random_state()}, step=5)
    advance(*straight)

    resumed = build()
    state = load(latest(tmp_path))
    load_strictly(resumed[0], state["module"])
    resumed[1].load_state_dict(state["optimizer"])
    resumed[2].load_state_dict(state["schedule"])
    set_random_state(state["random"])
    advance(*resumed)
    for one, other in zip(straight, resumed, strict=True):
        assert same(plain(one.state_dict()), plain(other.state_dict()))


# Random states ------------------------------------------------------------------------------------


def draws() -> list[float]:
    return [
        torch.randn(()).item(),
        np.random.standard_normal(),
        random.gauss(0, 1),
        random.random(),
    ]


def test_random_numbers_go_on_where_they_stopped(tmp_path):
    draws()  # an odd number of normals leaves the spare one of numpy and Python in the state
    save(tmp_path, random_state(), step=1)
    expected = draws()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    set_random_state(load(latest(tmp_path)))
    assert draws() == expected


@pytest.mark.parametrize("name", ["torch", "cuda", "mps", "numpy", "python"])
@pytest.mark.parametrize("malformed", [False, True])
def test_no_part_of_the_random_state_is_skipped(name, malformed):
    if malformed and name == "mps" and not torch.backends.mps.is_available():
        pytest.skip("a state of MPS is not read where there is none")
    good = random_state()
    draws()
    before = random_state()
    state = {key: value for key, value in good.items() if key != name}
    with pytest.raises(CheckpointError, match=rf"\b{name}\b"):
        set_random_state(state | {name: 3} if malformed else state)
    assert same(random_state(), before)


def test_a_device_that_is_gone_is_warned_of():
    state = random_state()
    state["cuda"] = [torch.get_rng_state()] * (torch.cuda.device_count() + 1)
    if torch.cuda.is_available():
        state["cuda"] = [*torch.cuda.get_rng_state_all(), torch.cuda.get_rng_state(0)]
    with pytest.warns(UserWarning, match="not to the same bits"):
        set_random_state(state)


# Strict loading -----------------------------------------------------------------------------------


def test_strict_loading_lists_every_fault_and_changes_nothing():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    del state["0.bias"], state["1.weight"]
    state |= {
        "other": torch.ones(1),
        "2.bias": torch.ones(2),
        "0.weight": torch.ones(3, 2).double(),
    }
    state["2.weight"] = torch.full((1, 3), math.nan)
    state["1.bias"] = "text"
    with pytest.raises(CheckpointError) as caught:
        load_strictly(module, state)
    message = str(caught.value)
    assert "missing: 0.bias, 1.weight;" in message
    assert "unexpected: other;" in message
    assert "0.weight (float64[3, 2], expected float32[3, 2])" in message
    assert "2.bias (float32[2], expected float32[1])" in message
    assert "1.bias (str, expected float32[3])" in message
    assert "not finite: 2.weight;" in message
    assert "\n" not in message
    assert same(plain(module.state_dict()), before)


def test_strict_loading_loads():
    module = nn.BatchNorm1d(3)
    module.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    state = {name: value + 1 for name, value in module.state_dict().items()}
    load_strictly(module, state)
    assert same(plain(module.state_dict()), state)
