"""Handlers for some sites or modules of a program: what the program does not have is said."""

import functools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI as PyroSVI
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae import SVI, fit
from pyro_vae.evaluation import elbo, traverse
from pyro_vae.inference import ELBO, Frozen, KLWeight, Temperature

torch.manual_seed(0)
X = torch.randn(24, 2)
ADAM = functools.partial(torch.optim.Adam, lr=1e-3)


class Relaxed(nn.Module):
    """z10 relaxed bits; aux in the guide alone."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 2), nn.Linear(2, 2)

    def model(self, x):
        bits = dist.RelaxedBernoulli(torch.tensor(0.5), logits=torch.zeros(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z10", bits.to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            bits = dist.RelaxedBernoulli(torch.tensor(0.5), logits=self.encoder(x))
            pyro.sample("aux", bits.to_event(1), infer={"is_auxiliary": True})
            pyro.sample("z10", bits.to_event(1))


def step_by(loss, engine="eager"):
    return lambda model, guide: SVI(model, guide, ADAM, loss(), engine=engine).step(X)


def fitted(model, guide):
    fit(model, guide, X, epochs=1, batch_size=8)


USES = {
    "SVI": step_by(ELBO),
    "SVI, recorded": step_by(ELBO, "recorded"),
    "SVI with a loss of Pyro's": step_by(functools.partial(Trace_ELBO, max_plate_nesting=1)),
    "SVI of Pyro's": lambda model, guide: PyroSVI(
        model, guide, pyro.optim.Adam({"lr": 1e-3}), ELBO()
    ).step(X),
    "fit": fitted,
    "elbo": lambda model, guide: elbo(model, guide, X),
}
WRAPPED = {
    "both": lambda handler, bed, use: use(handler(bed.model), handler(bed.guide)),
    "guide": lambda handler, bed, use: use(bed.model, handler(bed.guide)),
    "around": lambda handler, bed, use: within(handler, lambda: use(bed.model, bed.guide)),
}


def within(handler, use):
    with handler:
        return use()


# Each use, and each way to wrap a program, with a few of the others.
PAIRS = [(use, list(WRAPPED)[place % len(WRAPPED)]) for place, use in enumerate(USES)]
PAIRS += [("fit", wrapped) for wrapped in WRAPPED if ("fit", wrapped) not in PAIRS]


@pytest.mark.parametrize("kind", [KLWeight, Temperature])
@pytest.mark.parametrize(("use", "wrapped"), PAIRS)
def test_a_site_that_the_program_does_not_have_is_refused(kind, wrapped, use):
    for sites in (["typo"], ["z10", "typo"], ["z1"], ["x"]):
        words = rf"{kind.__name__}\(sites=.*'{sites[-1]}'.*'z10'"
        with pytest.raises(ValueError, match=words):
            WRAPPED[wrapped](kind(0.5, sites=sites), Relaxed(), USES[use])
    assert not pyro.poutine.runtime._PYRO_STACK


@pytest.mark.parametrize(("use", "wrapped"), PAIRS)
def test_a_site_of_the_guide_alone_may_be_named_for_both(wrapped, use):
    for sites in (["z10"], ["aux", "z10"], ["aux"]):
        if sites == ["aux"] and use == "SVI of Pyro's":
            continue
        if "z10" in sites and (wrapped, use) == ("guide", "fit"):
            continue  # refused, since the model does not weigh it
        WRAPPED[wrapped](KLWeight(0.5, sites=sites), Relaxed(), USES[use])


def test_a_run_of_the_model_alone_refuses_what_does_nothing():
    bed = Relaxed()
    for sites, nearest in ((["z1"], "did you mean 'z10'"), (["aux"], "the latent sites are 'z10'")):
        with pytest.raises(ValueError, match=nearest):
            poutine.trace(KLWeight(0.5, sites=sites)(bed.model)).get_trace(X)
    poutine.trace(KLWeight(0.5, sites=["aux", "z10"])(bed.model)).get_trace(X)


def test_a_site_outside_the_handlers_block_is_refused():
    bed = Relaxed()

    def guide(x):
        with pyro.plate("data", len(x)):
            logits = bed.encoder(x)
            with KLWeight(0.5, sites=["other"]):
                pyro.sample("aux", dist.Normal(x, 1.0).to_event(1), infer={"is_auxiliary": True})
            pyro.sample("z10", dist.RelaxedBernoulli(torch.tensor(0.5), logits=logits).to_event(1))
            pyro.sample("other", dist.Normal(x, 1.0).to_event(1), infer={"is_auxiliary": True})

    with pytest.raises(ValueError, match="'other' is not sampled inside this handler"):
        elbo(bed.model, guide, X)


def test_names_are_a_list_of_strings():
    with pytest.raises(ValueError, match=r"sites=\[\]"):
        KLWeight(0.5, sites=[])
    with pytest.raises(TypeError, match="Linear is no name"):
        Temperature(0.5, sites=[nn.Linear(1, 1)])


@pytest.mark.parametrize(("use", "wrapped"), [pair for pair in PAIRS if "recorded" not in pair[0]])
def test_a_frozen_module_that_the_program_does_not_have_is_remarked_on(wrapped, use):
    bed = Relaxed()
    with pytest.warns(UserWarning, match="Frozen: the module Bilinear has no part") as caught:
        WRAPPED[wrapped](Frozen(nn.Bilinear(1, 1, 1)), bed, USES[use])
    assert len({str(warning.message) for warning in caught}) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WRAPPED[wrapped](Frozen(bed.encoder.requires_grad_()), bed, USES["elbo"])
    assert not any(module._forward_pre_hooks for module in bed.modules())


def test_a_frozen_module_of_a_plain_object_has_a_part_in_the_program():
    class Plain:
        def __init__(self):
            self.bed = Relaxed()
            self.model, self.guide = self.bed.model, self.bed.guide

        def call(self, x):
            return self.guide(x)

    plain = Plain()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elbo(plain.model, Frozen(plain.bed.encoder)(plain.call), X)


def test_a_traversal_names_a_site_that_there_is():
    bed = Relaxed()
    with pytest.raises(ValueError, match=r"no latent site 'typo'.*'z10'"):
        traverse(bed.model, bed.guide, X, site="typo")


def test_a_handler_for_some_sites_leaves_a_step_recorded():
    bed, weight = Relaxed(), KLWeight(0.5, sites=["z10"])
    svi = SVI(weight(bed.model), weight(bed.guide), ADAM, ELBO(), engine="recorded")
    for _ in range(4):
        svi.step(X)
    assert svi.recorded
