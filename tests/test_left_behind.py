"""A call that fails leaves the process as it found it, and calls in threads take turns."""

import random
import threading
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import SVI, fit
from pyro_vae.evaluation import (
    elbo,
    importance_sampling,
    prior_samples,
    reconstruct,
    unit_activity,
)
from pyro_vae.inference import ELBO, IWAE, KLWeight

X = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
ADAM = partial(torch.optim.Adam, lr=1e-3)


class Failing(nn.Module):
    """Model or guide fails in a run of it."""

    def __init__(self, where="", run=0, error=None):
        super().__init__()
        torch.manual_seed(3)
        self.decoder, self.encoder, self.rest = nn.Linear(2, 2), nn.Linear(2, 2), nn.Dropout(0.1)
        self.where, self.left, self.error = where, run, error or RuntimeError("here")

    def fail(self, where):
        if where == self.where:
            self.left -= 1
            if self.left == 0:
                raise self.error

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            self.fail("model")
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            offset = pyro.param("offset", torch.zeros(2))
            loc = self.rest(self.encoder(x + offset))
            self.fail("guide")
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


class FailingELBO(ELBO):
    def __init__(self, run):
        super().__init__()
        self.left = run

    def value(self, terms):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("here")
        return super().value(terms)


def state():
    """Everything of a process that a call might leave changed, by name."""
    store = pyro.get_param_store()
    return {
        "settings of Pyro": pyro.settings.get(),
        "validation": torch.distributions.Distribution._validate_args,
        "stack": list(pyro.poutine.runtime._PYRO_STACK),
        "store": {name: value.tolist() for name, value in store.items()},
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "products": torch.get_float32_matmul_precision(),
        "tiny": bool(torch.tensor(1e-30) * 1e-10 == 0),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "hooks": len(torch.nn.modules.module._global_forward_pre_hooks),
    }


def noise():
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": [np.random.get_state()[0], np.random.get_state()[1].tolist()],
    }


def modes(bed):
    return [(m.training, len(m._forward_pre_hooks)) for m in bed.modules()]


def fitted(model, guide, **settings):
    settings = {"objective": ELBO(), "epochs": 2, "batch_size": 8, **settings}
    return fit(model, guide, X, **settings)


def stepped(model, guide, **settings):
    svi = SVI(model, guide, ADAM, settings.pop("objective", ELBO()), **settings)
    return [svi.step(X) for _ in range(6)]


JUDGES = {
    "elbo": lambda model, guide: elbo(model, guide, X, num_particles=2),
    "importance_sampling": lambda model, guide: importance_sampling(
        model, guide, X, num_samples=20
    ),
    "unit_activity": lambda model, guide: unit_activity(model, guide, X),
    "reconstruct": lambda model, guide: reconstruct(model, guide, X),
    "prior_samples": lambda model, guide: prior_samples(model, X, num_samples=4),
}
TRAIN = {
    "fit": fitted,
    "fit, recorded": partial(fitted, engine="recorded"),
    "fit, bfloat16": partial(fitted, precision="bfloat16"),
    "fit, a handler": lambda model, guide: fitted(KLWeight(0.5)(model), KLWeight(0.5)(guide)),
    "SVI": stepped,
    "SVI, recorded": partial(stepped, engine="recorded"),
    "SVI, IWAE": lambda model, guide: stepped(model, guide, objective=IWAE(3)),
    "loss": lambda model, guide: ELBO().loss(model, guide, X),
}
STEPS = ("SVI", "loss")


@pytest.mark.filterwarnings("ignore:running eagerly")
@pytest.mark.parametrize("run", [1, 4])
@pytest.mark.parametrize("where", ["model", "guide"])
@pytest.mark.parametrize("error", [RuntimeError("here"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("use", [*JUDGES, *TRAIN])
def test_a_call_that_fails_leaves_the_process_as_it_was(use, error, where, run):
    pyro.clear_param_store()
    bed = Failing(where, run, error)
    before, drawn, switched = state(), noise(), modes(bed)
    try:
        {**JUDGES, **TRAIN}[use](bed.model, bed.guide)
        failed = False
    except BaseException:
        failed = True
    after = state()
    if not failed or use.startswith(STEPS):  # parameters that were trained, or met, stay
        before.pop("store"), after.pop("store")
    assert after == before
    assert modes(bed) == switched
    assert use.startswith(STEPS) or noise() == drawn


@pytest.mark.filterwarnings("ignore:running eagerly")
@pytest.mark.parametrize("run", [1, 5])
@pytest.mark.parametrize("use", ["fit", "fit, recorded", "SVI", "SVI, recorded"])
def test_an_objective_that_fails_does_too(use, run):
    bed = Failing()
    before, drawn, switched = state(), noise(), modes(bed)
    with pytest.raises((RuntimeError, ValueError), match="here"):
        partial(TRAIN[use], objective=FailingELBO(run))(bed.model, bed.guide)
    after = state()
    before.pop("store"), after.pop("store")
    assert after == before
    assert modes(bed) == switched
    assert use.startswith(STEPS) or noise() == drawn


@pytest.mark.parametrize("use", [*JUDGES, *TRAIN])
def test_data_that_do_not_fit_do_too(use, monkeypatch):
    monkeypatch.setitem(globals(), "X", X[:, :1])
    pyro.clear_param_store()
    bed = Failing()
    before, drawn, switched = state(), noise(), modes(bed)
    with pytest.raises((RuntimeError, ValueError)):
        {**JUDGES, **TRAIN}[use](bed.model, bed.guide)
    after = state()
    if use.startswith(STEPS):
        before.pop("store"), after.pop("store")
    assert after == before
    assert modes(bed) == switched
    assert use.startswith(STEPS) or noise() == drawn


def in_threads(calls):
    """Return what each call gives, all of them at once."""
    found, barrier = [None] * len(calls), threading.Barrier(len(calls))

    def run(place, call):
        barrier.wait()
        try:
            found[place] = call()
        except BaseException as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_calls_in_threads_give_what_they_give_alone():
    def trained(bed, seed):
        return [epoch["train_nats"] for epoch in fitted(bed.model, bed.guide, seed=seed).history]

    def judged(bed, seed):
        return elbo(bed.model, bed.guide, X, num_particles=5, seed=seed)

    def sampled(bed, seed):
        return prior_samples(bed.model, X, num_samples=4, seed=seed).tolist()

    def calls():  # weights are drawn here: threads share torch's random numbers
        uses = [(use, seed) for use in (trained, judged, sampled) for seed in (0, 1)]
        return [partial(use, Failing(), seed) for use, seed in uses]

    before = state()
    assert in_threads(calls()) == [call() for call in calls()]
    after = state()
    before.pop("store"), after.pop("store")
    assert after == before


def test_steps_in_threads_take_turns():
    before = state()
    losses = in_threads([partial(stepped, *methods()) for _ in range(4)])
    assert np.isfinite(np.asarray(losses, dtype=float)).all()
    assert {k: v for k, v in state().items() if k != "store"} == {
        k: v for k, v in before.items() if k != "store"
    }


def methods():
    bed = Failing()
    return bed.model, bed.guide
