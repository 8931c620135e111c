"""Families are normalised densities, their samples agree with them, and gradients arrive."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import (
    CONSTANTS,
    FAMILIES,
    Member,
    all_distributions,
    density_on_a_grid,
    kolmogorov_bound,
    total_mass,
)
from pyro.infer import Trace_ELBO

from pyro_vae.components import (
    MLP,
    Automatic,
    Bernoulli,
    Binomial,
    Conditional,
    DiagonalNormal,
    Family,
    Normal,
    StandardNormal,
    learned,
)
from pyro_vae.models import VAE

members = pytest.mark.parametrize("member", FAMILIES.values(), ids=FAMILIES.keys())


def at_random(family: Family, *batch: int, spread: float = 1.0):
    """Return the family's distribution at random raw numbers, in float64."""
    if 0 in family.raw_shape:
        return family.double()().expand(batch)
    return family.double()(spread * torch.randn(*batch, *family.raw_shape).double())


@members
def test_density_integrates_to_one(member: Member) -> None:
    total = total_mass(at_random(member.build((1,)), 3, spread=0.3), member)
    assert total.sub(1).abs().max() < 1e-5


@members
def test_shapes(member: Member) -> None:
    for event_shape, batch in itertools.product([(4,), (2, 3, 2)], [(), (3,), (2, 3)]):
        family = member.build(event_shape)
        distribution = at_random(family, *batch)
        value = distribution.sample()
        assert family.event_shape == distribution.event_shape == event_shape
        assert distribution.batch_shape == batch
        assert value.shape == (*batch, *event_shape)
        assert distribution.log_prob(value).shape == batch


@members
def test_samples_agree_with_the_density(member: Member) -> None:
    # Each member fails by chance with probability 1e-4, were the seed not fixed.
    num = 4000
    distribution = at_random(member.build((1,)), spread=0.5)
    draws = distribution.sample((num,)).squeeze(-1)
    if member.support is not None:
        nodes = torch.tensor(member.support).double()
        expected = distribution.log_prob(nodes[:, None]).exp().cumsum(0)
        empirical = (draws[:, None] <= nodes).double().mean(0)
    else:
        nodes, density, to_support = density_on_a_grid(distribution, member)
        expected = torch.cumulative_trapezoid(density, nodes)
        points = to_support.inv(draws).sort().values
        empirical = torch.searchsorted(points, nodes[1:], right=True) / num
    assert (empirical - expected).abs().max() < kolmogorov_bound(num, false_alarm=1e-4)


@members
def test_gradients_reach_every_raw_number(member: Member) -> None:
    family = member.build((3,)).double()
    if 0 in family.raw_shape:
        return
    raw = torch.randn(2, *family.raw_shape).double().requires_grad_()
    distribution = family(raw)
    distribution.log_prob(distribution.sample()).sum().backward()
    assert raw.grad is not None
    assert bool(raw.grad.isfinite().all())
    assert bool((raw.grad != 0).all())


@pytest.mark.parametrize(
    ("family", "mean"),
    [
        (Bernoulli((3,)), [0.1, 0.5, 0.8]),
        (Binomial((3,), total_count=9), [0.5, 4.0, 8.5]),
        (Normal((3,)), [-3.0, 0.0, 7.0]),
        (Normal((3,), scale=2.0), [-3.0, 0.0, 7.0]),
    ],
)
def test_raw_numbers_start_at_the_mean(family: Family, mean: list[float]) -> None:
    expected = torch.tensor(mean)
    raw = family.raw_from(expected[None])
    assert raw is not None
    assert raw.shape == family.raw_shape
    torch.testing.assert_close(family(raw).mean, expected)


@pytest.mark.parametrize("family", [Bernoulli((2,)), Binomial((2,))])
def test_raw_numbers_at_the_edge_are_finite(family: Family) -> None:
    raw = family.raw_from(torch.tensor([[0.0, 1e3]]))
    assert raw is not None
    assert bool(raw.isfinite().all())


def test_raw_zeros_are_the_standard_normal() -> None:
    distribution = DiagonalNormal((3,))(torch.zeros(2, 3))
    kl = torch.distributions.kl_divergence(distribution, StandardNormal((3,))())
    assert 0 <= kl < 1e-8


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Bernoulli(()), r"event_shape=\(\)"),
        (lambda: DiagonalNormal((0,)), r"event_shape=\(0,\)"),
        (lambda: DiagonalNormal((-3,)), r"event_shape=\(-3,\)"),
        (lambda: Bernoulli((2.5,)), r"event_shape=\(2.5,\)"),  # type: ignore[arg-type]
        (lambda: Binomial((2,), total_count=0), "total_count=0"),
        (lambda: Normal((2,), scale=0.0), "scale=0.0"),
        (lambda: Normal((2,), scale=math.nan), "scale=nan"),
        (lambda: Normal((2,), min_scale=-1.0), "min_scale=-1.0"),
        (lambda: Conditional(Bernoulli((2,)), context_shape=(3,)), "context_shape=.*network=None"),
        (lambda: Conditional(Bernoulli((2,)), context_shape=(0,), network=MLP), "context_shape"),
        (lambda: Conditional(Bernoulli((2,)), context_shape=(3,), network=MLP)(), "context"),
        (lambda: Bernoulli((2,))(), "raw parameters"),
        (lambda: Automatic((2,), "Gauss"), "'Gauss'"),
        (lambda: Automatic((2,), "Normal", sclae=1.0), "'sclae'.*scale"),
        (lambda: Automatic((2,), "Uniform"), "Uniform"),
        (lambda: Automatic((2,), "SoftAsymmetricLaplace"), "expanded over the data of a plate"),
        (lambda: Automatic((2,), "Pareto"), "support moves"),
        (lambda: Automatic((2,), "Binomial"), "total_count"),
        (lambda: Automatic((2,), "Categorical"), "num_categories"),
        (lambda: Automatic((2,), "Delta"), "'v'"),
    ],
)
def test_bad_arguments_say_which(build, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        build()
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- Automatic


def built(name: str, event_shape: tuple[int, ...], **constants) -> Automatic | str:
    """Build a family, or return what the error said; only a ValueError is allowed."""
    try:
        return Automatic(event_shape, name, num_categories=4, **constants)
    except ValueError as error:
        return str(error)


def works(name: str, **constants) -> bool:
    """Say whether a family of this name was built; then it can be sampled and scored."""
    for event_shape in [(3,), (3, 3)]:
        family = built(name, event_shape, **constants)
        if isinstance(family, str):
            assert name in family
            assert "\n" not in family
            continue
        distribution = family(0.3 * torch.randn(2, *family.raw_shape))
        value = distribution.sample()
        log_density = distribution.log_prob(value)
        assert value.shape == (2, *event_shape)
        assert log_density.shape == (2,)
        assert bool(log_density.isfinite().all())
        return True
    return False


@pytest.mark.filterwarnings("ignore")
def test_most_of_pyros_distributions_are_families() -> None:
    alone = {name for name in all_distributions() if works(name)}
    helped = {name for name, constants in CONSTANTS.items() if works(name, **constants)}
    assert len(alone) >= 43, sorted(alone)
    assert helped == set(CONSTANTS), set(CONSTANTS) - helped
    assert not helped & alone


@pytest.mark.parametrize(
    ("name", "event_shape", "raw_shape"),
    [
        ("Normal", (2, 3), (2, 2, 3)),
        ("Bernoulli", (1, 5, 4), (1, 1, 5, 4)),
        ("Categorical", (2, 3), (4, 2, 3)),
        ("OneHotCategorical", (3,), (1, 3)),
        ("Dirichlet", (3,), (1, 3)),
        ("MultivariateNormal", (3,), (4, 3)),
        ("StudentT", (2,), (3, 2)),
    ],
)
def test_automatic_raw_shapes(name: str, event_shape, raw_shape) -> None:
    family = Automatic(event_shape, name, num_categories=4)
    assert family.raw_shape == raw_shape
    assert family(torch.zeros(5, *raw_shape)).event_shape == event_shape


def test_automatic_normal_is_the_diagonal_normal() -> None:
    raw = torch.randn(4, 2, 3)
    expected, found = DiagonalNormal((3,))(raw), Automatic((3,), "Normal")(raw)
    z = torch.randn(4, 3)
    torch.testing.assert_close(found.log_prob(z), expected.log_prob(z))


def test_building_a_family_draws_nothing_from_the_generator() -> None:
    state = torch.get_rng_state()
    Automatic((3,), "StudentT")
    assert torch.equal(state, torch.get_rng_state())


# ---------------------------------------------------------------------------- Conditional


@pytest.mark.parametrize("likelihood", [Bernoulli, Binomial, Normal, partial(Normal, scale=1.0)])
@pytest.mark.parametrize("prior", [StandardNormal, DiagonalNormal])
@pytest.mark.parametrize("num_particles", [1, 2])
def test_every_parameter_gets_a_gradient(likelihood, prior, num_particles: int) -> None:
    network = partial(MLP, hidden=(6,))
    vae = VAE.assemble((4,), (2,), prior=prior, likelihood=likelihood, network=network)
    elbo = Trace_ELBO(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)
    x = torch.randint(0, 2, (8, 4)).float()
    elbo.differentiable_loss(vae.model, vae.guide, x).backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool((parameter.grad != 0).any()), name


def test_start_at_sets_the_mean_for_every_context_of_a_zero_network() -> None:
    likelihood = Conditional(Bernoulli((3,)), context_shape=(2,), network=MLP)
    for parameter in likelihood.network.parameters():
        torch.nn.init.zeros_(parameter)
    mean = torch.tensor([0.2, 0.5, 0.9])
    likelihood.start_at(mean)
    torch.testing.assert_close(likelihood(torch.randn(5, 2)).mean, mean.expand(5, 3))


def test_start_at_leaves_families_alone_that_know_no_offset() -> None:
    conditional = Conditional(Automatic((3,), "Gamma"))
    conditional.start_at(torch.ones(3))
    assert not conditional.offset.any()


def test_learned_prior_has_parameters_only_where_the_family_has() -> None:
    assert isinstance(learned(StandardNormal((2,))), StandardNormal)
    prior = learned(DiagonalNormal((2,)))
    assert [p.shape for p in prior.parameters()] == [(2, 2)]


# ---------------------------------------------------------------------------- VAE


def test_assembled_vae_starts_at_the_marginals_of_the_data() -> None:
    x = torch.bernoulli(torch.linspace(0.05, 0.95, 30).expand(200, 30))
    vae = VAE.assemble((30,), (3,), data=x, network=partial(MLP, hidden=(16,)))
    mean = x.mean(0).clamp(1e-3, 1 - 1e-3)
    entropy = dist.Bernoulli(probs=mean).to_event(1).log_prob(x).mean()
    elbo = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    found = -elbo.loss(vae.model, vae.guide, x) / len(x)
    assert entropy - 3.0 < found < entropy + 0.1
    fresh = VAE.assemble((30,), (3,), network=partial(MLP, hidden=(16,)))
    assert -elbo.loss(fresh.model, fresh.guide, x) / len(x) < entropy - 3.0


def test_vae_shows_its_parts_and_samples_without_data() -> None:
    vae = VAE.assemble((1, 5, 5), (3,), prior=DiagonalNormal)
    for part in ("prior", "likelihood", "posterior", "Bernoulli", "DiagonalNormal"):
        assert part in repr(vae)
    with pyro.plate("data", 4):
        x = vae.likelihood(vae.prior().expand([4]).sample()).sample()
    assert x.shape == (4, 1, 5, 5)


class _NearThePosterior(DiagonalNormal):
    """A user's prior around what q(z | x) says of one datum, with a mean of the data beside it."""

    def start_from_posterior(self, posterior, data):
        self.met = (posterior, None if data is None else data.mean(0))

    def forward(self, raw):
        posterior, mean = self.met
        return posterior(mean)


class _Shifted(Bernoulli):
    """A user's likelihood that starts where the data say."""

    shift = None

    def raw_from(self, data):
        self.shift = data.mean(0)


def test_a_users_prior_meets_the_posterior_and_the_data() -> None:
    x = torch.rand(8, 4)
    network = partial(MLP, hidden=(6,))
    parts = {"prior": _NearThePosterior, "likelihood": _Shifted, "network": network}
    vae = VAE.assemble((4,), (2,), data=x, **parts)
    torch.testing.assert_close(vae.likelihood.family.shift, x.mean(0))
    z = torch.randn(5, 2)
    expected = vae.posterior(x.mean(0)).log_prob(z)
    torch.testing.assert_close(vae.prior().log_prob(z), expected)
    registered = [name for name, _ in vae.named_parameters(remove_duplicate=False)]
    assert not [name for name in registered if name.startswith("prior.family.met")]
    without = VAE.assemble((4,), (2,), **parts)
    assert without.prior.family.met == (without.posterior, None)
    assert without.likelihood.family.shift is None
