"""A parameter of a plain function is found again, however the function is wrapped or paired."""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_vae import SVI, evaluation, fit
from pyro_vae.inference import ELBO, KLWeight, Probe, Program, StickingTheLanding


def made(width: int = 2):
    """Return a new model and guide, which state parameters of the same names as all others."""

    def model(x, shift=0.0):
        loc = pyro.param("loc", torch.zeros(width))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = (loc + shift + 0 * z[..., :1]).expand(*z.shape[:-1], width)
            pyro.sample("x", dist.Normal(mean, 0.1).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc_q", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return model, guide


X = torch.zeros(4, 2)


@pytest.fixture(autouse=True, scope="module")
def little_to_collect() -> Iterator[None]:
    """Keep what was imported out of the collections that these tests ask for: they take 0.1 s."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def param_of(function, partner=None) -> Tensor:
    """Return the parameter that a run of a model means by ``loc``, without training it."""
    program = Program(function, partner or (lambda x: _z(x)))
    with program.running(), poutine.trace(param_only=True) as capture:
        program.traces(X)
    found = [s["value"] for n, s in capture.trace.nodes.items() if n.partition("#")[0] == "loc"]
    return found[0].unconstrained()


def _z(x) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def decorated(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)

    return inner


def undeclared(function):
    def inner(*args):
        with poutine.scale(scale=2.0):
            return function(*args)

    return inner


class Calls:
    """An object that is called, and calls."""

    def __init__(self, function) -> None:
        self.function = function

    def __call__(self, x):
        return self.function(x)

    def method(self, x):
        return self.function(x)


HELD: dict = {}


def by_global(function):
    HELD["it"] = function
    return lambda x: HELD["it"](x)


def handed_over(function, x):
    return function(x)


WRAPPINGS = {
    "as it is": lambda f: f,
    "a handler": KLWeight(0.5),
    "two handlers": lambda f: StickingTheLanding()(KLWeight(0.5)(f)),
    "poutine.scale": lambda f: poutine.scale(f, scale=0.5),
    "poutine.mask": lambda f: poutine.mask(f, mask=True),
    "poutine.condition": lambda f: poutine.condition(f, data={}),
    "poutine.block": lambda f: poutine.block(f, hide=["nothing"]),
    "partial": functools.partial,
    "partial of an argument": lambda f: functools.partial(f, shift=1.0),
    "nested partials": lambda f: functools.partial(functools.partial(f, shift=1.0), shift=2.0),
    "a partial over it": lambda f: functools.partial(handed_over, f),
    "a handler on a partial": lambda f: KLWeight(0.5)(functools.partial(f, shift=1.0)),
    "a partial of a handler": lambda f: functools.partial(poutine.scale(f, scale=0.5)),
    "wraps": decorated,
    "a decorator without wraps": undeclared,
    "lambda": lambda f: lambda x: f(x),
    "lambda of a lambda": lambda f: (lambda g: lambda x: g(x))(lambda x: f(x)),
    "a list": lambda f: (lambda held: lambda x: held[0](x))([f]),
    "a default": lambda f: lambda x, f=f: f(x),
    "a global": by_global,
    "an object": Calls,
    "a method": lambda f: Calls(f).method,
    "no gradients": lambda f: torch.enable_grad()(f),
}


@pytest.mark.parametrize("first", ["as it is", "lambda", "an object", "a handler"])
def test_a_parameter_is_found_again_however_its_function_is_wrapped(first):
    for then in WRAPPINGS.values():
        pyro.clear_param_store()
        model, guide = made()
        param_of(*made())  # of the same names
        trained = param_of(WRAPPINGS[first](model), guide)
        gc.collect()
        assert param_of(then(model)) is trained
        assert param_of(then(model), guide) is trained


@pytest.mark.parametrize("first", WRAPPINGS)
def test_a_parameter_trained_in_a_wrapping_is_that_of_the_bare_function(first):
    model, guide = made()
    param_of(*made())
    trained = param_of(WRAPPINGS[first](model), guide)
    gc.collect()
    assert param_of(model) is trained
    assert param_of(lambda x: model(x)) is trained


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_unrelated_functions_of_equal_names_stay_apart(wrapping):
    (first, guide), (second, other) = made(), made()
    held = param_of(WRAPPINGS[wrapping](first), guide)
    assert param_of(WRAPPINGS[wrapping](second), other) is not held
    assert param_of(second, guide) is not held


def test_a_function_made_anew_starts_anew_whether_the_old_one_was_collected_or_not():
    kept = made()
    first = param_of(*kept)
    fleeting = made()
    second = param_of(*fleeting)
    del fleeting
    gc.collect()
    third = param_of(*made())
    assert len({id(p) for p in (first, second, third)}) == 3
    names = {name for name in pyro.get_param_store() if not name.startswith("loc_q")}
    assert names == {"loc", "loc#2", "loc#3"}


def test_a_parameter_that_was_only_looked_at_before_is_owned_once_it_is_trained():
    model, guide = made()
    for _ in range(3):
        Probe(Program(model, guide), X)
    trained = param_of(model, guide)
    assert len(Program(model, guide).stored_parameters()) == 2
    assert param_of(*made()) is not trained


def test_a_helper_of_two_models_belongs_to_neither():
    def decode(z):
        return z + pyro.param("loc", torch.zeros(1))

    def of(scale):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                mean = decode(z)
                pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)

        return model

    first, second = of(1.0), of(2.0)
    held = param_of(first)
    assert param_of(second) is not held
    assert param_of(lambda x: first(x)) is held


def test_model_and_guide_of_one_program_mean_the_same_by_a_name():
    def model(x):
        loc = pyro.param("loc")
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 2), 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    param_of(*made())
    held = param_of(model, guide)
    assert param_of(poutine.scale(model, scale=2.0), lambda x: guide(x)) is held


def test_two_guides_share_the_parameters_of_one_model():
    model, guide = made()
    _, other = made()
    names = [set(_names(model, each)) for each in (guide, other)]
    assert len(names[0] & names[1]) == 1


def _names(model, guide) -> list[str]:
    program = Program(model, guide)
    with program.running(), poutine.trace(param_only=True) as capture:
        program.traces(X)
    return list(capture.trace.nodes)


def test_partial_arguments_that_change_a_shape_make_another_parameter():
    def model(x, width=1):
        scale = pyro.param("loc", torch.ones(width))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(width), scale).to_event(1))
            mean = z.sum(-1, keepdim=True).expand(*z.shape[:-1], 2)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x, width=1):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(width), 1.0).to_event(1))

    def of(width):
        bound = functools.partial(functools.partial, width=width)
        return param_of(bound(model), bound(guide))

    narrow, wide = of(1), of(3)
    assert (narrow.shape, wide.shape) == ((1,), (3,))
    assert of(1) is narrow
    assert of(3) is wide


def test_an_object_of_two_functions_shares_their_parameters():
    class Pair:
        def model(self, x):
            return model(x)

        def guide(self, x):
            return guide(x)

    (model, guide), pair = made(), Pair()
    param_of(*made())
    trained = param_of(pair.model, pair.guide)
    assert param_of(model) is trained
    assert param_of(Pair().model, Pair().guide) is trained
    assert len(Program(pair.model, pair.guide).stored_parameters()) == 2


class Both:
    """A program that is an object and keeps its parameters in Pyro's store."""

    def model(self, x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc + 0 * z, 0.1).to_event(1), obs=x)

    def guide(self, x):
        _z(x)


def test_a_copy_of_an_object_has_parameters_of_its_own():
    one = Both()
    held = param_of(one.model, one.guide)
    assert param_of(one.model) is held
    assert param_of(lambda x: one.model(x)) is held
    assert param_of(copy.deepcopy(one).model) is not held


# -------------------------------------------------------------------------- trained, then judged

# Guides of a few lines that do without data: what is tested is the model's parameter.
pytestmark = pytest.mark.filterwarnings("ignore:the guide is the same for every datum")

DATA = 5 + 0.1 * torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
SGD = functools.partial(torch.optim.SGD, lr=1e-4)


def trained_by_fit(model, guide) -> None:
    fit(model, guide, DATA, epochs=15, batch_size=24, optim=SGD, objective=ELBO())


def trained_by_svi(model, guide) -> None:
    svi = SVI(model, guide, SGD, Trace_ELBO())
    for _ in range(30):
        svi.step(DATA)


def trained_in_a_handler(model, guide) -> None:
    trained_by_fit(KLWeight(0.5)(model), KLWeight(0.5)(guide))


def trained_by_a_lambda(model, guide) -> None:
    trained_by_fit(lambda x: model(x), lambda x: guide(x))


FEW = {"num_temperatures": 3, "num_chains": 2, "num_steps": 1, "engine": "eager"}
JUDGED = {
    "prior_samples": lambda m, g: evaluation.prior_samples(m, DATA, 20),
    "in a handler": lambda m, g: evaluation.prior_samples(KLWeight(1.0)(m), DATA, 20),
    "decode": lambda m, g: evaluation.decode(m, {"z": torch.zeros(3, 2)}, DATA),
    "manifold": lambda m, g: evaluation.manifold(m, DATA, num_steps=3),
    "resample_below": lambda m, g: evaluation.resample_below(m, DATA, num_samples=2),
    "reconstruct": lambda m, g: evaluation.reconstruct(m, g, DATA),
    "interpolate": lambda m, g: evaluation.interpolate(m, g, DATA[:2], DATA[2:4], num_steps=3),
    "traverse": lambda m, g: evaluation.traverse(m, g, DATA[:2], num_steps=3)[0],
    "simulated": lambda m, g: evaluation.bidirectional(m, None, DATA, num_data=4, **FEW).x,
    "other guide": lambda m, g: evaluation.reconstruct(m, lambda x: _z(x), DATA),
}


@pytest.mark.parametrize(
    "train",
    [
        trained_by_svi,
        trained_in_a_handler,
        pytest.param(trained_by_fit, marks=pytest.mark.slow),
        pytest.param(trained_by_a_lambda, marks=pytest.mark.slow),
    ],
)
def test_what_is_judged_is_what_was_trained(train):
    made_before = made()
    trained_by_svi(*made_before)
    model, guide = made()
    train(model, guide)
    gc.collect()
    for name, judged in JUDGED.items():
        assert judged(model, guide).mean() == pytest.approx(5, abs=0.3), name
    log_p = evaluation.annealed_importance_sampling(model, None, DATA[:4], **FEW).log_p
    assert log_p.mean() > -20  # -2,500 where loc is 0
