"""Families with a floor under the KL: the floor is what they commit to, and it is reached."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from laws import Pair
from recorded import both
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_vae.components import (
    MLP,
    AutoregressiveNormal,
    BatchNormalizedNormal,
    CommittedNormal,
    StandardNormal,
)
from pyro_vae.inference import AnalyticELBO
from pyro_vae.models import VAE

SHAPES = [(2,), (5,), (4, 3)]


def joint(shape: tuple[int, ...], coefficient: torch.Tensor) -> MultivariateNormal:
    """Return the chain as one Gaussian: steps t and s correlate by alpha^|t - s|."""
    steps = torch.arange(shape[0])
    covariance = coefficient ** (steps[:, None] - steps).abs()
    size = math.prod(shape)
    across = torch.kron(covariance, torch.eye(size // shape[0]).double())
    return MultivariateNormal(torch.zeros(size).double(), across)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_chain_is_a_gaussian_of_unit_variances(shape: tuple[int, ...]) -> None:
    chain = AutoregressiveNormal(shape, rate=1.5).double()()
    expected = joint(shape, chain.coefficient)
    z = torch.randn(6, 2, *shape).double()
    found = chain.expand((2,)).log_prob(z)
    torch.testing.assert_close(found, expected.log_prob(z.flatten(2)), rtol=1e-10, atol=1e-10)
    assert chain.expand((2,)).sample((6,)).shape == z.shape
    assert chain.variance.shape == chain.mean.shape == shape


def test_draws_of_the_chain_have_its_covariance() -> None:
    # The standard error of a covariance of 20,000 draws is at most 0.01.
    chain = AutoregressiveNormal((4, 2), rate=3.0).double()()
    draws = chain.sample((20_000,)).flatten(1)
    expected = joint((4, 2), chain.coefficient).covariance_matrix
    assert (torch.cov(draws.T) - expected).abs().max() < 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kl_from_a_normal_is_that_of_gaussians(shape: tuple[int, ...]) -> None:
    chain = AutoregressiveNormal(shape, rate=0.7).double()()
    loc, scale = torch.randn(3, *shape).double(), torch.rand(3, *shape).double() + 0.1
    q = dist.Normal(loc, scale).to_event(len(shape))
    as_one = MultivariateNormal(loc.flatten(1), torch.diag_embed(scale.flatten(1).square()))
    expected = kl_divergence(as_one, joint(shape, chain.coefficient))
    torch.testing.assert_close(kl_divergence(q, chain), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rate", [0.0, 0.01, 2.0, 6.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_normal_is_nearer_to_the_chain_than_its_rate(shape: Any, rate: float) -> None:
    chain = AutoregressiveNormal(shape, rate=rate).double()()
    precision = joint(shape, chain.coefficient).precision_matrix
    nearest = dist.Normal(torch.zeros(shape).double(), precision.diag().rsqrt().reshape(shape))
    least = kl_divergence(nearest.to_event(len(shape)), chain)
    assert least.item() == pytest.approx(rate, abs=1e-4, rel=1e-4)
    other = dist.Normal(0.3 * torch.randn(50, *shape), torch.rand(50, *shape) + 0.05)
    assert bool((kl_divergence(other.to_event(len(shape)), chain) >= least - 1e-4).all())


@pytest.mark.parametrize("rate", [0.0, 0.3, 9.0])
def test_no_raw_numbers_bring_a_committed_normal_below_its_rate(rate: float) -> None:
    family, prior = CommittedNormal((2, 3), rate=rate), StandardNormal((2, 3))
    raw = torch.cat([3 * torch.randn(200, 2, 2, 3), torch.full((1, 2, 2, 3), 1e4)])
    raw[-1, 0] = 0.0  # the widest scales, at the prior's mean
    kl = kl_divergence(family(raw), prior())
    assert bool((kl >= rate - 1e-5).all())
    assert kl[-1].item() == pytest.approx(rate, rel=1e-4, abs=1e-5)


def test_normalised_means_vary_as_they_are_told() -> None:
    family = BatchNormalizedNormal((2, 3), gamma=0.8).double()
    with torch.no_grad():
        family.beta.normal_()
    raw = 7 + 0.4 * torch.randn(500, 2, 2, 3).double()
    q = family(raw)
    loc = q.base_dist.loc
    torch.testing.assert_close(loc.mean(0), family.beta.detach())
    expected = 0.8**2 + family.beta.detach().square()
    torch.testing.assert_close(loc.square().mean(0), expected, rtol=1e-3, atol=1e-3)
    kl = kl_divergence(q, StandardNormal((2, 3)).double()()).mean()
    assert kl >= 0.5 * expected.sum() - 1e-2


def test_judged_it_goes_by_the_averages_of_training_and_each_datum_alone() -> None:
    family = BatchNormalizedNormal((3,))
    for _ in range(60):
        family(5 + 2 * torch.randn(64, 2, 3))
    family.eval()
    raw = 5 + 2 * torch.randn(7, 2, 3)
    together = family(raw).base_dist.loc
    alone = torch.cat([family(raw[i : i + 1]).base_dist.loc for i in range(7)])
    torch.testing.assert_close(alone, together)
    expected = 0.5 * (raw[:, 0] - 5) / 2
    torch.testing.assert_close(together, expected, rtol=0.3, atol=0.1)
    before = {name: value.clone() for name, value in family.state_dict().items()}
    family.train()
    assert bool(family(raw[:1]).base_dist.loc.isfinite().all())  # no spread in a batch of one
    assert all(torch.equal(value, before[name]) for name, value in family.state_dict().items())


PARTS: dict[str, dict[str, Any]] = {
    "chain": {"prior": partial(AutoregressiveNormal, rate=1.0)},
    "batch norm": {"posterior": BatchNormalizedNormal},
}


@pytest.mark.parametrize("name", PARTS)
def test_a_recorded_step_has_the_bits_of_an_eager_one(name: str) -> None:
    def build() -> Pair:
        x = (torch.rand(6, 4, generator=torch.Generator().manual_seed(7)) < 0.4).float()
        vae = VAE.assemble((4,), (3,), network=partial(MLP, hidden=(5,)), **PARTS[name])
        return Pair(vae.model, vae.guide, (x,))

    found = both(build, AnalyticELBO, sizes=(6, 6, 6), whole=True)
    assert found.replayed[-1]
    assert len(set(found.losses)) == 3


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: AutoregressiveNormal((1,), rate=0.1), r"chain of 1 step\(s\) .* 0 nats at most"),
        (lambda: AutoregressiveNormal((2,), rate=7.0), r"rate=7.0: .* commit to 6.9\d* nats"),
        (lambda: AutoregressiveNormal((3,), rate=-1.0), "rate=-1.0"),
        (lambda: AutoregressiveNormal((3,), rate=math.nan), "rate=nan"),
        (lambda: CommittedNormal((2,), rate=13.0), "commit to 12.8.* nats at most"),
        (lambda: CommittedNormal((2,), rate=math.inf), "rate=inf"),
        (lambda: BatchNormalizedNormal((2,), gamma=0.0), "gamma=0.0"),
        (lambda: BatchNormalizedNormal((2,))(), "raw parameters"),
    ],
)
def test_what_cannot_be_committed_to_is_refused(build: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        build()
    assert "\n" not in str(caught.value)
