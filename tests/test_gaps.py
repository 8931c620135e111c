"""The best q of a family, both parts of the gap, and HMC, on programs with a known posterior."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import PROGRAMS
from linear import LinearGaussian
from pyro.distributions.transforms import AffineTransform
from torch import nn
from torch.distributions import normal

from pyro_vae.components import Automatic, Conditional, DiagonalNormal, FullNormal, Planar
from pyro_vae.evaluation import (
    elbo,
    importance_sampling,
    inference_gaps,
    refine,
    sample_posterior,
)
from pyro_vae.evaluation.gaps import best_estimate
from pyro_vae.evaluation.offsets import Offsets, free_offsets
from pyro_vae.inference import Probe, Program, site_terms


def data(num, num_dims=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num, num_dims, generator=generator).double() * 1.5


@pytest.fixture
def corners(monkeypatch):
    """Let four samples of two normals be the corners of a square: a quadratic's exact mean."""
    square = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2))).double()

    plain = normal._standard_normal

    def drawn(shape, dtype, device):
        if (len(shape), shape[0], shape[-1]) != (3, 4, 2):
            return plain(shape, dtype, device)
        return square.unsqueeze(1).expand(shape)

    monkeypatch.setattr(normal, "_standard_normal", drawn)


EXACT = {"num_particles": 4, "num_samples": 4, "learning_rate": 0.1, "engine": "eager"}


def test_the_best_diagonal_q_has_the_posteriors_mean_and_precisions(corners):
    vae, x = LinearGaussian(), data(5)
    found = refine(vae.model, vae.guide, x, num_updates=200, **EXACT)
    posterior = vae.posterior(x)
    values = found.values["z"]
    torch.testing.assert_close(values.mean(0), posterior.mean, rtol=0, atol=1e-4)
    precision = posterior.precision_matrix.diagonal(dim1=-2, dim2=-1).expand(5, 2)
    torch.testing.assert_close(values.var(0, correction=0), 1 / precision, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.elbo, vae.bound(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.refined_elbo, vae.best_diagonal_bound(x), rtol=0, atol=1e-6)


def test_both_gaps_are_their_closed_forms(corners):
    vae, x = LinearGaussian(), data(5)
    found = inference_gaps(vae.model, vae.guide, x, log_p=vae.log_p(x), num_updates=100, **EXACT)
    best = vae.best_diagonal_bound(x)
    assert found.approximation == pytest.approx((vae.log_p(x) - best).mean().item(), abs=1e-5)
    assert found.amortization == pytest.approx((best - vae.bound(x)).mean().item(), abs=1e-5)
    assert found.inference == pytest.approx(found.approximation + found.amortization)
    gaps = best - vae.bound(x)
    assert found.amortization.standard_error == pytest.approx(
        (gaps.std() / math.sqrt(5)).item(), abs=1e-5
    )
    assert min(found.approximation, found.amortization) > 0.01


def test_an_exact_encoder_has_no_gap(corners):
    x = data(4)
    weight = torch.tensor([[1.0, 0.0], [0.0, 0.7], [0.0, 0.0]]).double()
    vae = LinearGaussian(exact=True)
    with torch.no_grad():  # columns at right angles: the posterior is diagonal
        vae.weight.copy_(weight)
        precision = 1 + weight.square().sum(0) / vae.scale**2
        vae.gain.copy_((weight / vae.scale**2 / precision).T)
        vae.offset.copy_(-vae.gain @ vae.bias)
        vae.spread.copy_(precision.rsqrt())
    found = inference_gaps(vae.model, vae.guide, x, log_p=vae.log_p(x), num_updates=30, **EXACT)
    assert abs(found.approximation) < 1e-3
    assert abs(found.amortization) < 1e-3
    assert abs(found.inference) < 1e-10


def test_each_datum_is_refined_by_itself(corners):
    vae, x = LinearGaussian(), data(5)
    together = refine(vae.model, vae.guide, x, num_updates=20, **EXACT)
    apart = refine(vae.model, vae.guide, x, num_updates=20, batch_size=2, **EXACT)
    torch.testing.assert_close(together.refined_elbo, apart.refined_elbo, rtol=0, atol=1e-10)
    assert apart.values["z"].shape == (4, 5, 2)


def test_with_samples_the_bound_rises_and_stays_below_log_p():
    vae, x = LinearGaussian(), data(60)
    found = refine(vae.model, vae.guide, x, num_updates=60, num_samples=200)
    reference = elbo(vae.model, vae.guide, x, num_particles=200)
    assert found.elbo.mean().item() == pytest.approx(reference.elbo_nats, abs=0.05)
    rise = vae.best_diagonal_bound(x) - vae.bound(x)
    measured = found.refined_elbo - found.elbo
    assert measured.mean().item() == pytest.approx(rise.mean().item(), abs=0.05)
    assert found.refined_elbo.mean() < vae.log_p(x).mean() + 0.05


def test_recorded_updates_have_the_bits_of_eager_ones():
    found = [
        refine(vae.model, vae.guide, data(5), num_updates=4, num_samples=8, batch_size=3,
               engine=engine)
        for engine in ("eager", "recorded")
        for vae in [LinearGaussian()]
    ]  # fmt: skip
    assert torch.equal(found[0].refined_elbo, found[1].refined_elbo)


# What is moved ------------------------------------------------------------------------------------


def guide_of(build):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", build(x))

    return guide


def covariance(x):
    root = torch.diag_embed(0.5 + x[:, :2].sigmoid()) + 0.2 * torch.ones(2, 2).tril(-1)
    return root @ root.mT


FREE = {
    "Normal": (guide_of(lambda x: dist.Normal(x[:, :2], 0.8).to_event(1)), 2),
    "one scale for all": (guide_of(lambda x: dist.Normal(x[:, :2], x.new_ones(2)).to_event(1)), 2),
    "MultivariateNormal": (
        guide_of(lambda x: dist.MultivariateNormal(x[:, :2], covariance_matrix=covariance(x))),
        2,
    ),
    "LowRankMultivariateNormal": (
        guide_of(
            lambda x: dist.LowRankMultivariateNormal(
                x[:, :2], x[:, :2].unsqueeze(-1), x[:, :2].exp()
            )
        ),
        3,
    ),
    "StudentT": (guide_of(lambda x: dist.StudentT(5.0, x[:, :2], 0.8).to_event(1)), 3),
    "flow": (
        guide_of(
            lambda x: dist.TransformedDistribution(
                dist.Normal(x[:, :2], 0.8).to_event(1), [AffineTransform(0.1, 0.9, event_dim=1)]
            )
        ),
        2,
    ),
}


def check_offsets(program, layout, args, num):
    """At zero offsets the guide is itself; each datum's offsets move that datum alone."""
    with program.evaluating(seed=0), pyro.validation_enabled(False):
        families, offsets = free_offsets(program, layout, *args)
        assert len(offsets) == num
        assert all(bool((zeros == 0).all()) for zeros in offsets)

        def table(offsets, num_particles):
            torch.manual_seed(1)
            moved = Program(program.model, Offsets(families, offsets)(program.guide))
            return site_terms(moved, layout, *args, num_particles=num_particles)

        for num_particles in (1, 3):
            torch.manual_seed(1)
            plain = site_terms(program, layout, *args, num_particles=num_particles)
            torch.testing.assert_close(table(offsets, num_particles).log_w, plain.log_w)
        plain = table(offsets, 1).log_w[0]
        for zeros in offsets:
            zeros.movedim(zeros.shape.index(len(args[0])), 0)[1] += 0.1
            moved = table(offsets, 1).log_w[0]
            assert not torch.isclose(moved[1], plain[1])
            torch.testing.assert_close(moved[[0, 2]], plain[[0, 2]])
            zeros.zero_()
    return families


@pytest.mark.parametrize("name", FREE)
def test_parameters_of_any_distribution_are_moved_for_each_datum(name):
    guide, num = FREE[name]
    program = Program(LinearGaussian().model, guide)
    x = data(5)
    assert check_offsets(program, Probe(program, x).layout, (x,), num) == ()


@pytest.mark.parametrize(
    "family", [DiagonalNormal, FullNormal, Planar, lambda s: Automatic(s, "Laplace")]
)
def test_raw_numbers_of_a_conditional_are_moved_for_each_datum(family):
    posterior = Conditional(
        family((2,)), context_shape=(3,), network=lambda i, o: nn.Sequential(
            nn.Linear(3, math.prod(o)), nn.Unflatten(-1, o))
    ).double()  # fmt: skip
    program = Program(LinearGaussian().model, guide_of(posterior))
    x = data(5)
    assert check_offsets(program, Probe(program, x).layout, (x,), 1) == (posterior.family,)
    assert not posterior.family._forward_pre_hooks


PAIRS = {"VAE, MLP": 1, "two latents": 4, "labels": 2, "inner plate": 4, "no particles": 2}


@pytest.mark.parametrize("name", PAIRS)
def test_every_program_is_refined(name):
    pair = PROGRAMS[name]()
    program = Program(pair.model, pair.guide)
    layout = Probe(program, *pair.args).layout
    check_offsets(program, layout, pair.args, PAIRS[name])
    found = refine(
        pair.model,
        pair.guide,
        *pair.args,
        num_updates=12,
        num_particles=4,
        num_samples=40,
        engine="eager",
    )  # fmt: skip
    assert found.refined_elbo.mean() > found.elbo.mean()
    log_p = importance_sampling(pair.model, pair.guide, *pair.args, num_samples=500)
    assert found.refined_elbo.mean() < log_p.mean + 0.2


# HMC ----------------------------------------------------------------------------------------------


def test_hmc_draws_from_the_exact_posterior():
    vae, x = LinearGaussian(scale=0.9), data(3)
    found = sample_posterior(
        vae.model, vae.guide, x, num_chains=3000, num_transitions=24, num_steps=5, engine="eager"
    )
    posterior = vae.posterior(x)
    values = found.values["z"]
    assert values.shape == (3000, 3, 2)
    root = torch.linalg.cholesky(posterior.precision_matrix)
    white = ((values - posterior.mean).unsqueeze(-2) @ root).squeeze(-2)
    assert white.mean(0).abs().max() < 5 / math.sqrt(3000)
    for row in range(3):
        spread = white[:, row].T.cov() - torch.eye(2)
        assert spread.abs().max() < 5 * math.sqrt(2 / 3000)
    assert 0.6 < found.acceptance.mean() < 0.95


def test_hmc_moves_constrained_latents_of_all_sites():
    def model(x):
        with pyro.plate("data", len(x)):
            scale = pyro.sample("scale", dist.Gamma(x.new_full((), 3.0), 2.0))
            z = pyro.sample("z", dist.Normal(0.0, scale))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 0.5))
            pyro.sample("z", dist.Normal(0.8 * x, 0.4))

    x = torch.tensor([0.3, 2.0]).double()
    found = sample_posterior(
        model, guide, x, num_chains=1500, num_transitions=20, num_steps=4, engine="eager"
    )
    grid_s, grid_z = (torch.linspace(*ends, 600).double() for ends in ((1e-3, 12), (-6, 8)))
    scale, z = torch.meshgrid(grid_s, grid_z, indexing="ij")
    for row in range(2):
        log_p = dist.Gamma(3.0, 2.0).log_prob(scale) + dist.Normal(0.0, scale).log_prob(z)
        weight = (log_p + dist.Normal(z, 0.5).log_prob(x[row])).flatten().softmax(0)
        for name, grid in (("scale", scale), ("z", z)):
            draws = found.values[name][:, row]
            mean = (weight * grid.flatten()).sum()
            error = draws.std() / math.sqrt(1500)
            assert abs(draws.mean() - mean) < 5 * error


# Choices and mistakes -----------------------------------------------------------------------------


def test_the_larger_mean_is_the_better_estimate():
    vae, x = LinearGaussian(), data(6)
    few, many = (importance_sampling(vae.model, vae.guide, x, num_samples=num) for num in (1, 500))
    assert best_estimate(few, many) is best_estimate(many, few)
    assert best_estimate(few, many).mean == max(few.mean, many.mean)


class OfItsOwn(dist.Normal):
    """A normal with a number that no parameter tells of."""

    def __init__(self, loc, scale, validate_args=None):
        super().__init__(loc, scale, validate_args=False)
        self.shift = 0.0

    def expand(self, batch_shape, _instance=None):
        new = type(self)(self.loc.expand(batch_shape), self.scale.expand(batch_shape))
        new.shift = 1.0
        return new

    def log_prob(self, value):
        return super().log_prob(value - self.shift)


def bits(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(2).double()).to_event(1))


def of_bits(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(2).double()).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) + 0 * x, 1.0).to_event(1), obs=x)


MISTAKES = {
    "no update": (refine, {"num_updates": 0}, "num_updates=0: at least 1"),
    "no particle": (refine, {"num_particles": 0}, "num_particles=0: at least 1"),
    "rate": (refine, {"learning_rate": 0.0}, "learning_rate=0.0: it is positive"),
    "bits": (
        refine,
        {"model": of_bits, "guide": bits},
        r"samples of site 'z' \(Bernoulli\) carry no gradients",
    ),
    "hidden number": (
        refine,
        {"guide": guide_of(lambda x: OfItsOwn(x[:, :2], x.new_ones(2)).to_event(1))},
        r"site 'z' has a OfItsOwn, which cannot be refined \(its parameters do not say all",
    ),
    "uniform": (
        refine,
        {"guide": guide_of(lambda x: dist.Uniform(x[:, :2], x[:, :2] + 1).to_event(1))},
        r"site 'z' has a Uniform, which cannot be refined \(its parameters have no fixed",
    ),
    "other data": (inference_gaps, {"log_p": torch.zeros(3)}, r"log_p has shape \(3,\) for 4 data"),
    "no chain": (sample_posterior, {"num_chains": 0}, "num_chains=0: at least 1"),
    "certainty": (sample_posterior, {"target_acceptance": 1}, "target_acceptance=1: a probability"),
    "bits by HMC": (
        sample_posterior,
        {"model": of_bits, "guide": bits},
        "site 'z' is discrete",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_line(mistake):
    function, change, message = MISTAKES[mistake]
    vae = LinearGaussian()
    options = {"model": vae.model, "guide": vae.guide, **change}
    with pytest.raises(ValueError, match=message) as caught:
        function(options.pop("model"), options.pop("guide"), data(4), **options)
    assert "\n" not in str(caught.value)


def test_progress_and_state():
    vae, x = LinearGaussian(), data(4)
    before = torch.get_rng_state()
    refine(vae.model, vae.guide, x, num_updates=2, num_samples=2)
    sample_posterior(vae.model, vae.guide, x, num_transitions=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert vae.training
    assert all(parameter.grad is None for parameter in vae.parameters())
