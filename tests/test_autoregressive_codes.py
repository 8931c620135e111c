"""A prior over integer codes, one given those before it, held against all the values there are."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import kolmogorov_bound
from recorded import Pair, both
from torch import nn

from pyro_vae import evaluation
from pyro_vae.components import (
    AutoregressiveCategorical,
    Categorical,
    Conditional,
)
from pyro_vae.components.networks.transformer import CausalTransformer
from pyro_vae.datasets import Data, Dataset
from pyro_vae.inference import ELBO
from pyro_vae.laboratory import refit

SHAPES = {(3,): 3, (2, 2): 2}  # with K
SMALL = {"width": 4, "num_heads": 2, "num_layers": 1}


def every(event_shape, num_categories):
    """Return all values, ``[K^M, *event_shape]``."""
    places = [range(num_categories)] * math.prod(event_shape)
    return torch.tensor([*itertools.product(*places)]).reshape(-1, *event_shape)


def distribution(event_shape, num_categories, *batch):
    """Return one with weights that are far from small."""
    torch.manual_seed(3)
    family = AutoregressiveCategorical(event_shape, num_categories=num_categories, **SMALL).double()
    for parameter in family.parameters():
        nn.init.normal_(parameter)
    return family(torch.randn(*batch, *family.raw_shape, dtype=torch.float64))


@pytest.mark.parametrize("event_shape", SHAPES)
def test_probabilities_sum_to_one_and_draws_have_them(event_shape):
    # A false alarm in 10,000 runs.
    num, num_categories = 4000, SHAPES[event_shape]
    fn = distribution(event_shape, num_categories, 2)
    values = every(event_shape, num_categories)
    masses = fn.log_prob(values.unsqueeze(1)).exp()
    torch.testing.assert_close(masses.sum(0), torch.ones(2).double(), rtol=0, atol=1e-10)
    assert masses.max() > 3 / len(values)
    draws = fn.sample((num,))
    assert draws.dtype == torch.float64
    same = (draws.unsqueeze(2) == values).flatten(3).all(-1).double().mean(0)
    bound = kolmogorov_bound(num, false_alarm=1e-4)
    assert (same.cumsum(1) - masses.T.cumsum(1)).abs().max() < bound
    assert fn.expand([5, 2]).sample((2,)).shape == (2, 5, 2, *event_shape)
    assert bool(fn.support.check(draws).all())
    for outside in (draws + num_categories, draws - 0.5, draws * torch.nan):
        assert not bool(fn.support.check(outside).any())
        assert bool((fn.log_prob(outside) == -torch.inf).all())


def test_each_step_of_a_draw_has_the_conditional_of_the_joint():
    """Place by place, to 1e-10: what is drawn next is what all values together say."""
    fn = distribution((3,), 3)
    masses = fn.log_prob(every((3,), 3)).exp().reshape(3, 3, 3)
    for place in range(3):
        joint = masses.flatten(place + 1).sum(-1) if place < 2 else masses
        expected = joint / joint.sum(-1, keepdim=True)
        before = every((place,), 3) if place else torch.zeros(1, 0, dtype=torch.long)
        logits = fn._logits[place] + fn._network(before)[:, -1]
        found = logits.softmax(-1).reshape(expected.shape)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_no_place_sees_itself_or_a_later_one():
    torch.manual_seed(0)
    network = CausalTransformer(5, 4, **SMALL).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    one = torch.tensor([[0, 1, 2]])
    whole = network(one)
    for place in range(3):
        other = one.clone()
        other[:, place:] = 4
        moved = network(other)
        torch.testing.assert_close(moved[:, : place + 1], whole[:, : place + 1])
        assert not torch.allclose(moved[:, place + 1], whole[:, place + 1])
        # A shorter past gives the same: steps of a draw are those of a probability.
        torch.testing.assert_close(network(one[:, :place]), whole[:, : place + 1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_categories": 1}, "num_categories=1: an AutoregressiveCategorical has 2 or more"),
        ({"num_categories": 3, "width": 6, "num_heads": 4}, "num_heads=4: as many heads cannot"),
        ({"num_categories": 3, "num_layers": 0}, "num_layers=0"),
    ],
)
def test_bad_arguments_say_which(arguments, said):
    with pytest.raises(ValueError, match=said):
        AutoregressiveCategorical((4,), **arguments)


# A second stage -----------------------------------------------------------------------------------


class Quantized(nn.Module):
    """Three places, each the nearest of K numbers: what a codebook's codes are to a program."""

    codebook: torch.Tensor

    def __init__(self, num_codes=4, num_places=3):
        super().__init__()
        self.prior = Conditional(Categorical((num_places,), num_categories=num_codes))
        self.register_buffer("codebook", torch.arange(num_codes).float())
        self.noise = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            scale = 0.3 * self.noise.exp()
            pyro.sample("x", dist.Normal(self.codebook[z.long()], scale).to_event(1), obs=x)

    def guide(self, x):
        nearest = (x.unsqueeze(-1) - self.codebook).abs().argmin(-1)
        chosen = nn.functional.one_hot(nearest, len(self.codebook))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=1e4 * (chosen - 1.0)).to_event(1))


def test_codes_that_follow_each_other_gain_what_a_factorised_prior_wastes():
    """Each code is the one before plus one: log K nats are told, of M log K."""
    torch.manual_seed(0)
    first = torch.randint(0, 4, (400,))
    codes = (first.unsqueeze(1) + torch.arange(3)) % 4
    x = codes + 0.05 * torch.randn(400, 3)
    part = Data(x)
    data = Dataset("codes", part, part, part, levels=None)
    small = partial(AutoregressiveCategorical, num_categories=4, width=16, num_layers=1)
    done = refit(
        Quantized(), data, prior=small, epochs=20, batch_size=100, device="cpu", progress=False,
        optim=partial(torch.optim.Adam, lr=0.02),
    )  # fmt: skip
    shares = codes[:, 0].bincount() / 400
    entropy = -float((shares * shares.log()).sum())
    assert done.after.log_p_nats == pytest.approx(-entropy, abs=0.05)
    assert done.gained_nats == pytest.approx(3 * math.log(4) - entropy, abs=0.05)
    assert done.after.bound.rate_nats == pytest.approx(entropy, abs=0.05)
    # The codes' own frequencies are all that there is: nothing is left between q(z) and p(z).
    assert done.after.information.nats == pytest.approx(entropy, abs=1e-5)
    assert abs(done.after.information.aggregate_kl) < 0.05
    samples = evaluation.prior_samples(done.program.model, x, 200, stochastic=False).round()
    follows = (samples[:, 1:] - samples[:, :-1]) % 4 == 1
    assert follows.float().mean() > 0.97


def test_a_recorded_step_gives_the_bits_of_the_eager_one():
    def build():
        torch.manual_seed(0)
        program = Quantized()
        family = AutoregressiveCategorical((3,), num_categories=4, **SMALL)
        program.prior = Conditional(family)
        return Pair(program.model, program.guide, (torch.rand(4, 3) * 3,))

    found = both(build, ELBO, sizes=[4] * 3)
    assert found.replayed == [False, True, True]
