"""What is special to single likelihoods: edges, couplings, ends of sequences, missing numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import torch
from laws import Pair, kolmogorov_bound
from pyro.infer import Trace_ELBO
from recorded import both
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import distributions
from pyro_vae.components import (
    MLP,
    Automatic,
    Bernoulli,
    Binomial,
    Categorical,
    CategoricalSequence,
    Columns,
    Conditional,
    ContinuousBernoulli,
    DiagonalNormal,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Family,
    Incomplete,
    LogitNormal,
    Multinomial,
    Normal,
    Observed,
    OptimalScale,
    PerDimensionScale,
    SharedScale,
    Standardize,
)
from pyro_vae.components.scales import mean_of, without_missing
from pyro_vae.models import VAE

RGB = partial(DiscretizedLogisticMixture, levels=2, num_components=2)
MIXED = partial(
    Columns,
    columns=[
        Normal,
        Bernoulli,
        partial(Categorical, num_categories=3),
        Automatic.of(dist.Poisson),
    ],
)


def at_random(family: Family, *batch: int, spread: float = 1.0):
    torch.manual_seed(0)
    return family.double()(spread * torch.randn(*batch, *family.raw_shape).double())


def all_vectors(num: int, length: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(num), repeat=length))).double()


# Every likelihood ---------------------------------------------------------------------------------

# Two data of each: inside the support, at its edges where it has some.
LIKELIHOODS: dict[str, tuple[Callable[[tuple[int, ...]], Family], list]] = {
    "Normal": (Normal, [[0.0, 1.0], [-3.0, 2.0]]),
    "Normal, shared scale": (partial(Normal, scale=SharedScale), [[0.0, 1.0], [-3.0, 2.0]]),
    "Normal, own scales": (partial(Normal, scale=PerDimensionScale), [[0.0, 1.0], [-3.0, 2.0]]),
    "Normal, optimal scale": (partial(Normal, scale=OptimalScale), [[0.0, 1.0], [-3.0, 2.0]]),
    "ContinuousBernoulli": (ContinuousBernoulli, [[0.0, 1.0], [0.3, 0.5]]),
    "LogitNormal": (LogitNormal, [[1e-7, 0.999], [0.3, 0.5]]),
    "Categorical": (partial(Categorical, num_categories=4), [[0.0, 3.0], [1.0, 2.0]]),
    "DiscretizedLogistic": (DiscretizedLogistic, [[0.0, 255.0], [254.0, 7.0]]),
    "DiscretizedLogisticMixture": (DiscretizedLogisticMixture, [[0.0, 255.0], [254.0, 7.0]]),
    "Multinomial": (Multinomial, [[0.0, 0.0], [3.0, 2.0]]),
    "CategoricalSequence": (CategoricalSequence, [[4.0, 0.0], [3.0, 2.0]]),
    "Columns": (partial(Columns, columns=[Normal, Bernoulli]), [[0.4, 0.0], [3.0, 1.0]]),
    "Incomplete Normal": (Incomplete, [[math.nan, 1.0], [math.nan, math.nan]]),
    "Incomplete Bernoulli": (partial(Incomplete, family=Bernoulli), [[math.nan, 1.0], [0.0, 0.0]]),
    "Laplace": (Automatic.of(dist.Laplace), [[0.0, 1.0], [-3.0, 2.0]]),
    "StudentT": (Automatic.of(dist.StudentT), [[0.0, 1.0], [-3.0, 2.0]]),
    "Beta": (Automatic.of(dist.Beta), [[0.1, 0.9], [0.5, 0.5]]),
    "Gamma": (Automatic.of(dist.Gamma), [[0.1, 0.9], [2.0, 30.0]]),
    "Poisson": (Automatic.of(dist.Poisson), [[0.0, 1.0], [2.0, 30.0]]),
    "NegativeBinomial": (Automatic.of(dist.NegativeBinomial), [[0.0, 1.0], [2.0, 30.0]]),
    "ZeroInflatedPoisson": (Automatic.of(dist.ZeroInflatedPoisson), [[0.0, 1.0], [2.0, 30.0]]),
    "ZeroInflatedNegativeBinomial": (
        Automatic.of(dist.ZeroInflatedNegativeBinomial),
        [[0.0, 1.0], [2.0, 30.0]],
    ),
}
every = pytest.mark.parametrize("name", LIKELIHOODS)


@every
@pytest.mark.parametrize("extreme", [-1e4, 1e4, None])
def test_extreme_raw_numbers_give_finite_values_and_gradients(name: str, extreme) -> None:
    build, rows = LIKELIHOODS[name]
    family = build((2,))
    sign = torch.randint(0, 2, (2, *family.raw_shape), generator=torch.manual_seed(1)) * 2.0 - 1
    raw = (sign * 1e4 if extreme is None else torch.full(sign.shape, extreme)).requires_grad_()
    log_density = family(raw).log_prob(torch.tensor(rows))
    assert bool(log_density.isfinite().all())
    log_density.sum().backward()
    assert raw.grad is not None
    assert bool(raw.grad.isfinite().all())
    for parameter in family.parameters():
        assert bool(parameter.grad.isfinite().all())


@every
def test_particles_broadcast_and_batches_expand(name: str) -> None:
    build, rows = LIKELIHOODS[name]
    family, x = build((2,)).double().eval(), torch.tensor(rows).double()
    raw = torch.randn(3, 2, *family.raw_shape).double()
    expected = torch.stack([family(particle).log_prob(x) for particle in raw])
    torch.testing.assert_close(family(raw).log_prob(x), expected)
    wide = family(raw[0]).expand((3, 2))
    assert wide.sample().shape == (3, 2, 2)
    torch.testing.assert_close(wide.log_prob(x), expected[:1].expand(3, 2))


@every
def test_the_support_holds_the_draws_and_the_data(name: str) -> None:
    build, rows = LIKELIHOODS[name]
    distribution = at_random(build((2,)), 50)
    assert bool(distribution.support.check(distribution.sample()).all())
    assert bool(distribution.support.check(torch.tensor(rows).double()).all())
    assert distribution.has_rsample == (not distribution.support.is_discrete) or name == "Columns"


OUTSIDE = {
    "ContinuousBernoulli": [1.5, -0.1],
    "LogitNormal": [0.0, 1.0],
    "Categorical": [4.0, 0.5],
    "DiscretizedLogistic": [256.0, -1.0],
    "DiscretizedLogisticMixture": [256.0, 3.5],
    "Multinomial": [-1.0, 0.5],
    "CategoricalSequence": [256.0, 3.5],
    "Columns": [math.nan],
    "Incomplete Bernoulli": [2.0, 0.5],
    "Normal": [math.nan],
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_values_outside_the_support_are_refused(name: str) -> None:
    distribution = at_random(LIKELIHOODS[name][0]((2,)))
    for value in OUTSIDE[name]:
        x = torch.tensor([value, 1.0]).double()
        assert not bool(distribution.support.check(x).all())
        with pytest.raises(ValueError, match="support"):
            distribution.log_prob(x)


MEANS = ["ContinuousBernoulli", "LogitNormal", "Categorical", "DiscretizedLogistic", "Multinomial"]
MEANS += ["DiscretizedLogisticMixture", "Columns", "Incomplete Normal", "Poisson"]


@pytest.mark.parametrize("name", MEANS)
def test_the_mean_is_that_of_draws(name: str) -> None:
    num = 20_000
    distribution = at_random(LIKELIHOODS[name][0]((2,)), spread=0.7)
    draws = distribution.sample((num,)).double()
    error = (draws.mean(0) - distribution.mean).abs()
    assert bool((error < 4.5 * draws.std(0) / math.sqrt(num)).all())


@pytest.mark.parametrize("name", ["CategoricalSequence", "rgb"])
def test_what_has_no_mean_says_so(name: str) -> None:
    family = RGB((3, 1, 1)) if name == "rgb" else CategoricalSequence((2,))
    with pytest.raises(NotImplementedError):
        _ = at_random(family).mean


@every
def test_a_vae_of_it_trains_and_every_gradient_is_finite(name: str) -> None:
    build, rows = LIKELIHOODS[name]
    x = torch.tensor(rows)
    vae = VAE.assemble((2,), (2,), likelihood=build, network=partial(MLP, hidden=(4,)), data=x)
    z = vae.posterior(x).rsample()
    vae.likelihood(z).log_prob(x).sum().backward()
    reached = [*vae.likelihood.parameters(), *vae.posterior.parameters()]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in reached)
    assert all(bool((p.grad != 0).any()) for p in vae.likelihood.network.parameters())


@every
def test_densities_can_be_recorded(name: str) -> None:
    build, rows = LIKELIHOODS[name]
    family, x = build((2,)).double().eval(), torch.tensor(rows).double()

    def gradient(raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        raw = raw.detach().requires_grad_()
        log_density = family(raw).log_prob(x).sum()
        return log_density.detach(), torch.autograd.grad(log_density, raw)[0]

    first, second = torch.randn(2, 3, 2, *family.raw_shape).double()
    with pyro.validation_enabled(False):
        recorded = make_fx(gradient)(first, x)
    # Rows are exchanged too: a recording that knew its data would be seen.
    for found, expected in zip(
        recorded(second, x.flip(0)), gradient(second, x.flip(0)), strict=True
    ):
        assert torch.equal(found, expected)


WHOLE = ["Columns", "Incomplete Normal", "DiscretizedLogisticMixture"]


@pytest.mark.parametrize("name", WHOLE)
def test_recorded_steps_are_those_of_pyro(name: str) -> None:
    build, rows = LIKELIHOODS[name]
    x = torch.tensor(rows * 3)

    def pair() -> Pair:
        network = partial(MLP, hidden=(3,))
        vae = VAE.assemble((2,), (2,), likelihood=build, network=network, data=x)
        return Pair(vae.model, vae.guide, (x,))

    found = both(pair, Trace_ELBO, sizes=(6, 6))
    assert found.replayed[-1]
    assert all(math.isfinite(loss) for loss in found.losses)


def test_recorded_steps_of_coupled_pixels_are_those_of_pyro() -> None:
    x = torch.randint(0, 256, (6, 3, 2, 2)).float()

    def pair() -> Pair:
        network = partial(MLP, hidden=(3,))
        likelihood = partial(DiscretizedLogisticMixture, num_components=2)
        vae = VAE.assemble((3, 2, 2), (2,), likelihood=likelihood, network=network, data=x)
        return Pair(vae.model, vae.guide, (x,))

    assert both(pair, Trace_ELBO, sizes=(6, 6, 6)).replayed[-1]


# The unit interval --------------------------------------------------------------------------------

LOGITS = [0.0, 1e-9, 1e-3, 0.4999, 0.5001, 3.0, 20.0, 100.0, 1000.0]


@pytest.mark.parametrize("logit", [*LOGITS, *(-logit for logit in LOGITS[1:])])
def test_the_continuous_bernoulli_is_normalised_for_every_logit(logit: float) -> None:
    distribution = distributions.ContinuousBernoulli(torch.tensor(logit, dtype=torch.float64))

    def moment(power: int) -> float:
        def integrand(x: float) -> float:
            return (
                x**power * distribution.log_prob(torch.tensor(x, dtype=torch.float64)).exp().item()
            )

        edges = sorted({0.0, min(1.0, 30 / (abs(logit) + 1)), 1.0})
        edges = edges if logit < 0 else sorted(1 - edge for edge in edges)
        parts = itertools.pairwise(edges)
        return sum(scipy.integrate.quad(integrand, *p, epsabs=1e-13, limit=200)[0] for p in parts)

    assert moment(0) == pytest.approx(1.0, abs=1e-10)
    assert moment(1) == pytest.approx(distribution.mean.item(), abs=1e-10)


def test_the_continuous_bernoulli_has_no_seam_where_its_formulas_meet() -> None:
    for dtype, tolerance in ((torch.float32, 3e-6), (torch.float64, 1e-12)):
        edge = torch.tensor([0.5 - 1e-7, 0.5 + 1e-7], dtype=dtype, requires_grad=True)
        distribution = distributions.ContinuousBernoulli(edge)
        found = distribution.log_prob(torch.tensor(0.3, dtype=dtype))
        (slope,) = torch.autograd.grad(found.sum(), edge)
        assert (found[0] - found[1]).abs() < tolerance + 1e-7
        assert (slope[0] - slope[1]).abs() < tolerance + 1e-7
        assert (slope + distribution.mean - 0.3).abs().max() < tolerance


@pytest.mark.parametrize("logit", [-1000.0, -3.0, -1e-2, -1e-4, 0.0, 5e-3, 0.4, 30.0, 1e4])
def test_quantiles_of_the_continuous_bernoulli_invert_its_distribution_function(logit) -> None:
    u = torch.linspace(0.001, 0.999, 99).double()
    distribution = distributions.ContinuousBernoulli(torch.tensor(logit, dtype=torch.float64))
    x = distribution.icdf(u)
    assert bool(((x >= 0) & (x <= 1)).all())
    torch.testing.assert_close(distribution.cdf(x), u, atol=1e-9, rtol=0)


def test_draws_of_the_continuous_bernoulli_are_reparameterised() -> None:
    # The gradient of a quantile is -(dF / d eta) / p, here by differences of the other formula.
    u = torch.tensor(0.3).double()
    for logit in (-40.0, -2.0, -5e-3, 5e-3, 0.3, 7.0):
        eta = torch.tensor(logit).double().requires_grad_()
        x = distributions.ContinuousBernoulli(eta).icdf(u)
        (slope,) = torch.autograd.grad(x, eta)
        step = 1e-5
        sides = [
            torch.expm1((logit + s) * x.detach()) / math.expm1(logit + s) for s in (step, -step)
        ]
        p = distributions.ContinuousBernoulli(eta.detach()).log_prob(x.detach()).exp()
        assert slope.item() == pytest.approx((-(sides[0] - sides[1]) / (2 * step) / p).item(), 1e-4)


def test_float32_draws_stay_inside_the_interval() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4])
    x = distributions.ContinuousBernoulli(logits).rsample((1000,))
    assert bool(((x >= 0) & (x <= 1)).all())
    squashed = distributions.LogitNormal(logits, torch.ones(5)).rsample((1000,))
    assert bool(((squashed > 0) & (squashed < 1)).all())


@pytest.mark.parametrize("family", [ContinuousBernoulli, LogitNormal])
def test_divergences_on_the_interval_agree_with_quadrature(family) -> None:
    p, q = at_random(family((1,)), 2, spread=2.0).base_dist.expand((2, 1)), None
    p, q = (type(p)(**{n: getattr(p, n)[i] for n in p.arg_constraints}) for i in range(2))
    nodes = torch.linspace(-30, 30, 80_001, dtype=torch.float64)
    x = nodes.sigmoid()
    weight = p.log_prob(x[:, None])
    integrand = (weight.exp() * (weight - q.log_prob(x[:, None]))).squeeze(-1)
    expected = torch.trapezoid(integrand * x * (1 - x), nodes)
    found = torch.distributions.kl_divergence(p, q)
    torch.testing.assert_close(found.squeeze(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.01, 1.0, 29.0, 31.0, 1000.0])
def test_the_mean_of_a_logit_normal(scale: float) -> None:
    loc = torch.tensor([-20.0, -1.0, 0.0, 8.0]).double()
    found = distributions.LogitNormal(loc, torch.tensor(scale).double()).mean
    u = (torch.arange(400_000).double() + 0.5) / 400_000
    noise = dist.Normal(0.0, 1.0).icdf(u)
    expected = torch.stack([torch.special.expit(m + scale * noise).mean() for m in loc])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_raw_numbers_start_at_the_mean_on_the_interval() -> None:
    mean = torch.tensor([0.02, 0.5, 0.97])
    family = ContinuousBernoulli((3,))
    torch.testing.assert_close(family(family.raw_from(mean[None])).mean, mean, atol=1e-4, rtol=0)
    assert bool(family.raw_from(torch.tensor([[0.0, 1.0, 0.5]])).isfinite().all())
    median = LogitNormal((3,))
    torch.testing.assert_close(median(median.raw_from(mean[None])).base_dist.loc.sigmoid(), mean)


# Levels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 2, 16, 255])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_discretized_logistics_sum_to_one_exactly(levels: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    loc = torch.randn(500, dtype=dtype) * levels
    scale = (3 * torch.randn(500, dtype=dtype)).exp()
    x = torch.arange(levels + 1, dtype=dtype)[:, None]
    total = distributions.DiscretizedLogistic(loc, scale, levels).log_prob(x).exp().sum(0)
    assert (total - 1).abs().max() < (2e-5 if dtype == torch.float32 else 1e-12)


def test_only_the_first_and_the_last_bin_are_open() -> None:
    found = distributions.DiscretizedLogistic(torch.tensor(250.0), torch.tensor(3.0), 255)
    logistic = torch.special.expit

    def between(low: float, high: float) -> Tensor:
        return logistic(torch.tensor((high - 250) / 3)) - logistic(torch.tensor((low - 250) / 3))

    x = torch.tensor([253.0, 254.0, 255.0])
    expected = [between(252.5, 253.5), between(253.5, 254.5), 1 - logistic(torch.tensor(4.5 / 3))]
    torch.testing.assert_close(found.log_prob(x).exp(), torch.stack(expected))


@pytest.mark.parametrize(("channels", "num"), [(3, 27), (2, 9), (4, 81)])
def test_coupled_pixels_sum_to_one_over_all_channels(channels: int, num: int) -> None:
    distribution = at_random(RGB((channels, 1, 1)), 4, spread=2.0)
    colours = all_vectors(3, channels)
    assert len(colours) == num
    total = distribution.log_prob(colours[:, None, :, None, None]).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(4).double())


def test_coupled_pixels_are_the_published_mixture() -> None:
    """Against the formula written out for one pixel, with x and locations in [-1, 1]."""
    torch.manual_seed(1)
    family = DiscretizedLogisticMixture((3, 1, 1), num_components=4, levels=255).double()
    raw = torch.randn(family.raw_shape).double()
    x = torch.tensor([254.0, 3.0, 255.0]).double()
    total = torch.zeros(()).double()
    parts = raw.reshape(4, 10)
    for weight, part in zip(parts[:, 0].softmax(0), parts, strict=True):
        loc, raw_scale, coupling = part[1:4], part[4:7], part[7:].tanh()
        scaled = x / 127.5 - 1
        moved = torch.stack(
            [
                loc[0],
                loc[1] + coupling[0] * scaled[0],
                loc[2] + coupling[1] * scaled[0] + coupling[2] * scaled[1],
            ]
        )
        scale = torch.nn.functional.softplus(raw_scale + math.log(math.e - 1)) + math.exp(-7)
        high = torch.special.expit((scaled + 1 / 255 - moved) / scale)
        low = torch.special.expit((scaled - 1 / 255 - moved) / scale)
        bins = torch.where(x == 255, 1 - low, high - low)
        total = total + weight * bins.prod()
    found = family(raw).log_prob(x.reshape(3, 1, 1))
    torch.testing.assert_close(found, total.log())


def test_draws_of_coupled_pixels_agree_with_their_probabilities() -> None:
    num = 20_000
    distribution = at_random(RGB((3, 1, 2)), spread=2.0)
    draws = distribution.sample((num,))
    assert draws.shape == (num, 3, 1, 2)
    assert distribution.expand((4,)).sample((5,)).shape == (5, 4, 3, 1, 2)
    colours = all_vectors(3, 3)
    first = draws[..., 0].flatten(1)
    images = torch.stack([colours, torch.zeros_like(colours)], -1).unsqueeze(-2)
    second = torch.stack([torch.zeros(27, 3).double(), colours], -1).unsqueeze(-2)
    zero = distribution.log_prob(torch.zeros(3, 1, 2).double())
    for pixel, tables in ((first, images), (draws[..., 1].flatten(1), second)):
        joint = distribution.log_prob(tables).exp()
        expected = joint / joint.sum()  # the pixels are independent
        counts = (pixel[:, None] == colours).all(-1).double().mean(0)
        distance = (counts.cumsum(0) - expected.cumsum(0)).abs().max()
        assert distance < kolmogorov_bound(num, false_alarm=1e-4)
    assert bool(zero.isfinite())


def test_coupled_pixels_survive_extreme_raw_numbers() -> None:
    family = DiscretizedLogisticMixture((3, 2, 2))
    for extreme in (-1e4, 1e4):
        raw = torch.full(family.raw_shape, extreme).requires_grad_()
        log_p = family(raw).log_prob(
            torch.tensor([0.0, 254.0, 255.0]).reshape(3, 1, 1).expand(3, 2, 2)
        )
        log_p.backward()
        assert bool(log_p.isfinite())
        assert bool(raw.grad.isfinite().all())


def test_the_memory_of_a_coupled_mixture_grows_with_components_times_pixels() -> None:
    family = DiscretizedLogisticMixture((3, 16, 16), num_components=20)
    raw = torch.randn(4, *family.raw_shape)
    sizes: list[int] = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, Tensor) else 0)
            return out

    with Largest():
        family(raw).log_prob(torch.zeros(4, 3, 16, 16))
    assert max(sizes) <= raw.numel()


def test_raw_numbers_start_levels_near_the_mean() -> None:
    mean = torch.linspace(60.0, 200.0, 12)
    for shape in ((12,), (1, 4, 3), (3, 2, 2)):
        for family in (DiscretizedLogistic(shape), DiscretizedLogisticMixture(shape)):
            raw = family.raw_from(mean.reshape(1, *shape))
            assert raw.shape == family.raw_shape
            torch.manual_seed(0)
            draws = family(raw).sample((2000,)).mean(0)
            assert (draws - mean.reshape(shape)).abs().max() < 20


def test_a_categorical_starts_at_the_frequencies_of_the_data() -> None:
    torch.manual_seed(0)
    x = torch.stack([torch.randint(0, 2, (4000,)), 3 * torch.ones(4000, dtype=torch.long)], 1)
    family = Categorical((2,), num_categories=5)
    for outside in (x.float() + 0.5, x.float() - 1, x.float() + 2):
        assert family.raw_from(outside) is None
    probs = family(family.raw_from(x.float())).base_dist.probs
    expected = torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 0, 1, 0]])
    torch.testing.assert_close(probs, expected, atol=0.02, rtol=0)
    assert bool((probs > 0).all())


# Scales -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [SharedScale, PerDimensionScale, OptimalScale])
def test_scales_start_where_they_are_told(scale) -> None:
    family = Normal((3,), scale=partial(scale, initial=0.25))
    assert family.raw_shape == (1, 3)
    found = family(torch.zeros(2, 1, 3)).base_dist.scale
    torch.testing.assert_close(found.expand(2, 3), torch.full((2, 3), 0.25))
    assert len(list(family.parameters())) == (scale is not OptimalScale)


@pytest.mark.parametrize("scale", [SharedScale, PerDimensionScale, OptimalScale, None])
def test_scales_start_at_the_deviation_of_the_data_unless_told(scale) -> None:
    torch.manual_seed(0)
    wide = torch.tensor([10.0, 40.0])
    x = wide * torch.randn(4000, 2) + 5
    average = wide.square().mean().sqrt().expand(2)
    expected = average if scale in (SharedScale, OptimalScale) else wide
    families: list[Family] = [Normal((2,), scale=scale)]
    if scale is not OptimalScale:
        families.append(Incomplete((2,), family=partial(Normal, scale=scale)))
    for family in families:
        distribution = family(family.raw_from(x))
        found = getattr(distribution.base_dist, "complete", distribution.base_dist).scale
        torch.testing.assert_close(found.expand(2), expected, rtol=0.05, atol=0)
    if scale is not None:
        told = Normal((2,), scale=partial(scale, initial=3.0))
        told.raw_from(x)
        assert told.scale().flatten()[0].item() == pytest.approx(3.0)


def test_incomplete_data_start_at_what_was_observed() -> None:
    x = torch.tensor(
        [[1.0, torch.nan, torch.nan], [torch.nan, 3.0, torch.nan], [3.0, 3.0, torch.nan]]
    )
    known = without_missing(x, unknown=0.5)
    assert known.T.tolist() == [[1.0, 3.0, 1.0], [3.0, 3.0, 3.0], [0.5, 0.5, 0.5]]
    assert mean_of(x).tolist() == [2.0, 3.0, 0.0]
    family = Incomplete((3,), family=partial(Categorical, num_categories=5))
    frequencies = family(family.raw_from(x)).base_dist.complete.probs
    assert frequencies[:, [1, 3]].argmax(-1).tolist() == [0, 1, 0]


def test_learned_scales_reach_the_root_mean_squared_error() -> None:
    torch.manual_seed(0)
    errors = torch.tensor([0.5, 2.0]) * torch.randn(2000, 2)
    for scale in (SharedScale, PerDimensionScale):
        family = Normal((2,), scale=scale)
        optimizer = torch.optim.LBFGS(family.parameters(), max_iter=50)

        def loss(family=family, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            value = -family(torch.zeros(1, 2)).log_prob(errors).mean()
            value.backward()
            return value

        optimizer.step(loss)
        best = errors.square().mean(0 if scale is PerDimensionScale else None).sqrt()
        torch.testing.assert_close(family.scale(), best, atol=1e-3, rtol=0)


def test_the_optimal_scale_follows_training_and_is_never_that_of_the_datum_scored() -> None:
    torch.manual_seed(0)
    family = Normal((4,), scale=OptimalScale)
    x = torch.randn(64, 4) * 0.1
    expected = dist.Normal(0.0, 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(family(torch.zeros(64, 1, 4)).log_prob(x), expected)
    for _ in range(150):
        family(torch.zeros(64, 1, 4)).log_prob(x)
    torch.testing.assert_close(family.scale(), x.square().mean().sqrt(), rtol=1e-3, atol=0)
    family.eval()
    kept = family.scale()
    family(torch.zeros(64, 1, 4)).log_prob(100 * x)
    assert family.scale() == kept


# Words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [0, 1, 4])
def test_bags_of_each_total_sum_to_one(total: int) -> None:
    distribution = at_random(Multinomial((3,)), 5)
    bags = all_vectors(total + 1, 3)
    bags = bags[bags.sum(-1) == total]
    torch.testing.assert_close(
        distribution.log_prob(bags[:, None]).exp().sum(0), torch.ones(5).double()
    )


def test_bags_agree_with_pyros_multinomial_and_may_differ_in_length() -> None:
    family = Multinomial((4,)).double()
    raw = torch.randn(3, *family.raw_shape).double()
    x = torch.tensor([[1.0, 0, 2, 4], [0, 0, 1, 0], [9, 9, 0, 0]]).double()
    expected = [
        dist.Multinomial(int(row.sum()), logits=logits.squeeze(0)).log_prob(row)
        for row, logits in zip(x, raw, strict=True)
    ]
    torch.testing.assert_close(family(raw).log_prob(x), torch.stack(expected))


def test_bags_are_drawn_as_long_as_the_data() -> None:
    x = torch.tensor([[3.0, 4.0], [5.0, 8.0]])
    family, chosen = Multinomial((2,)), Multinomial((2,), num_words=3)
    for f in (family, chosen):
        f.raw_from(x)
    assert family(torch.zeros(1, 2)).sample().sum() == 10
    assert chosen(torch.zeros(1, 2)).sample().sum() == 3
    torch.testing.assert_close(family(family.raw_from(x)).mean, x.mean(0))


@pytest.mark.parametrize(("length", "padding"), [(1, 0), (3, 0), (3, 2), (4, 1)])
def test_sequences_of_all_lengths_sum_to_one(length: int, padding: int) -> None:
    family = CategoricalSequence((length,), num_categories=3, padding=padding)
    distribution = at_random(family, 2)
    x = all_vectors(3, length)[:, None]
    inside = distribution.support.check(x).squeeze(-1)
    # Sequences of T < L symbols are 2**T, ended and padded in one way.
    assert int(inside.sum()) == sum(2**t for t in range(length + 1))
    distribution = family(torch.zeros(family.raw_shape).double()).expand((2,))
    for built in (distribution, at_random(family, 2)):
        total = built.log_prob(x[inside]).exp().sum(0)
        torch.testing.assert_close(total, torch.ones(2).double())
    raw = torch.zeros(2, *family.raw_shape)
    unchecked = distributions.CategoricalSequence(
        raw.movedim(-2, -1), padding=padding, validate_args=False
    )
    assert bool((unchecked.log_prob(x[~inside]) == -torch.inf).all())


def test_padding_costs_nothing_and_an_end_does() -> None:
    family = CategoricalSequence((4,), num_categories=3)
    raw = torch.randn(family.raw_shape)
    log_p = raw.log_softmax(0)
    found = family(raw).log_prob(torch.tensor([[2.0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]))
    expected = [
        log_p[2, 0] + log_p[1, 1] + log_p[0, 2],
        log_p[1].sum(),
        log_p[0, 0],
    ]
    torch.testing.assert_close(found, torch.stack(expected))


def test_draws_of_sequences_agree_with_their_probabilities() -> None:
    num = 20_000
    distribution = at_random(CategoricalSequence((3,), num_categories=3))
    x = all_vectors(3, 3)
    x = x[distribution.support.check(x)]
    draws = distribution.sample((num,))
    counts = (draws[:, None] == x).all(-1).double().mean(0)
    assert counts.sum() == 1
    expected = distribution.log_prob(x).exp()
    distance = (counts.cumsum(0) - expected.cumsum(0)).abs().max()
    assert distance < kolmogorov_bound(num, false_alarm=1e-4)


# Tables -------------------------------------------------------------------------------------------

ROWS = torch.tensor([[0.3, 1.0, 2.0, 7.0], [-2.0, 0.0, 0.0, 0.0]]).double()


def test_columns_are_the_product_of_their_families() -> None:
    family = MIXED((4,)).double()
    raw = torch.randn(5, 2, *family.raw_shape).double()
    parts = raw.split([2, 1, 3, 1], -1)
    expected = [
        dist.Normal(
            parts[0][..., 0],
            torch.nn.functional.softplus(parts[0][..., 1] + math.log(math.e - 1)) + 1e-3,
        ),
        dist.Bernoulli(logits=parts[1][..., 0]),
        dist.Categorical(logits=parts[2]),
        dist.Poisson(torch.nn.functional.softplus(parts[3][..., 0] + math.log(math.e - 1)) + 1e-5),
    ]
    total = sum(d.log_prob(ROWS[:, i]) for i, d in enumerate(expected))
    torch.testing.assert_close(family(raw).log_prob(ROWS), total)


def test_columns_start_at_their_means() -> None:
    family = MIXED((4,)).double()
    x = torch.stack([torch.tensor([3.0, 1, 0, 5]), torch.tensor([5.0, 0, 1, 7])]).repeat(500, 1)
    mean = family(family.raw_from(x.double())).mean
    torch.testing.assert_close(mean, x.double().mean(0), atol=0.02, rtol=0)


def test_columns_draw_whole_rows() -> None:
    draws = at_random(MIXED((4,)), 3).sample((200,))
    assert draws.shape == (200, 3, 4)
    assert set(draws[..., 1].unique().tolist()) == {0.0, 1.0}
    assert bool((draws[..., 3] == draws[..., 3].round()).all())


# Missing numbers ----------------------------------------------------------------------------------

COMPLETE: dict[str, tuple[Callable[[tuple[int, ...]], Family], Tensor]] = {
    "Normal": (Normal, ROWS),
    "Bernoulli": (Bernoulli, (ROWS > 0.5).double()),
    "Binomial": (partial(Binomial, total_count=7), ROWS.clamp(min=0).round()),
    "ContinuousBernoulli": (ContinuousBernoulli, ROWS.sigmoid()),
    "LogitNormal": (LogitNormal, ROWS.sigmoid()),
    "Categorical": (partial(Categorical, num_categories=8), ROWS.clamp(min=0).round()),
    "DiscretizedLogistic": (DiscretizedLogistic, ROWS.clamp(min=0).round()),
    "mixture": (DiscretizedLogisticMixture, ROWS.clamp(min=0).round()),
    "Poisson": (Automatic.of(dist.Poisson), ROWS.clamp(min=0).round()),
    "Gamma": (Automatic.of(dist.Gamma), ROWS.exp()),
    "Beta": (Automatic.of(dist.Beta), ROWS.sigmoid()),
    "Columns": (MIXED, ROWS),
}


@pytest.mark.parametrize("name", COMPLETE)
def test_missing_numbers_are_integrated_out(name: str) -> None:
    build, x = COMPLETE[name]
    family = Incomplete((4,), family=build).double()
    raw = torch.randn(3, 2, *family.raw_shape).double().requires_grad_()
    missing = torch.tensor([[True, False, False, True], [False, False, True, False]])
    expected = torch.where(missing, 0.0, family.complete(raw).base_dist.log_prob(x)).sum(-1)
    holed = torch.where(missing, torch.nan, x)
    found = family(raw).log_prob(holed)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(family(raw).log_prob(x), family.complete(raw).log_prob(x))
    gradients = [torch.autograd.grad(v.sum(), raw, retain_graph=True)[0] for v in (found, expected)]
    torch.testing.assert_close(*gradients)
    nothing = family(raw).log_prob(torch.full_like(x, torch.nan))
    assert not nothing.any()
    (gradient,) = torch.autograd.grad(nothing.sum(), raw)
    assert not gradient.any()


def test_an_encoder_sees_zeros_and_a_mask() -> None:
    x = torch.tensor([[1.0, torch.nan, 5.0], [3.0, 4.0, torch.nan], [torch.nan, 8.0, 5.0]])
    standardize = Standardize.of(x)
    torch.testing.assert_close(standardize.loc, torch.tensor([2.0, 6.0, 5.0]))
    torch.testing.assert_close(standardize.scale, torch.tensor([1.0, 2.0, 5.0]))

    class Echo(torch.nn.Module):
        def __init__(self, in_shape, out_shape) -> None:
            super().__init__()
            assert in_shape == (6,)

        def forward(self, x):
            return x

    found = Observed(Echo, (3,), (2,))(standardize(x))
    expected = torch.tensor([[-1.0, 0, 0, 1, 0, 1], [1, -1, 0, 1, 1, 0], [0, 1, 0, 0, 1, 1]])
    torch.testing.assert_close(found, expected)
    empty = torch.full((4, 3), torch.nan)
    assert not Standardize.of(empty).loc.any()


def test_images_with_missing_pixels_have_channels_of_masks() -> None:
    built: list[tuple] = []

    def network(in_shape, out_shape):
        built.append(in_shape)
        return MLP(in_shape, out_shape, hidden=(3,))

    x = torch.rand(5, 1, 4, 4)
    x[0, 0, 1, 1] = torch.nan
    vae = VAE.assemble((1, 4, 4), (2,), likelihood=Incomplete, network=network, data=x)
    assert built == [(2,), (2, 4, 4)]
    assert bool(vae.posterior(x).mean.isfinite().all())


def test_what_was_missing_is_imputed_by_the_mean_given_what_was_seen() -> None:
    """The likelihood's mean is complete: with z fixed, a missing number gets its own mean."""
    likelihood = Conditional(Incomplete((3,)), context_shape=(2,), network=MLP)
    mean = likelihood(torch.randn(4, 2)).mean
    assert mean.shape == (4, 3)
    assert bool(mean.isfinite().all())


# Automatic ----------------------------------------------------------------------------------------

STARTS = ["Normal", "Laplace", "StudentT", "Logistic", "Cauchy", "Poisson", "NegativeBinomial"]
STARTS += ["ZeroInflatedPoisson", "Geometric", "ZeroInflatedNegativeBinomial"]


@pytest.mark.parametrize("name", STARTS)
def test_automatic_families_start_at_the_mean(name: str) -> None:
    constants = {"total_count": 4.0} if name.endswith("NegativeBinomial") else {}
    if name == "StudentT":
        constants = {"df": 5.0}
    family = Automatic((3,), name, **constants)
    mean = torch.tensor([0.3, 2.0, 40.0])
    distribution = family(family.raw_from(mean[None]))
    found = distribution.base_dist.loc if name == "Cauchy" else distribution.mean
    torch.testing.assert_close(found, mean, rtol=1e-3, atol=1e-3)
    assert bool(family.raw_from(torch.zeros(1, 3)).isfinite().all())


def test_automatic_bits_start_at_the_mean() -> None:
    mean = torch.tensor([0.2, 0.9])
    bits, counts = Automatic((2,), "Bernoulli"), Automatic((2,), "Binomial", total_count=5)
    torch.testing.assert_close(bits(bits.raw_from(mean[None])).mean, mean)
    torch.testing.assert_close(counts(counts.raw_from(5 * mean[None])).mean, 5 * mean)
    assert Automatic((2,), "Dirichlet").raw_from(mean[None]) is None


def test_a_class_of_families_is_automatic_with_its_arguments() -> None:
    families = Automatic.of(dist.NegativeBinomial)
    assert families is Automatic.of(dist.NegativeBinomial)
    assert families.__name__ == "NegativeBinomial"
    x, raw = torch.tensor([1.0, 4.0]), torch.randn(1, 2)
    expected = Automatic((2,), "NegativeBinomial", total_count=5.0)(raw).log_prob(x)
    for family in (
        families((2,), total_count=5.0),
        Automatic.of(dist.NegativeBinomial, total_count=5.0)((2,)),
    ):
        assert family.raw_shape == (1, 2)
        torch.testing.assert_close(family(raw).log_prob(x), expected)
    assert repr(families((2,), total_count=5.0)) == (
        "NegativeBinomial(event_shape=(2,), total_count=5.0)"
    )


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: DiscretizedLogistic((2,), levels=0), "levels=0"),
        (lambda: DiscretizedLogisticMixture((2,), num_components=0), "num_components=0"),
        (lambda: Categorical((2,), num_categories=1), "num_categories=1"),
        (lambda: CategoricalSequence((2, 3)), r"event_shape=\(2, 3\)"),
        (lambda: CategoricalSequence((2,), num_categories=3, padding=3), "padding=3"),
        (lambda: Multinomial((2, 3)), r"event_shape=\(2, 3\)"),
        (lambda: Multinomial((2,), num_words=0), "num_words=0"),
        (lambda: Normal((2,), scale=partial(SharedScale, initial=0.0)), "initial=0.0"),
        (lambda: Normal((2,), scale=partial(OptimalScale, rate=0.0)), "rate=0.0"),
        (lambda: LogitNormal((2,), scale=OptimalScale), "OptimalScale"),
        (lambda: LogitNormal((2,), min_scale=0.0), "min_scale=0.0"),
        (lambda: Columns((3,), columns=[Normal]), "1 columns were given"),
        (lambda: Columns((1,), columns=[Multinomial]), r"columns\[0\] is Multinomial"),
        (lambda: Incomplete((2,), family=Multinomial), "family is Multinomial"),
        (lambda: Incomplete((3, 2, 2), family=DiscretizedLogisticMixture), "depend on each other"),
        (
            lambda: Incomplete((2,), family=partial(Normal, scale=OptimalScale)),
            "OptimalScale.*SharedScale",
        ),
        (lambda: Automatic((2,), "Laplac"), "did you mean Laplace"),
    ],
)
def test_bad_arguments_say_which(build, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_posterior_on_the_interval_has_its_divergence_in_closed_form() -> None:
    families = {"prior": ContinuousBernoulli, "posterior": ContinuousBernoulli}
    vae = VAE.assemble((4,), (2,), network=partial(MLP, hidden=(3,)), **families)
    kl = torch.distributions.kl_divergence(vae.posterior(torch.rand(5, 4)), vae.prior().expand([5]))
    assert bool((kl > 0).all())
    assert DiagonalNormal((2,)).raw_shape == (2, 2)
