"""Parameters that are cut off from their gradient are named at the first step, and no others."""

from __future__ import annotations

import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import nn

from pyro_vae import SVI, VAE, fit
from pyro_vae.components import MLP, Bernoulli, Conditional, Normal, StandardNormal
from pyro_vae.inference import ELBO, IWAE, RWS, DReG, Frozen, KLWeight, StickingTheLanding

adam = partial(torch.optim.Adam, lr=1e-3)


def rounded(h):
    return (3 * h).round()


def hard(h):
    return (h > 0).float()


def through_python(h):
    return torch.zeros_like(h) + h.mean().item()


def through_numpy(h):
    return torch.as_tensor(h.detach().numpy())


def one_hot_of_largest(h):
    return nn.functional.one_hot(h.argmax(-1), h.shape[-1]).float()


def copied_in_place(h):
    return torch.empty_like(h).copy_(h.detach()) * 1.0


def without_gradients(h):
    with torch.no_grad():
        return h * 2.0 + 1.0


CUT = {
    "detached": torch.Tensor.detach,
    "data": lambda h: h.data,
    "no_grad": without_gradients,
    "item": through_python,
    "numpy": through_numpy,
    "argmax": one_hot_of_largest,
    "round": rounded,
    "sign": torch.sign,
    "comparison": hard,
    "in place": copied_in_place,
}
WHOLE = {
    "identity": lambda h: h,
    "relu": torch.relu,
    "dead at first": lambda h: torch.relu(h - 1.0),
    "straight through": lambda h: h + (h.round() - h).detach(),
    "dropout": nn.Dropout(0.5),
    "softmax of one": lambda h: h + nn.functional.softmax(h[..., None], -1).squeeze(-1),
    "clamped": lambda h: h.clamp(-5, 5),
}


class Net(PyroModule):
    def __init__(self, inside=None, decoder=None):
        super().__init__()
        self.e, self.head, self.d = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(2, 3)
        self.unused = nn.Linear(3, 3)
        self.inside = inside or (lambda h: h)
        self.decoder = decoder or (lambda h: h)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(self.d(z)), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, raw = self.head(self.inside(self.e(x))).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def step(program, objective=None, optim=adam):
    x = torch.randn(5, 3)
    SVI(program.model, program.guide, optim, objective or Trace_ELBO()).step(x)


@pytest.mark.parametrize("cut", CUT.values(), ids=CUT)
def test_what_is_cut_off_is_named(cut):
    net = Net(cut)
    with pytest.warns(UserWarning, match=r"'e.weight' \(and 1 more\) takes part in site 'z', but"):
        step(net)
    with pytest.warns(UserWarning, match=r"'d.weight' \(and 1 more\) takes part in site 'x', but"):
        step(Net(decoder=cut))


@pytest.mark.parametrize("inside", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("scale", [0.0, 1.0], ids=["from zero", "as usual"])
def test_what_is_not_is_not(inside, scale):
    net = Net(inside)
    with torch.no_grad():
        net.head.weight.mul_(scale)
        net.d.weight.mul_(scale)
    step(net)


def test_the_whole_encoder_of_a_vae_and_fit_says_so_too():
    vae = VAE.assemble((3,), (2,), likelihood=Normal, network=partial(MLP, hidden=(4,)))
    forward = vae.posterior.forward

    def detached(x):
        fn = forward(x).base_dist
        return dist.Normal(fn.loc.detach(), fn.scale.detach()).to_event(1)

    vae.posterior.forward = detached
    with pytest.warns(UserWarning, match=r"'posterior.\S+' \(and \d more\) takes part in site 'z'"):
        fit(vae, torch.randn(30, 3), epochs=1)


def frozen_handler(net):
    net.model = Frozen(net.d)(net.model)
    return net


def frozen_for_good(net):
    net.e.requires_grad_(False)
    return net


def weighed(net):
    net.model, net.guide = KLWeight(0.0)(net.model), KLWeight(0.0)(net.guide)
    return net


def sticking(net):
    net.guide = StickingTheLanding()(net.guide)
    return net


MEANT = {
    "a frozen part": (frozen_handler, Net, None),
    "frozen for good": (frozen_for_good, lambda: Net(torch.Tensor.detach), None),
    "no weight": (weighed, Net, ELBO()),
    "sticking the landing": (sticking, Net, ELBO()),
    "importance": (sticking, Net, IWAE(2)),
    "doubly reparameterised": (lambda net: net, Net, DReG(2)),
    "wake-sleep": (lambda net: net, Net, RWS(num_particles=2)),
    "score function": (
        lambda net: net,
        lambda: VAE.assemble((3,), (2,), prior=Bernoulli, posterior=Bernoulli, likelihood=Normal),
        ELBO(),
    ),
}


@pytest.mark.parametrize(("change", "build", "objective"), MEANT.values(), ids=MEANT)
def test_what_is_meant_is_left_in_peace(change, build, objective):
    step(change(build()), objective)


def test_looking_changes_neither_noise_nor_weights_nor_buffers():
    def after(looks):
        torch.manual_seed(0)
        net = Net(nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)))
        net.inside.append(nn.Identity())
        svi = SVI(net.model, net.guide, adam, Trace_ELBO())
        if not looks:
            svi._warn_of_cut_off = lambda *_: None
        svi.step(torch.randn(5, 3))
        return [*net.state_dict().values(), torch.get_rng_state()]

    with warnings.catch_warnings():
        assert all(torch.equal(a, b) for a, b in zip(after(True), after(False), strict=True))


# Data that the guide does not look at -------------------------------------------------------------


class Blind(PyroModule):
    """A program whose guide takes from its data what ``looks`` takes from them."""

    def __init__(self, looks):
        super().__init__()
        self.looks, self.decoder = looks, nn.Linear(2, 3)
        self.loc = nn.Parameter(torch.zeros(2))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc = self.loc + self.looks(x)
            pyro.sample("z", dist.Normal(loc.expand(len(x), 2), 1.0).to_event(1))


LOOKS = {
    "nothing": (lambda x: 0.0, True),
    "its size": (lambda x: float(len(x)), True),
    "new numbers": (lambda x: x.new_ones(len(x), 2), True),
    "its numbers": (lambda x: x[:, :2], False),
    "a part, detached": (lambda x: x[:, :1].detach(), False),
    "what Python knows": (lambda x: x.sum().item(), False),
    "what numpy knows": (lambda x: torch.from_numpy(x.numpy()[:, :2].copy()), False),
    "a category": (lambda x: nn.functional.one_hot(x.argmax(-1), 3)[:, :2].float(), False),
    "weights of zero": (lambda x: x[:, :2] * 0.0, False),
}


@pytest.mark.parametrize("kind", LOOKS)
def test_a_guide_that_is_the_same_for_every_datum_is_told(kind):
    looks, is_blind = LOOKS[kind]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Blind(looks), torch.randn(40, 3), epochs=1, device="cpu", engine="eager")
    told = [w for w in caught if "the same for every datum" in str(w.message)]
    assert len(told) == is_blind


def test_a_prior_in_the_place_of_the_encoder_is_told():
    vae = VAE.assemble((3,), (2,), likelihood=Normal)
    vae.posterior = StandardNormal((2,))
    with pytest.warns(UserWarning, match="the same for every datum"):
        fit(vae, torch.randn(40, 3), epochs=1, device="cpu")
    for built in (
        lambda: Conditional(StandardNormal((2,)), context_shape=(3,), network=MLP),
        lambda: VAE.assemble((3,), (2,), posterior=StandardNormal),
    ):
        with pytest.raises(ValueError, match="would be the same for every context"):
            built()
