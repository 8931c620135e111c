"""Results do not depend on the units of data: training in any of them is the very same."""

from __future__ import annotations

import math
import warnings
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae import VAE, evaluation, fit
from pyro_vae.components import (
    MLP,
    AffineCoupling,
    Automatic,
    Bernoulli,
    Categorical,
    Columns,
    Conditional,
    DiagonalNormal,
    Family,
    FullNormal,
    Incomplete,
    LogitNormal,
    LowRankNormal,
    MixtureOfNormals,
    NeuralSpline,
    Normal,
    OptimalScale,
    PerDimensionScale,
    SharedScale,
    Standardize,
    StandardNormal,
)
from pyro_vae.datasets import from_arrays
from pyro_vae.distributions import InUnits, in_units
from pyro_vae.engine import Dequantize
from pyro_vae.engine.adaptation import adapt_to_data
from pyro_vae.inference import Probe, Program
from pyro_vae.models import ConditionalVAE, HierarchicalVAE, LadderVAE, SemiAmortizedVAE

NET = partial(MLP, hidden=(6,))
FACTORS = torch.tensor([1e-4, 1e4, 1.0])
OFFSETS = torch.tensor([0.03, -1e6, 1e3])


class Own(Family):
    """A user's family, which knows nothing of units."""

    def __init__(self, event_shape):
        super().__init__(event_shape, raw_shape=(1, *event_shape))

    def forward(self, raw):
        return dist.StudentT(5.0, raw.squeeze(-2), 1.0).to_event(1)


def meet(vae, *rows: Tensor) -> None:
    """Let a program meet data as ``fit`` does before its first step."""
    program = Program(vae.model, vae.guide)
    adapt_to_data(Probe(program, *rows), *rows)


def table(num: int = 60, dims: int = 3) -> Tensor:
    torch.manual_seed(1)
    x = torch.randn(num, 2) @ torch.randn(2, dims) + 0.3 * torch.randn(num, dims)
    return (x - x.mean(0)) / x.std(0, correction=0)


def trained(x: Tensor, likelihood) -> Tensor:
    """Return the weights log p(x, z) - log q(z | x) after a few steps, in nats of x's own units."""
    torch.manual_seed(0)
    with pyro.validation_enabled(False):
        vae = VAE.assemble(tuple(x.shape[1:]), (2,), likelihood=likelihood, network=NET, data=x)
        optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            (-log_weights(vae, x)).mean().backward()
            optimizer.step()
        return log_weights(vae.eval(), x).detach()


def log_weights(vae: VAE, x: Tensor) -> Tensor:
    q = vae.posterior(x)
    z = q.rsample()
    return vae.prior().log_prob(z) + vae.likelihood(z).log_prob(x) - q.log_prob(z)


def fitted(x: Tensor, likelihood) -> Tensor:
    """Return log p(x) after an epoch of ``fit``, in nats of x's own units."""
    torch.manual_seed(0)
    vae = VAE.assemble(tuple(x.shape[1:]), (2,), likelihood=likelihood, network=NET)
    fit(vae, x, epochs=1, batch_size=16, engine="eager")
    return evaluation.log_likelihood(vae.model, vae.guide, x, num_samples=20)


REAL = {
    "Normal": Normal,
    "Normal, shared scale": partial(Normal, scale=SharedScale),
    "Normal, own scales": partial(Normal, scale=PerDimensionScale),
    "Normal, optimal scale": partial(Normal, scale=OptimalScale),
    "Incomplete": Incomplete,
    "Incomplete, shared scale": partial(Incomplete, family=partial(Normal, scale=SharedScale)),
    "Columns": partial(Columns, columns=[Normal, Automatic.of(dist.Laplace), Normal]),
    "DiagonalNormal": DiagonalNormal,
    "FullNormal": FullNormal,
    "LowRankNormal": LowRankNormal,
    "MixtureOfNormals": partial(MixtureOfNormals, num_components=3),
    "AffineCoupling": partial(AffineCoupling, num_flows=2, hidden_dims=[4]),
    "NeuralSpline": partial(NeuralSpline, num_flows=2, hidden_dims=[4]),
    "a user's": Own,
    **{
        name: Automatic.of(getattr(dist, name))
        for name in (
            "AsymmetricLaplace", "Cauchy", "Gumbel", "Laplace", "Logistic",
            "LowRankMultivariateNormal", "MultivariateNormal", "MultivariateStudentT", "Normal",
            "SkewLogistic", "SoftLaplace", "StudentT",
        )
    },
}  # fmt: skip
POSITIVE = {
    name: Automatic.of(getattr(dist, name))
    for name in (
        "Chi2", "Exponential", "FisherSnedecor", "Gamma", "HalfCauchy", "HalfNormal",
        "InverseGamma", "LogNormal",
        "Weibull",
    )
}  # fmt: skip
POSITIVE["Incomplete Gamma"] = partial(Incomplete, family=Automatic.of(dist.Gamma))


@pytest.mark.parametrize("name", REAL)
def test_training_is_the_same_in_all_units(name: str) -> None:
    x = table()
    found = trained(x * FACTORS + OFFSETS, REAL[name]) + FACTORS.log().sum()
    torch.testing.assert_close(found, trained(x, REAL[name]), atol=0.02, rtol=1e-3)


@pytest.mark.parametrize("name", POSITIVE)
def test_training_on_positive_numbers_is_the_same_in_all_units(name: str) -> None:
    x = table().exp()
    found = trained(x * FACTORS, POSITIVE[name]) + FACTORS.log().sum()
    torch.testing.assert_close(found, trained(x, POSITIVE[name]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("factor", [1e-8, 1e8])
@pytest.mark.parametrize("likelihood", [Normal, Incomplete, Automatic.of(dist.StudentT)])
def test_units_may_be_tiny_or_huge(likelihood, factor: float) -> None:
    x = table()
    found = trained(factor * x, likelihood) + 3 * math.log(factor)
    torch.testing.assert_close(found, trained(x, likelihood), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "Normal",
        "Columns",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("MixtureOfNormals", "StudentT")),
    ],
)
def test_fit_finds_the_units_by_itself(name: str) -> None:
    x = table()
    found = fitted(x * FACTORS + OFFSETS, REAL[name]) + FACTORS.log().sum()
    torch.testing.assert_close(found, fitted(x, REAL[name]), atol=0.02, rtol=1e-3)


MISSING = {
    "Incomplete": Incomplete,
    "NanMaskedNormal": Automatic.of(dist.NanMaskedNormal),
    "NanMaskedMultivariateNormal": Automatic.of(dist.NanMaskedMultivariateNormal),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_numbers_have_no_units(name: str) -> None:
    x = table()
    x[::3, 0] = x[1::4, 2] = torch.nan
    volume = torch.where(x.isnan(), 0.0, FACTORS.log()).sum(-1)
    found = trained(x * FACTORS + OFFSETS, MISSING[name]) + volume
    torch.testing.assert_close(found, trained(x, MISSING[name]), atol=0.02, rtol=1e-3)


def test_columns_of_counts_and_bits_have_units_of_their_own() -> None:
    torch.manual_seed(2)
    real, bits = table(dims=1), torch.randint(0, 2, (60, 1)).float()
    counts = torch.randint(0, 4, (60, 1)).float()
    kinds = [Normal, Bernoulli, partial(Categorical, num_categories=4)]
    family = partial(Columns, columns=kinds)
    plain, raw = (torch.cat([c, bits, counts], 1) for c in (real, 1e4 * real + 1e6))
    found = fitted(raw, family) + math.log(1e4)
    torch.testing.assert_close(found, fitted(plain, family), atol=0.02, rtol=1e-3)


def test_channels_of_images_and_series_have_units_of_their_own() -> None:
    torch.manual_seed(3)
    images = torch.randn(40, 3, 2, 2)
    factors = torch.tensor([1e-4, 1.0, 1e4]).reshape(3, 1, 1)
    found = trained(images * factors + 5 * factors, Normal) + 4 * factors.log().sum()
    torch.testing.assert_close(found, trained(images, Normal), atol=0.02, rtol=1e-3)
    series = Standardize.of(torch.randn(40, 5, 2) * torch.tensor([1e-3, 1e3]))
    assert series.scale.shape == (1, 2)


def test_a_run_that_trains_nothing_or_is_refused_meets_nothing() -> None:
    x, vae = 1e3 * table(), parts()
    fit(vae, x, epochs=0, batch_size=16)
    with pytest.raises(ValueError, match="needs out"):
        fit(vae, x, epochs=1, batch_size=16, resume=True)
    assert not vae.likelihood.units.known
    assert not vae.likelihood.offset.any()


@pytest.mark.parametrize(
    "program", [VAE, ConditionalVAE, HierarchicalVAE, LadderVAE, SemiAmortizedVAE]
)
def test_every_program_starts_at_the_data_in_fit_as_in_assemble(program) -> None:
    x, labels = 1e3 * table() + 1e5, torch.arange(60) % 2
    latents = [(3,), (2,)] if program in (HierarchicalVAE, LadderVAE) else (2,)
    given = {"num_classes": 2} if program is ConditionalVAE else {}
    met = []
    for data in (x, None):
        torch.manual_seed(0)
        vae = program.assemble((3,), latents, likelihood=Normal, network=NET, data=data, **given)
        meet(vae, x, *([labels] if given else []))
        met.append(vae.state_dict())
    assert met[0].keys() == met[1].keys()
    for name in met[0]:
        torch.testing.assert_close(met[0][name], met[1][name], msg=name)
    assert 1e5 - 3e3 < float(vae.likelihood.units.loc.mean()) < 1e5 + 3e3


def parts(likelihood=Normal) -> VAE:
    """The README's way to build a VAE, whose parts have met no data."""
    torch.manual_seed(0)
    return VAE(
        prior=StandardNormal((2,)),
        likelihood=Conditional(likelihood((3,)), context_shape=(2,), network=NET),
        posterior=Conditional(DiagonalNormal((2,)), context_shape=(3,), network=NET),
    )


def test_what_has_been_trained_given_weights_or_met_data_is_left_alone() -> None:
    x = 1e3 * table()
    trained_before, loaded, told, stranger = parts(), parts(), parts(), parts()
    with torch.no_grad():
        next(trained_before.posterior.network.parameters()).mul_(1.01)
    other = parts()
    with torch.no_grad():
        next(other.likelihood.network.parameters()).add_(0.1)
    loaded.load_state_dict(other.state_dict())
    told.likelihood.start_at(x.mean(0) + 1)
    stranger.posterior.adapt_inputs(x[:5])
    for vae in (trained_before, loaded, told, stranger):
        before = {name: value.clone() for name, value in vae.state_dict().items()}
        meet(vae, x)
        assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    fresh = parts()
    meet(fresh, x)
    units = fresh.likelihood.units.scale.clone()
    meet(fresh, 5 * x)
    assert torch.equal(fresh.likelihood.units.scale, units)


def test_units_are_weights_that_another_program_can_load() -> None:
    x = 1e3 * table() + 1e4
    vae, fresh = parts(), parts()
    meet(vae, x)
    fresh.load_state_dict(vae.state_dict())
    z = torch.randn(5, 2)
    assert torch.equal(fresh.likelihood(z).log_prob(x[:5]), vae.likelihood(z).log_prob(x[:5]))
    assert torch.equal(fresh.posterior(x).mean, vae.posterior(x).mean)


def test_a_resumed_run_in_units_has_the_same_bits(tmp_path) -> None:
    x = 1e3 * table() + 1e4
    options = {"epochs": 3, "batch_size": 16, "out": tmp_path, "checkpoint_seconds": 0.0}
    whole, again = parts(), parts()
    expected = fit(whole, x, **options)
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    assert newest.exists()
    found = fit(again, x, resume=True, **options)
    assert found.history == expected.history
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_integers_start_at_their_means_and_in_no_units() -> None:
    x = torch.bernoulli(torch.full((60, 3), 0.8))
    vae = parts(Bernoulli)
    meet(vae, x)
    assert not vae.likelihood.units.known
    assert vae.posterior.inputs.known
    assert bool((vae.likelihood.offset > 0).all())


# Constants in the data's own units ----------------------------------------------------------------

FIXED = {
    "Normal": (partial(Normal, scale=20.0), dist.Normal(0.0, 20.0)),
    "Laplace": (Automatic.of(dist.Laplace, scale=20.0), dist.Laplace(0.0, 20.0)),
    "StudentT": (Automatic.of(dist.StudentT, scale=20.0, df=3.0), dist.StudentT(3.0, 0.0, 20.0)),
}


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_scale_stays_in_the_data_s_own_units(name: str) -> None:
    build, expected = FIXED[name]
    x = table() * torch.tensor([1e2, 1e3, 1.0]) + 1e3
    likelihood = Conditional(build((3,)))
    likelihood.adapt_outputs(x)
    away = x - likelihood(None).mean
    torch.testing.assert_close(
        likelihood(None).log_prob(x), expected.log_prob(away).sum(-1), atol=1e-3, rtol=1e-4
    )


def test_constants_of_positive_distributions_stay_in_the_data_s_own_units() -> None:
    x = 1e3 * table().exp()
    for name, constant, of in (
        ("Gamma", {"rate": 1e-3}, lambda raw: dist.Gamma(raw, 1e-3)),
        ("LogNormal", {"loc": 7.0}, lambda raw: dist.LogNormal(7.0, raw)),
        ("Weibull", {"scale": 1e3}, lambda raw: dist.Weibull(1e3, raw)),
    ):
        likelihood = Conditional(Automatic((3,), name, **constant))
        likelihood.adapt_outputs(x)
        free = torch.nn.functional.softplus(torch.tensor(math.log(math.e - 1))) + 1e-5
        expected = of(free).log_prob(x).sum(-1)
        torch.testing.assert_close(likelihood(None).log_prob(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [SharedScale, PerDimensionScale, OptimalScale])
def test_scales_that_are_told_where_to_start_start_there_in_the_data_s_units(scale) -> None:
    x = 50 * table() + 1e4
    likelihood = Conditional(Normal((3,), scale=partial(scale, initial=3.0)))
    likelihood.adapt_outputs(x)
    torch.testing.assert_close(
        likelihood(None).variance.sqrt(), torch.full((3,), 3.0), rtol=1e-3, atol=0
    )


def test_angles_keep_their_units() -> None:
    likelihood = Conditional(Automatic((3,), "VonMises"))
    likelihood.adapt_outputs(0.1 * table())
    assert not likelihood.units.known


# The density --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (1e3, 1e-3), (-5.0, 1e4)])
@pytest.mark.parametrize("name", ["Normal", "Laplace", "StudentT", "Gumbel"])
def test_a_density_in_units_integrates_to_one(name: str, loc: float, scale: float) -> None:
    base = Automatic((1,), name).double()(torch.zeros(Automatic((1,), name).raw_shape).double())
    given = torch.tensor([loc]).double(), torch.tensor([scale]).double()
    moved = in_units(base, *given)
    t = torch.sinh(torch.linspace(-30, 30, 60_001).double())
    x = loc + scale * t.unsqueeze(-1)
    total = torch.trapezoid(moved.log_prob(x).exp(), x.squeeze(-1))
    assert total.item() == pytest.approx(1.0, abs=1e-5)


def test_moments_draws_and_quantiles_are_in_units_of_the_data() -> None:
    moved = InUnits(dist.Normal(torch.tensor(0.5), torch.tensor(2.0)), *torch.tensor([10.0, 3.0]))
    exact = dist.Normal(torch.tensor(11.5), torch.tensor(6.0))
    for fact in ("mean", "variance"):
        torch.testing.assert_close(getattr(moved, fact), getattr(exact, fact))
    torch.testing.assert_close(moved.entropy(), exact.entropy())
    torch.testing.assert_close(moved.cdf(torch.tensor(9.0)), exact.cdf(torch.tensor(9.0)))
    torch.testing.assert_close(moved.icdf(torch.tensor(0.3)), exact.icdf(torch.tensor(0.3)))
    torch.manual_seed(0)
    draws = moved.expand((4,)).rsample((5_000,))
    assert moved.has_rsample
    assert draws.shape == (5_000, 4)
    assert abs(draws.mean() - 11.5) < 0.2
    with pytest.raises(ValueError, match="support"):
        InUnits(
            dist.Normal(0.0, 1.0), torch.zeros(()), torch.ones(()), validate_args=True
        ).log_prob(torch.tensor(math.nan))


def test_correlated_numbers_have_the_volume_of_all() -> None:
    torch.manual_seed(0)
    family = FullNormal((3,)).double()
    base = family(torch.randn(4, *family.raw_shape).double())
    loc, scale = torch.randn(3).double(), torch.rand(3).double() + 0.1
    tril = scale.unsqueeze(-1) * base.scale_tril
    exact = dist.MultivariateNormal(loc + scale * base.loc, scale_tril=tril)
    x = torch.randn(4, 3).double()
    torch.testing.assert_close(in_units(base, loc, scale).log_prob(x), exact.log_prob(x))


# Inputs of the encoder ----------------------------------------------------------------------------


def test_inputs_far_from_zero_or_hardly_varying_are_standardised() -> None:
    torch.manual_seed(0)
    plain = torch.randn(5_000, 5)
    offsets = torch.tensor([1e6, -1e5, 0.0, 3.0, 0.0])
    factors = torch.tensor([10.0, 1.0, 1e-12, 1e-3, 1e12])
    x = plain * factors + offsets
    seen = Standardize.of(x)(x)
    torch.testing.assert_close(seen.mean(0), torch.zeros(5), atol=1e-2, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(5), atol=1e-2, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, 5.0, 1.7e9])
def test_constant_inputs_are_zero_and_a_change_is_told_by_their_size(value: float) -> None:
    x = torch.full((1_000, 1), value)
    standardize = Standardize.of(x)
    assert not standardize(x).any()
    moved = standardize(x + max(1.0, value))
    torch.testing.assert_close(moved, torch.full_like(x, max(1.0, value) / (value or 1.0)))


def test_probabilities_near_zero_start_where_they_are() -> None:
    torch.manual_seed(0)
    x = (torch.randn(500, 2) * 0.5 - 9).sigmoid()
    likelihood = Conditional(LogitNormal((2,)))
    likelihood.adapt_outputs(x)
    base = likelihood(None).base_dist
    torch.testing.assert_close(base.loc, torch.full((2,), -9.0), atol=0.1, rtol=0)
    torch.testing.assert_close(base.scale, torch.full((2,), 0.5), atol=0.1, rtol=0)


# What hardly varies -------------------------------------------------------------------------------


def hardly_varying() -> Tensor:
    x = torch.cat([table(80), table(80)[:, :1] * -2.54 + 7, torch.full((80, 1), 5.0)], 1)
    mostly = torch.where(torch.arange(80) < 50, 0.0, torch.randn(80))
    return torch.cat([x, mostly.unsqueeze(1)], 1)


def said(x: Tensor, likelihood) -> list[str]:
    vae = VAE.assemble(tuple(x.shape[1:]), (2,), likelihood=likelihood, network=NET)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        meet(vae, x)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("likelihood", [Normal, Incomplete, Automatic.of(dist.StudentT)])
def test_columns_over_which_a_density_rises_without_end_are_named(likelihood) -> None:
    always, mostly, copies = said(hardly_varying(), likelihood)
    assert "column 4 (5) of 6 is the same in all training data" in always
    assert "column 5 (0) of 6 is the same in most training data" in mostly
    assert "(3 of 0)" in copies
    assert said(table(80), likelihood) == []


def test_constant_columns_of_a_table_are_named_where_they_have_a_density() -> None:
    x = hardly_varying()[:, [0, 4]]
    x = torch.cat([x, torch.ones(80, 1)], 1)
    (sentence,) = said(x, partial(Columns, columns=[Normal, Normal, Bernoulli]))
    assert "column 1 (5) of 3" in sentence
    x[::2, 1] = torch.nan
    family = partial(Columns, columns=[Normal, Normal, Bernoulli])
    (sentence,) = said(x, partial(Incomplete, family=family))
    assert "column 1 (5) of 3" in sentence


def test_one_scale_for_all_bits_and_counts_are_not_told_of_constants() -> None:
    constant = torch.cat([table(80)[:, :2], torch.full((80, 1), 5.0)], 1)
    for scale in (0.3, SharedScale, OptimalScale):
        assert said(constant, partial(Normal, scale=scale)) == []
    bits = torch.bernoulli(torch.full((80, 3), 0.5))
    bits[:, 1] = 0
    assert said(bits, Bernoulli) == []


def test_pixels_of_a_border_are_told_in_one_sentence_and_noise_mends_them() -> None:
    torch.manual_seed(0)
    x = torch.rand(80, 1, 6, 6)
    x[:, :, 0] = 0.0
    (sentence,) = said(x, Normal)
    assert "(0, 0, 0) (0), " in sentence
    assert " and 1 more of 36 are the same in all" in sentence
    assert said(Dequantize(255)((255 * x).round()), Normal) == []


# Lost digits --------------------------------------------------------------------------------------

STAMPS = 1_700_000_000 + np.arange(500) * 7
LOSSY = {
    "whole seconds": (STAMPS.astype("f8"), True),
    "integers": (STAMPS, True),
    "seconds in 32 bits": (STAMPS.astype("f4"), True),
    "large numbers, two of which merge": (np.r_[np.arange(499), 2.0**24 + 1], False),
    "neighbours": (np.r_[np.arange(498), 2**24, 2**24 + 1].astype("f8"), True),
    "noise on an offset": (1e8 + np.random.default_rng(0).normal(size=500), True),
    "reals": (np.random.default_rng(0).normal(size=500), False),
    "thousands": (1e3 + np.random.default_rng(0).normal(size=500), False),
    "a constant": (np.full(500, 1.7e9), False),
}


def test_numbers_below_those_of_32_bits_are_to_be_multiplied() -> None:
    x = np.random.default_rng(0).normal(size=(50, 2)) * 1e-43
    with pytest.raises(ValueError, match="do not fit in 32-bit floats; rescale them"):
        from_arrays(x)


@pytest.mark.parametrize("name", LOSSY)
def test_values_that_become_one_on_loading_are_told_with_their_column(name: str) -> None:
    column, lossy = LOSSY[name]
    other = np.linspace(0, 1, 500) if column.dtype.kind == "f" else np.arange(500)
    x = np.stack([other.astype(column.dtype), column], 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from_arrays(x)
    told = [str(warning.message) for warning in caught]
    assert len(told) == lossy
    if lossy:
        assert "column 1 (" in told[0]
        assert "subtract" in told[0]
