"""Nothing that trains, takes_program or follows a program keeps it alive."""

import copy
import functools
import gc
import pickle
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae import SVI, fit
from pyro_vae.evaluation import elbo, log_likelihood, prior_samples
from pyro_vae.inference import ELBO, KLWeight
from pyro_vae.inference.objectives import _LAYOUTS, Remembered

X = torch.randn(24, 2)
ADAM = functools.partial(torch.optim.Adam, lr=1e-3)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 2), nn.Linear(2, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


class Slotted:
    __slots__ = ("small",)

    def __init__(self, small):
        self.small = small


def functions():
    """A program of plain functions, with statements in Pyro's store."""
    small = Small().requires_grad_(False)

    def model(x):
        return small.model(x + pyro.param("shift", torch.zeros(2)))

    def inner(x):
        return small.guide(x + pyro.param("offset", torch.zeros(2)))

    def guide(x):
        return inner(x)

    return model, guide, small


def of_module():
    small = Small()
    return small.model, small.guide, small


def in_handlers():
    small = Small()
    weight = KLWeight(0.5, sites=["z"])
    return weight(small.model), weight(small.guide), small


def in_partials():
    small = Small()
    return functools.partial(small.model), functools.partial(small.guide), small


PROGRAMS = [of_module, functions, in_handlers, in_partials]
OBJECTIVE, PYROS = ELBO(), Trace_ELBO(max_plate_nesting=1)
USES = {
    "loss": lambda model, guide: OBJECTIVE.loss(model, guide, X),
    "loss_and_grads": lambda model, guide: OBJECTIVE.loss_and_grads(model, guide, X),
    "SVI": lambda model, guide: SVI(model, guide, ADAM, OBJECTIVE).step(X),
    "SVI, Pyro's loss": lambda model, guide: SVI(model, guide, ADAM, PYROS).step(X),
    "recorded": lambda model, guide: steps(SVI(model, guide, ADAM, OBJECTIVE, engine="recorded")),
    "fit": lambda model, guide: fit(model, guide, X, objective=OBJECTIVE, epochs=1, batch_size=8),
    "elbo": lambda model, guide: elbo(model, guide, X),
    "log_likelihood": lambda model, guide: log_likelihood(model, guide, X, num_samples=4),
    "prior_samples": lambda model, guide: prior_samples(model, X, num_samples=4),
}


def steps(svi):
    for _ in range(4):
        svi.step(X)


# Each use of a module, and each kind of program with the use that keeps the most.
PAIRS = [
    *((use, of_module) for use in USES),
    *(pytest.param("recorded", build, marks=pytest.mark.slow) for build in PROGRAMS[1:]),
]
PAIRS += [("fit", build) for build in PROGRAMS[1:3]]


@pytest.mark.parametrize(("use", "build"), PAIRS)
def test_nothing_keeps_a_program_alive(build, use):
    model, guide, small = build()
    held = [weakref.ref(value) for value in (small, small.encoder, model, guide)]
    USES[use](model, guide)
    del model, guide, small
    gc.collect()
    assert [reference() for reference in held if reference() is not None] == []


def test_a_program_is_looked_at_once_and_forgotten_with_the_objective():
    gc.collect()
    before, objective, small = len(_LAYOUTS), ELBO(), Small()
    for _ in range(3):
        objective.loss(small.model, small.guide, X)
    assert len(_LAYOUTS) == before + 1
    del objective
    gc.collect()
    assert len(_LAYOUTS) == before


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        pytest.param(copy.deepcopy, marks=pytest.mark.slow),
        pytest.param(lambda value: pickle.loads(pickle.dumps(value)), marks=pytest.mark.slow),
    ],
)
def test_a_copy_of_an_objective_holds_no_program(copied):
    objective, small = ELBO(), Small()
    objective.loss(small.model, small.guide, X)
    held, other = weakref.ref(small), copied(objective)
    assert vars(other) == vars(ELBO())
    del small
    gc.collect()
    assert held() is None
    assert other.num_particles == 1


def test_what_is_remembered_is_of_these_very_objects():
    table, first, second = Remembered(), Small(), Small()
    table.note("of first", first.model, first.guide)
    assert table.of(first.model, first.guide) == "of first"
    assert table.of(second.model, first.guide) is None
    assert table.of(first.guide, first.model) is None
    table.note("nothing", Slotted(first))
    assert len(table) == 1
