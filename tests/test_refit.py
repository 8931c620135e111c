"""Another prior for a trained program: what it gains, and that nothing else of it moves."""

from __future__ import annotations

import copy
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from bits import same
from linear import LinearGaussian
from quick import some
from runs import final
from torch import nn

from pyro_vae import VAE, fit
from pyro_vae.components import (
    MLP,
    AutoregressiveBernoulli,
    AutoregressiveCodes,
    Bernoulli,
    Conditional,
    DiagonalNormal,
    FullNormal,
    MaskedAutoregressive,
    MixtureOfNormals,
    NearestCode,
    NeuralSpline,
    Normal,
    Point,
    StandardNormal,
    VampPrior,
)
from pyro_vae.datasets import Data, Dataset
from pyro_vae.distributions import in_units
from pyro_vae.engine import Callback
from pyro_vae.laboratory import PriorError, refit
from pyro_vae.laboratory.priors import Place, alone, taken_over
from pyro_vae.models import (
    VQVAE,
    ConditionalVAE,
    HierarchicalVAE,
    LadderVAE,
    SemiAmortizedVAE,
    TopDownVAE,
)

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 2.0, 3.0])
SMALL = partial(MLP, hidden=(8,))
QUICK = {"epochs": 2, "batch_size": 16, "device": "cpu", "progress": False}


def all_parts(x):
    """Return data of which the same rows are trained on, validated and judged on."""
    part = Data(x)
    return Dataset("x", part, part, part, levels=None)


# In closed form -----------------------------------------------------------------------------------


class WithPrior(LinearGaussian):
    """The linear-Gaussian program with its prior as a module."""

    def __init__(self, **options):
        super().__init__(**options)
        self.prior = StandardNormal(tuple(self.zeros.shape))
        self.float()
        self.zeros = self.zeros.float()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            x_given_z = dist.Normal(z @ self.weight.T + self.bias, self.scale).to_event(1)
            pyro.sample("x", x_given_z, obs=x)


def gaussian_data(num_rows):
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(3, 3, generator=generator)
    return 2.0 + torch.randn(num_rows, 3, generator=generator) @ mixing


@pytest.fixture(scope="module")
def normal_refit():
    """A learned normal over one latent, whose aggregate posterior is as normal as its data."""
    pyro.clear_param_store()
    program, x = WithPrior(num_latents=1), gaussian_data(400)
    done = refit(
        program, all_parts(x), prior=DiagonalNormal, epochs=100, batch_size=400, device="cpu",
        optim=partial(torch.optim.Adam, lr=0.03), progress=False, weights="last",
    )  # fmt: skip
    return program, x, done


def moments(program, x):
    """Return mean and variance of q(z) of these very data."""
    loc = x @ program.gain.T + program.offset
    return loc.mean(0).detach(), (loc.var(0, correction=0) + program.spread**2).detach()


def test_a_learned_normal_has_the_moments_of_the_aggregate_posterior(normal_refit):
    program, x, done = normal_refit
    mean, variance = moments(program, x)
    found = done.program.prior()
    torch.testing.assert_close(found.mean, mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.variance, variance, rtol=1e-3, atol=1e-3)


def test_the_gain_is_that_of_the_closed_form(normal_refit):
    program, x, done = normal_refit
    mean, variance = moments(program, x)
    best = -0.5 * (math.log(2 * math.pi) + variance.log() + 1).sum()
    old = -0.5 * (math.log(2 * math.pi) + variance + mean**2).sum()
    gain = float(best - old)
    assert gain > 0.3
    # Sixteen draws for each of four hundred data.
    assert abs(done.gained_nats - gain) < 0.02 * gain
    assert 0 < done.gained_nats.standard_error < 0.1 * gain
    risen = done.after.bound.elbo_nats - done.before.bound.elbo_nats
    assert risen == pytest.approx(gain, rel=0.05)
    assert done.after.log_p_nats - done.before.log_p_nats == pytest.approx(done.gained_nats)


def test_the_marginal_kl_falls_to_zero_by_as_much(normal_refit):
    _, _, done = normal_refit
    before, after = (under.information.aggregate_kl for under in (done.before, done.after))
    assert before > 0.3
    assert abs(after) < 3 * after.standard_error + 0.01
    assert before - after == pytest.approx(done.gained_nats, rel=0.1)
    assert done.after.information.ceiling == math.log(400)


@pytest.mark.slow
def test_dependent_latents_take_a_full_normal():
    program, x = WithPrior(num_latents=2), gaussian_data(300)
    done = refit(
        program, all_parts(x), prior=FullNormal, epochs=200, batch_size=300, device="cpu",
        optim=partial(torch.optim.Adam, lr=0.02), progress=False,
    )  # fmt: skip
    loc = x @ program.gain.T + program.offset
    expected = torch.cov(loc.T, correction=0) + torch.diag(program.spread**2)
    _, covariance = drawn_moments(done.program.prior(), 40_000)
    torch.testing.assert_close(covariance, expected.detach(), rtol=0.1, atol=0.03)


def drawn_moments(distribution, num):
    with torch.no_grad():
        draws = distribution.sample((num,))
    return draws.mean(0), torch.cov(draws.T)


def test_a_point_has_no_bound_but_its_codes_have_a_density():
    """The codes' own moments make the best normal; nothing is called an ELBO."""
    torch.manual_seed(0)
    vae = VAE.assemble((3,), (2,), likelihood=Normal, posterior=Point, network=SMALL, data=X)
    done = refit(
        vae, all_parts(X), prior=DiagonalNormal, epochs=60, batch_size=60, device="cpu",
        optim=partial(torch.optim.Adam, lr=0.05), progress=False, weights="last",
    )  # fmt: skip
    codes = vae.posterior(X).mean.detach()
    mean, variance = codes.mean(0), codes.var(0, correction=0)
    best = -0.5 * ((2 * math.pi * variance).log() + 1).sum()
    old = dist.Normal(0.0, 1.0).log_prob(codes).sum(1).mean()
    assert done.gained_nats == pytest.approx(float(best - old), abs=1e-3)
    assert done.after.log_p_nats == pytest.approx(float(best), abs=1e-3)
    torch.testing.assert_close(done.program.prior().mean, mean, rtol=1e-3, atol=1e-3)
    assert done.after.bound is done.after.information is None
    record = done.fit.history[-1]
    assert record["validation_code_log_density_nats"] == pytest.approx(float(best), abs=1e-3)
    assert not [key for key in record if "elbo" in key]


def test_the_kl_from_a_normal_in_units_is_that_of_the_same_normal():
    q = dist.Normal(torch.tensor([0.5, -2.0]), torch.tensor([0.3, 4.0])).to_event(1)
    p = dist.Normal(torch.tensor([0.1, 0.2]), torch.tensor([1.5, 0.7])).to_event(1)
    loc, scale = torch.tensor([10.0, -3.0]), torch.tensor([5.0, 0.2])
    moved = dist.Normal(loc + scale * p.mean, scale * p.stddev).to_event(1)
    found = torch.distributions.kl_divergence(q, in_units(p, loc, scale))
    torch.testing.assert_close(found, torch.distributions.kl_divergence(q, moved))
    laplace = in_units(dist.Laplace(torch.zeros(2), 1.0).to_event(1), loc, scale)
    with pytest.raises(NotImplementedError):
        torch.distributions.kl_divergence(q, laplace)


# What moves, and what does not --------------------------------------------------------------------


class Normalized(nn.Module):
    """A network with statistics that move, and noise, while it is trained."""

    def __init__(self, in_shape, out_shape):
        super().__init__()
        self.out_shape = out_shape
        self.layers = nn.Sequential(
            nn.Linear(math.prod(in_shape), 8), nn.BatchNorm1d(8), nn.Dropout(0.5),
            nn.Linear(8, math.prod(out_shape)),
        )  # fmt: skip

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        return self.layers(flat).reshape(*x.shape[:-1], *self.out_shape)


PRIORS = {
    "DiagonalNormal": DiagonalNormal,
    "MixtureOfNormals": partial(MixtureOfNormals, num_components=3),
    "NeuralSpline": partial(NeuralSpline, num_flows=1, hidden_dims=(8,)),
    "MaskedAutoregressive": partial(MaskedAutoregressive, num_flows=1, hidden_dims=(8,)),
    "VampPrior": partial(VampPrior, num_pseudo_inputs=5),
    "a module of one's own": lambda shape: Own(shape),
}  # fmt: skip


class Own(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(shape))

    def forward(self):
        return dist.Normal(self.loc, 1.0).to_event(1)


@pytest.fixture(scope="module")
def trained():
    pyro.clear_param_store()
    torch.manual_seed(0)
    vae = VAE.assemble((3,), (2,), likelihood=Normal, network=Normalized, data=X)
    fit(vae, X, **QUICK)
    return vae


def rest(program):
    """Return all tensors but those of the prior."""
    place = Place(program)
    return {n: x.clone() for n, x in program.state_dict().items() if not place.holds(n)}


@pytest.mark.parametrize("name", some(PRIORS, "VampPrior"))
def test_any_prior_learns_alone(trained, name):
    before, flags = rest(trained), [p.requires_grad for p in trained.parameters()]
    done = refit(trained, X, prior=PRIORS[name], **QUICK)
    assert isinstance(trained.prior, StandardNormal)
    for program in (trained, done.program):
        assert same(rest(program), before)
        assert all(module.training for module in program.modules())
    assert all(p.requires_grad for p in done.program.parameters())
    assert [p.requires_grad for p in trained.parameters()] == flags
    start = refit(trained, X, prior=PRIORS[name], **{**QUICK, "epochs": 0})
    moved = done.program.prior.state_dict(), start.program.prior.state_dict()
    assert any(not torch.equal(moved[0][n], moved[1][n]) for n in moved[0])
    assert done.fit.history[-1]["validation_elbo_nats"] > start.fit.start["validation_elbo_nats"]


def test_an_encoder_in_training_mode_would_move_its_statistics(trained):
    """The tests above hold nothing if it would not."""
    moving = copy.deepcopy(trained)
    before = rest(moving)
    for parameter in moving.parameters():
        parameter.requires_grad_(False)
    moving.prior = Own((2,))
    fit(moving, X, **QUICK)
    assert not same(rest(moving), before)


def test_what_a_prior_shares_with_the_encoder_stays(trained):
    class Sharing(Own):
        def __init__(self, encoder):
            super().__init__((2,))
            self.encoder = encoder

    changed = copy.deepcopy(trained)
    changed.prior = Sharing(changed.posterior)
    with alone(changed):
        learning = {n for n, p in changed.named_parameters() if p.requires_grad}
        assert learning == {"prior.loc"}
        assert not any(m.training for m in changed.posterior.modules())
        assert changed.prior.training
    assert all(p.requires_grad for p in changed.parameters())
    assert all(m.training for m in changed.modules())


@pytest.mark.slow
def test_bits_take_a_prior_that_tells_their_dependence():
    """Two bits that are always equal: a factorised prior wastes log 2."""
    torch.manual_seed(0)
    bits = torch.randint(0, 2, (200, 1)).float().expand(-1, 2)

    class Copying(nn.Module):
        def __init__(self):
            super().__init__()
            self.prior = Conditional(Bernoulli((2,)))
            self.likelihood = Conditional(Normal((2,), scale=0.3), context_shape=(2,), network=MLP)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", self.likelihood(z), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(0.01 + 0.98 * x).to_event(1))

    done = refit(
        Copying(), all_parts(bits), prior=AutoregressiveBernoulli, epochs=20, batch_size=50,
        optim=partial(torch.optim.Adam, lr=0.1), device="cpu", progress=False,
    )  # fmt: skip
    agree = 0.99**2 + 0.01**2
    told = math.log(2) + agree * math.log(agree) + (1 - agree) * math.log(1 - agree)
    assert done.gained_nats == pytest.approx(told, abs=0.06)


def test_codes_of_a_codebook_gain_and_the_codebook_stays():
    """Its moving averages are statistics, too."""
    torch.manual_seed(0)
    posterior = partial(NearestCode, num_codes=4)
    vae = VQVAE.assemble((3,), (2, 3), likelihood=Normal, posterior=posterior, network=SMALL)
    fit(vae, X, **QUICK)
    before = rest(vae)
    prior = partial(AutoregressiveCodes, width=4, num_heads=2, num_layers=1)
    done = refit(vae, X, prior=prior, **{**QUICK, "epochs": 6})
    assert any("average" in name or "embedding" in name for name in before)
    assert same(rest(done.program), before)
    assert done.before.bound.rate_nats == pytest.approx(3 * math.log(4), abs=1e-4)
    assert done.gained_nats > 0.1
    risen = done.after.bound.elbo_nats - done.before.bound.elbo_nats
    assert risen == pytest.approx(done.gained_nats, abs=1e-4)


@pytest.mark.parametrize("kind", [HierarchicalVAE, pytest.param(LadderVAE, marks=pytest.mark.slow)])
def test_of_a_hierarchy_the_top_prior_is_replaced(kind):
    torch.manual_seed(0)
    vae = kind.assemble((3,), ((3,), (2,)), likelihood=Normal, network=SMALL, data=X)
    fit(vae, X, **QUICK)
    prior = partial(VampPrior, num_pseudo_inputs=4) if kind is HierarchicalVAE else DiagonalNormal
    done = refit(vae, X, prior=prior, **QUICK)
    assert same(rest(done.program), rest(vae))
    assert Place(vae).name == "priors.1"
    assert type(done.program.priors[1]) is not type(vae.priors[1])
    risen = done.after.bound.elbo_nats - done.before.bound.elbo_nats
    assert abs(risen - done.gained_nats) < 4 * done.gained_nats.standard_error + 0.5


def test_a_prior_starts_in_the_units_of_the_codes():
    """Codes a thousand times as large lead to the same prior in their units."""
    torch.manual_seed(0)
    vae = VAE.assemble((3,), (2,), likelihood=Normal, posterior=DiagonalNormal, network=SMALL)
    vae.posterior.units.take(torch.tensor([5000.0, 0.0]), torch.tensor([1000.0, 10.0]))
    done = refit(vae, X, prior=NeuralSpline, **{**QUICK, "epochs": 0})
    units = done.program.prior.units
    assert units.loc[0] == pytest.approx(5000, abs=1000)
    assert 500 < units.scale[0] < 2000
    assert 5 < units.scale[1] < 20
    assert done.gained_nats > 1000


# Interrupted --------------------------------------------------------------------------------------


class Stop(Callback):
    def __init__(self, at):
        self.at = at

    def step(self, run, loss):
        if run.progress.step == self.at:
            raise KeyboardInterrupt


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(trained, tmp_path):
    options = {**QUICK, "prior": PRIORS["NeuralSpline"], "checkpoint_seconds": 0.0}
    whole = refit(trained, X, out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        refit(trained, X, out=tmp_path / "run", callbacks=[Stop(4)], **options)
    again = refit(trained, X, out=tmp_path / "run", resume=True, **options)
    assert same(final(tmp_path / "run"), final(tmp_path / "whole"))
    assert same(dict(again.program.state_dict()), dict(whole.program.state_dict()))
    assert again.gained_nats == whole.gained_nats


# Refused ------------------------------------------------------------------------------------------


class Bare(nn.Module):
    """A program whose prior is no module of its own, or is held but never asked."""

    def __init__(self, prior=None):
        super().__init__()
        if prior is not None:
            self.prior = prior
        self.encoder = nn.Linear(3, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample(
                "x",
                dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([len(x), 3]).to_event(1),
                obs=x,
            )

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


def labelled():
    return {"x": X, "labels": torch.arange(60) % 2}


REFUSED = {
    "no prior": (lambda: Bare(), X, DiagonalNormal, "a Bare has no prior of its own to replace"),
    "a prior aside": (
        lambda: Bare(StandardNormal((2,))), X, DiagonalNormal,
        "no latent of Bare has the distribution that its module 'prior' returns",
    ),
    "blocks": (
        lambda: TopDownVAE((1, 4, 4), ((2, 2, 2),), likelihood=Normal), torch.rand(60, 1, 4, 4),
        DiagonalNormal, "a TopDownVAE has no prior of its own",
    ),
    "a guide that asks": (
        lambda: SemiAmortizedVAE.assemble((3,), (2,), likelihood=Normal, network=SMALL), X,
        DiagonalNormal, "the guide of SemiAmortizedVAE asks its prior, so that q would change",
    ),
    "labels": (
        lambda: ConditionalVAE.assemble((3,), (2,), num_classes=2, likelihood=Normal, network=SMALL,
                                        prior=DiagonalNormal),
        labelled(), DiagonalNormal, "the prior of ConditionalVAE depends on what it is given",
    ),
    "nothing to learn": (
        lambda: VAE.assemble((3,), (2,), likelihood=Normal, network=SMALL), X, StandardNormal,
        "StandardNormal has nothing to learn: take a prior that has",
    ),
    "another support": (
        lambda: VAE.assemble((3,), (2,), likelihood=Normal, network=SMALL), X, Bernoulli,
        r"Bernoulli cannot score what the guide draws at 'z', \(2,\) numbers from",
    ),
    "another shape": (
        lambda: VAE.assemble((3,), (2,), likelihood=Normal, network=SMALL), X, Own((5,)),
        "Own cannot score what the guide draws at 'z'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_line(name):
    build, data, prior, said = REFUSED[name]
    with pytest.raises(PriorError, match=said) as told:
        refit(build(), data, prior=prior, **QUICK)
    assert "\n" not in str(told.value)


def test_programs_that_differ_in_more_than_the_prior_are_refused(trained):
    other = VAE.assemble((3,), (2,), likelihood=Normal, network=SMALL, data=X)
    with pytest.raises(PriorError, match="the programs differ in more than the prior, at 'likelih"):
        taken_over(trained, other)
