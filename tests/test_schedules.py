"""Schedules against their formulas, and numbers that move, in and out of recorded steps."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch
from exact import Gaussian
from pyro.infer import Trace_ELBO
from quick import some
from torch import nn

from pyro_vae import SVI
from pyro_vae.inference.handlers import KLWeight
from pyro_vae.inference.regularized import BetaVAE, Capacity, FreeBits
from pyro_vae.inference.schedules import (
    Constant,
    Controlled,
    Cosine,
    Cyclical,
    Linear,
    Schedule,
    Scheduled,
    Sigmoid,
    check_weight,
    current,
    moving_in,
)


def logistic(t):
    return 1 / (1 + math.exp(-t))


# Each with its numbers at some progress, worked out by hand.
SCHEDULES = {
    "constant": (Constant(), {0.0: 1.0, 0.3: 1.0, 1.0: 1.0}),
    "cosine": (Cosine(0.2), {0.0: 1.0, 0.5: 0.6, 1.0: 0.2}),
    "line": (Linear(), {0.0: 0.0, 0.25: 0.25, 1.0: 1.0}),
    "warm-up": (Linear(0.1, 0.9, until=0.2), {0.0: 0.1, 0.05: 0.3, 0.2: 0.9, 0.7: 0.9}),
    "falling": (Linear(4.0, 1.0, until=0.5), {0.0: 4.0, 0.25: 2.5, 0.5: 1.0, 1.0: 1.0}),
    "cut short": (Linear(until=2.0), {0.0: 0.0, 0.5: 0.25, 1.0: 0.5}),
    "sigmoid": (Sigmoid(), {0.0: 0.0, 0.5: 0.5, 1.0: 1.0}),
    "sigmoid, early": (
        Sigmoid(1.0, 3.0, midpoint=0.25, width=0.2),
        {
            0.0: 1.0,
            0.6: 1 + 2 * (logistic(1.75) - logistic(-1.25)) / (logistic(3.75) - logistic(-1.25)),
            1.0: 3.0,
        },
    ),
    "cyclical": (Cyclical(), {0.0: 0.0, 0.0625: 0.5, 0.125: 1.0, 0.2: 1.0, 0.25: 0.0, 1.0: 1.0}),
    "two cycles": (Cyclical(2, Sigmoid()), {0.25: 0.5, 0.5: 0.0, 0.75: 0.5, 1.0: 1.0}),
}
schedules = pytest.mark.parametrize(("schedule", "numbers"), SCHEDULES.values(), ids=SCHEDULES)


@schedules
def test_schedules_have_their_formulas_numbers(schedule, numbers):
    assert {t: schedule(t) for t in numbers} == pytest.approx(numbers, abs=1e-12)


@schedules
def test_schedules_are_finite_and_still_after_their_end(schedule: Schedule, numbers):
    assert all(math.isfinite(schedule(step / 1000)) for step in range(1001))
    for step in range(1001):
        if step / 1000 >= schedule.ends:
            assert schedule(step / 1000) == schedule(min(1.0, schedule.ends))


def test_a_narrow_sigmoid_is_a_step():
    assert [Sigmoid(width=1e-4)(t) for t in (0.4, 0.6)] == pytest.approx([0.0, 1.0])


def test_cycles_are_those_of_fu():
    # beta = f(tau), tau = mod(t - 1, T / M) / (T / M), f(tau) = min(tau / R, 1); with R = 0.5.
    total, cycles = 400, 4
    for t in range(1, total + 1):
        tau = (t - 1) % (total // cycles) / (total / cycles)
        expected = min(tau / 0.5, 1.0)
        assert Cyclical(cycles)((t - 1) / total) == pytest.approx(expected, abs=1e-9)


WRONG = {
    "final=3": partial(Cosine, 3.0),
    "until=0": partial(Linear, until=0.0),
    "until=nan": partial(Linear, until=math.nan),
    "start=inf": partial(Linear, start=math.inf),
    "end=nan": partial(Sigmoid, end=math.nan),
    "midpoint=1.5": partial(Sigmoid, midpoint=1.5),
    "width=0": partial(Sigmoid, width=0.0),
    "num_cycles=0": partial(Cyclical, 0),
    "num_steps=0": partial(Scheduled, Linear(), num_steps=0),
    "target=-1": partial(Controlled, -1.0),
    "integral=-0.1": partial(Controlled, 1.0, integral=-0.1),
    "lowest=2.0, highest=1.0": partial(Controlled, 1.0, lowest=2.0),
    "w=-0.5": partial(check_weight, "w", -0.5),
    "w=nan": partial(check_weight, "w", math.nan),
    "w='4'": partial(check_weight, "w", "4"),
    "w=-1:": partial(check_weight, "w", Scheduled(Linear(1.0, -1.0))),
    "w=-0.1": partial(check_weight, "w", torch.tensor(-0.1)),
}


@pytest.mark.parametrize(("message", "build"), WRONG.items(), ids=WRONG)
def test_what_is_wrong_is_named(message, build):
    with pytest.raises(ValueError, match=f"^{message}"):
        build()


def test_a_scheduled_number_is_one_tensor_that_is_filled():
    number = Scheduled(Linear(2.0, 4.0))
    tensor = current(number)
    assert tensor.item() == 2.0
    for progress in (0.0, 0.5, 1.0):
        number.advance(progress)
        assert current(number) is tensor
        assert tensor.item() == pytest.approx(2 + 2 * progress)
    assert not tensor.requires_grad
    assert list(number.state_dict()) == ["value"]


def test_a_schedule_over_some_steps_of_the_run():
    number = Scheduled(Linear(), num_steps=50)
    with pytest.raises(ValueError, match="num_steps=50: the length of the run is not known"):
        number.advance(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        number.check(200)
    found = []
    for progress in (0.0, 0.1, 0.25, 0.9):
        number.advance(progress)
        found.append(number.value.item())
    assert found == pytest.approx([0.0, 0.4, 1.0, 1.0])


LONGER = {
    "past the end": (
        Scheduled(Linear(until=1.5)),
        r"takes 150 steps, but the run has 100: .* 0\.66",
    ),
    "in steps": (Scheduled(Linear(), num_steps=400), r"takes 400 steps, .* it stops at 0\.25"),
    "half of them": (Scheduled(Linear(until=0.5), num_steps=300), r"takes 150 steps"),
    "in a cycle": (Scheduled(Cyclical(2, Linear(until=1.25))), "takes 125 steps"),
}


@pytest.mark.parametrize(("number", "message"), LONGER.values(), ids=LONGER)
def test_a_warm_up_longer_than_the_run_warns(number, message):
    with pytest.warns(UserWarning, match=message):
        number.check(100)
    number.check(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for schedule, _ in SCHEDULES.values():
            if schedule.ends <= 1:
                Scheduled(schedule).check(100)


def test_the_controller_is_that_of_its_paper():
    controller = Controlled(10.0, proportional=0.1, integral=0.01, lowest=0.2, highest=0.8).double()
    total = 0.0
    generator = torch.Generator().manual_seed(0)
    kls = [*(30 * torch.rand(40, generator=generator)).tolist(), *[100.0] * 5, *[0.0] * 12]
    at_bound = set()
    for kl in kls:
        error = 10.0 - kl
        wanted = 0.1 / (1 + math.exp(error)) + total - 0.01 * error + 0.2
        expected = min(max(wanted, 0.2), 0.8)
        if not (wanted > 0.8 and error < 0) and not (wanted < 0.2 and error > 0):
            total -= 0.01 * error
        controller.observe(torch.tensor(kl, dtype=torch.float64))
        assert controller.value.item() == pytest.approx(expected, abs=1e-9)
        at_bound.add(expected if expected in (0.2, 0.8) else None)
    assert at_bound == {0.2, 0.8, None}


def test_the_controller_finds_the_weight_that_holds_the_target():
    controller = Controlled(12.0, proportional=0.01, integral=0.001, highest=10.0)
    kl = 0.0
    for _ in range(5000):
        kl = 40 / (1 + 5 * controller.value.item())  # falls as the weight rises
        controller.observe(torch.tensor(kl))
    assert kl == pytest.approx(12.0, abs=1e-2)


def test_every_number_that_moves_is_found_once():
    beta, weight, nats, held = (Scheduled(Linear()) for _ in range(4))
    bed = Gaussian()
    bed.held = held
    model = KLWeight(weight)(KLWeight(0.5)(bed.model))
    guide = partial(KLWeight(weight)(bed.guide))
    found = moving_in(model, guide, BetaVAE(beta), FreeBits(nats), nn.Linear(2, 2), [beta], {})
    assert set(map(id, found)) == set(map(id, (beta, weight, nats, held)))
    assert len(found) == 4
    assert moving_in(Trace_ELBO(), Gaussian().model, lambda x: x) == []


def losses_and_weights(engine, build, steps=8):
    """Take steps while the weight moves; say how many were replayed, too."""
    torch.manual_seed(2)
    bed = Gaussian()
    model, guide, objective = build(bed)
    svi = SVI(model, guide, partial(torch.optim.Adam, lr=0.05), objective, engine=engine)
    numbers = moving_in(model, guide, objective)
    losses, replayed = [], []
    for step in range(steps):
        for number in numbers:
            number.advance(step / steps)
        losses.append(svi.step(bed.x))
        replayed.append(svi.recorded)
    state = [number.value.item() for number in numbers]
    return losses, [p.detach() for p in bed.parameters()], state, replayed


def warmed(bed):
    weight = Scheduled(Linear(0.0, 1.0))
    return KLWeight(weight)(bed.model), KLWeight(weight)(bed.guide), Trace_ELBO()


MOVING = {
    "handler": warmed,
    "beta": lambda bed: (bed.model, bed.guide, BetaVAE(Scheduled(Cyclical(2)), num_particles=3)),
    "controller": lambda bed: (
        bed.model, bed.guide, BetaVAE(Controlled(0.4, integral=0.1, proportional=0.5)),
    ),
    "capacity": lambda bed: (bed.model, bed.guide, Capacity(Scheduled(Linear(0.0, 2.0)), 5.0)),
    "free bits": lambda bed: (bed.model, bed.guide, FreeBits(Scheduled(Linear(0.5, 0.0)))),
}  # fmt: skip


@pytest.mark.parametrize("name", some(MOVING, "handler", "controller", "capacity", "free bits"))
def test_a_recorded_step_reads_the_number_anew(name):
    build = MOVING[name]
    losses, weights, state, replayed = losses_and_weights("recorded", build)
    expected = losses_and_weights("eager", build)
    assert losses == expected[0]
    assert all(map(torch.equal, weights, expected[1]))
    assert state == expected[2]
    # Recorded once, at the second step, and never again though the number moves.
    assert replayed == [False] + [True] * 7
    # A mutant: had the number stood still, the weights would be others.
    still = losses_and_weights("eager", lambda bed: _frozen(build(bed)))
    assert not all(map(torch.equal, weights, still[1]))


def _frozen(parts):
    for number in moving_in(*parts):
        number.advance = number.observe = lambda _: None
    return parts
