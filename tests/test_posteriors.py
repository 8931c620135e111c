"""Posteriors are the densities they say, reach exact posteriors, and refuse what is no bound."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import Gaussian
from pyro.infer import Trace_ELBO
from quick import some
from recorded import both
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_vae import SVI, evaluation
from pyro_vae.components import (
    MLP,
    Conditional,
    DiagonalNormal,
    Family,
    FullNormal,
    Householder,
    LowRankNormal,
    MixtureOfNormals,
    Normal,
    PerDatum,
    Planar,
    Point,
    Radial,
    StandardNormal,
    Sylvester,
)
from pyro_vae.distributions import below_diagonal
from pyro_vae.inference import ELBO, IWAE, RLOO, RWS, Probe, Program, site_terms
from pyro_vae.inference.detached import detached
from pyro_vae.models import VAE

POSTERIORS = {
    "LowRankNormal": LowRankNormal,
    "FullNormal": FullNormal,
    "Normal, fixed scale": partial(Normal, scale=0.9),
    "Planar": partial(Planar, num_flows=2),
    "Radial": partial(Radial, num_flows=2),
    "Householder": Householder,
    "Sylvester": partial(Sylvester, num_flows=2),
    "Sylvester, orthogonal": partial(Sylvester, num_flows=2, rank=1, num_reflections=1),
    "Sylvester, triangular": partial(Sylvester, num_flows=2, num_reflections=0),
}
FLOWS = {name: build for name, build in POSTERIORS.items() if "Normal" not in name}
posteriors = pytest.mark.parametrize("build", POSTERIORS.values(), ids=POSTERIORS.keys())
flows = pytest.mark.parametrize("build", FLOWS.values(), ids=FLOWS.keys())


def raw_of(family: Family, *batch: int, spread: float = 0.7) -> Tensor:
    return spread * torch.randn(*batch, *family.raw_shape).to(torch.float64)


def small_vae(build, **parts) -> VAE:
    return VAE.assemble((4,), (2,), posterior=build, network=partial(MLP, hidden=(5,)), **parts)


def binary(num_rows: int = 6) -> Tensor:
    return torch.randint(0, 2, (num_rows, 4), generator=torch.Generator().manual_seed(7)).float()


# ------------------------------------------------------------------------------------ densities


@posteriors
@pytest.mark.parametrize("size", [1, 3])
def test_weights_of_a_normalised_density_have_mean_one(build, size: int) -> None:
    # Samples, density and Jacobian together: E_q[p / q] = 1. A chance of 1e-6 each.
    family = build((size,)).double()
    q = family(raw_of(family, spread=0.4))
    with torch.no_grad():
        z = q.sample((20_000,))
        target = dist.Normal(z.mean(0), 0.5 * z.std(0)).to_event(1)
        w = (target.log_prob(z) - q.log_prob(z)).exp()
    assert abs(w.mean() - 1) < 4.9 * w.std() / math.sqrt(len(w))
    assert w.std() < 5


@pytest.mark.parametrize("build", [LowRankNormal, FullNormal, Planar, Radial, Householder])
def test_density_in_two_dimensions_integrates_to_one(build) -> None:
    family = build((2,)).double()
    q = family(raw_of(family, spread=0.3))
    with torch.no_grad():
        z = q.sample((1000,))
        center, reach = z.mean(0), 9 * z.std(0).max()
        nodes = torch.linspace(-1, 1, 201).double() * reach
        grid = torch.cartesian_prod(nodes, nodes) + center
        mass = q.log_prob(grid).exp().sum() * (nodes[1] - nodes[0]).square()
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=1e-4)


@posteriors
def test_particles_and_expansion_leave_densities_as_they_are(build) -> None:
    family = build((3,)).double()
    raw = raw_of(family, 2)
    q = family(raw).expand([5, 2])
    z = q.rsample()
    log_q = q.log_prob(z)
    assert log_q.shape == (5, 2)
    if isinstance(family, Sylvester):
        return
    each = torch.stack([family(raw[1]).log_prob(z[particle, 1]) for particle in range(5)])
    torch.testing.assert_close(log_q[:, 1], each)


@flows
def test_slopes_are_those_of_the_jacobian_and_inverses_invert(build) -> None:
    family = build((4,)).double()
    for flow in family(raw_of(family, spread=1.0)).transforms:
        x = torch.randn(4).double()
        jacobian = torch.autograd.functional.jacobian(flow, x)
        y = flow(x)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(flow.log_abs_det_jacobian(x, y), expected)
        if "Sylvester" in type(flow).__name__:
            continue
        torch.testing.assert_close(flow.inv(y.clone()), x)
        inverse = torch.autograd.functional.jacobian(lambda y, f=flow: f.inv(y.clone()), y)
        torch.testing.assert_close(inverse @ jacobian, torch.eye(4).double())


@pytest.mark.parametrize("build", [Planar, Radial])
def test_flows_stay_invertible_in_float32(build) -> None:
    family = build((3,))
    raw = 30 * torch.randn(200, *family.raw_shape)
    for flow in family(raw).transforms:
        x = torch.randn(200, 3)
        y = flow(x)
        assert bool(flow.log_abs_det_jacobian(x, y).isfinite().all())
        again = flow(flow.inv(y.clone()))
        assert (again - y).norm(dim=-1).max() < 1e-4 * (1 + y.norm(dim=-1).max())


@flows
def test_raw_zeros_leave_the_normal_up_to_signs(build) -> None:
    family = build((3,)).double()
    q = family(torch.zeros(family.raw_shape).double())
    z = q.rsample()
    torch.testing.assert_close(q.log_prob(z), q.base_dist.log_prob(z), rtol=0, atol=1e-4)


def test_equal_reflections_are_no_reflections() -> None:
    family = Householder((3,), num_flows=2)
    raw = torch.randn(family.raw_shape).double()
    # The second starts from another axis, which is taken out.
    raw[9:] = raw[6:9] + torch.tensor([1.0, -1.0, 0.0])
    z = torch.randn(5, 3).double()
    diagonal = DiagonalNormal((3,))(raw[:6].reshape(2, 3))
    torch.testing.assert_close(family.double()(raw).log_prob(z), diagonal.log_prob(z))


def test_a_sum_of_as_many_directions_as_numbers_is_full() -> None:
    low, full = LowRankNormal((3,), rank=3), FullNormal((3,))
    q = low(raw_of(low))
    raw = raw_of_normal(q.mean, torch.linalg.cholesky(q.covariance_matrix))
    z = torch.randn(6, 3).double()
    torch.testing.assert_close(full(raw).log_prob(z), q.log_prob(z))


def test_numbers_below_a_diagonal_stand_there_once() -> None:
    for size in range(1, 7):
        numbers = torch.arange(1.0, size * (size - 1) // 2 + 1)
        square = below_diagonal(numbers.expand(2, -1), size)[0]
        assert torch.equal(square, square.tril(-1))
        assert square[square != 0].sort().values.equal(numbers)


@pytest.mark.parametrize("build", [LowRankNormal, FullNormal])
@pytest.mark.parametrize("turned", [False, True])
def test_closed_kl_is_that_of_samples(build, turned: bool) -> None:
    family, diagonal = build((3,)), DiagonalNormal((3,))
    pair = family(raw_of(family, spread=0.4)), diagonal(raw_of(diagonal, spread=0.4))
    q, p = reversed(pair) if turned else pair
    with torch.no_grad():
        z = q.sample((40_000,))
        sampled = q.log_prob(z) - p.log_prob(z)
    gap = kl_divergence(q, p) - sampled.mean()
    assert abs(gap) < 4.5 * sampled.std() / math.sqrt(len(sampled))


@posteriors
def test_events_of_any_shape(build) -> None:
    family = build((2, 2))
    q = family(0.1 * torch.randn(3, *family.raw_shape))
    z = q.rsample()
    assert z.shape == (3, 2, 2)
    assert q.log_prob(z).shape == (3,)


# --------------------------------------------------------------------------------- in programs


def raw_of_normal(loc: Tensor, scale_tril: Tensor) -> Tensor:
    """Return the raw numbers of a FullNormal: the links backwards."""
    size = len(loc)
    scale = scale_tril.norm(dim=-1)
    raw_scale = (scale - 1e-5).expm1().log() - math.log(math.e - 1)
    c = scale_tril / scale_tril.diagonal().unsqueeze(-1)
    index = below_diagonal(torch.arange(1.0, size * (size - 1) // 2 + 1), size)
    below = torch.stack([c[index == n + 1][0] for n in range(size * (size - 1) // 2)])
    return torch.cat([loc, raw_scale, 10 * torch.atanh(below / 10)])


class Exact(nn.Module):
    """The raw numbers of the posterior of z ~ N(0, I), x ~ N(zW, 0.5^2 I)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        precision = torch.eye(len(weight)).double() + weight @ weight.T / 0.25
        self.covariance = torch.linalg.inv(precision)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        loc = x @ self.weight.T @ self.covariance / 0.25
        scale_tril = torch.linalg.cholesky(self.covariance)
        return torch.stack([raw_of_normal(row, scale_tril) for row in loc])


def test_a_full_normal_reaches_the_exact_posterior() -> None:
    weight = torch.randn(3, 5).double()

    class Decoder(nn.Module):
        def forward(self, z: Tensor):
            return dist.Normal(z @ weight, 0.5).to_event(1)

    posterior = Conditional(
        FullNormal((3,)), context_shape=(5,), network=lambda *shapes: Exact(weight)
    )
    vae = VAE(prior=StandardNormal((3,)), likelihood=Decoder(), posterior=posterior).double()
    x = torch.randn(4, 5).double()
    covariance = weight.T @ weight + 0.25 * torch.eye(5).double()
    log_p = dist.MultivariateNormal(torch.zeros(5).double(), covariance).log_prob(x)
    program = Program(vae.model, vae.guide)
    layout = Probe(program, x).layout
    with program.evaluating(seed=1):
        terms = site_terms(program, layout, x, num_particles=3)
    torch.testing.assert_close(terms.log_w, log_p.expand(3, 4), rtol=0, atol=1e-8)
    assert layout.vectorizes


@pytest.mark.parametrize("name", some(POSTERIORS, "FullNormal"))
def test_recorded_steps_are_eager_steps(name) -> None:
    build = POSTERIORS[name]

    def pair():
        vae = small_vae(build)
        return type("Pair", (), {"model": vae.model, "guide": vae.guide, "args": (binary(),)})

    found = both(pair, Trace_ELBO, sizes=(6, 6))
    assert any(found.replayed)


@posteriors
def test_many_particles_are_drawn_at_once_and_scored_rightly(build) -> None:
    vae = small_vae(build).double()
    x = binary().double()
    log_p = evaluation.log_likelihood(vae.model, vae.guide, x, num_samples=4000)
    wide = small_vae(partial(Normal, scale=1.0), prior=StandardNormal).double()
    wide.likelihood = vae.likelihood
    reference = evaluation.log_likelihood(wide.model, wide.guide, x, num_samples=4000)
    assert Probe(Program(vae.model, vae.guide), x).layout.vectorizes
    torch.testing.assert_close(log_p, reference, rtol=0, atol=0.2)


def test_a_mixture_is_trained_by_the_score_function_alone() -> None:
    vae = small_vae(partial(MixtureOfNormals, num_components=2))
    optim = partial(torch.optim.Adam, lr=0.01)
    with pytest.raises(ValueError, match=r"carry no gradients.*VIMCO"):
        SVI(vae.model, vae.guide, optim, IWAE(2)).step(binary())
    before = vae.posterior.offset.detach().clone()
    SVI(vae.model, vae.guide, optim, RLOO(2)).step(binary())
    assert bool((vae.posterior.offset != before).all())


# ---------------------------------------------------------------------------------- no inverse


def test_a_flow_without_an_inverse_scores_no_other_value() -> None:
    family = Sylvester((2,))
    q = family(raw_of(family, 3).float())
    z = q.rsample()
    first = q.log_prob(z)
    assert torch.equal(q.log_prob(z), first)
    later = q.rsample()
    for foreign in (z, later.clone(), torch.zeros(3, 2)):
        with pytest.raises(ValueError, match="Sylvester flow has no inverse") as caught:
            q.log_prob(foreign)
        assert "\n" not in str(caught.value)
    assert q.log_prob(later).shape == (3,)


@flows
def test_a_sample_without_gradients_gives_no_wrong_ones(build) -> None:
    family = build((2,)).double()
    raw = raw_of(family).requires_grad_()
    q = family(raw)
    z = q.sample()
    if isinstance(family, Sylvester):
        with pytest.raises(ValueError, match="no inverse"):
            q.log_prob(z)
        return
    (found,) = torch.autograd.grad(q.log_prob(z), raw)
    (expected,) = torch.autograd.grad(family(raw).log_prob(z.clone()), raw)
    torch.testing.assert_close(found, expected)
    assert bool((found != 0).any())


@flows
def test_flows_can_be_detached(build) -> None:
    # The path gradient is the whole one less the score, whose expectation is zero.
    family = build((2,)).double()
    raw = raw_of(family, spread=0.3).expand(4000, -1).clone().requires_grad_()
    whole, path = ([], [])
    for kept, change in ((whole, lambda q: q), (path, detached)):
        torch.manual_seed(0)
        q = change(family(raw))
        z = q.rsample()
        kept.append(torch.autograd.grad(q.log_prob(z).sum(), raw)[0])
    score = whole[0] - path[0]
    error = score.std(0) / math.sqrt(len(score))
    assert bool((score.mean(0).abs() < 5 * error + 1e-9).all())
    assert bool((score != 0).any())


def test_a_prior_without_an_inverse_is_refused_with_the_reason() -> None:
    vae = small_vae(DiagonalNormal, prior=Sylvester)
    with pytest.raises(ValueError, match="no inverse: it is no prior"):
        evaluation.elbo(vae.model, vae.guide, binary())


def test_an_objective_that_dreams_is_refused_with_the_reason() -> None:
    vae = small_vae(Sylvester)
    with pytest.raises(ValueError, match="a flow without an inverse"):
        SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.01), RWS(insomnia=0.0)).step(
            binary()
        )


# ---------------------------------------------------------------------------------- a point


def test_a_point_is_trained_to_the_maximum_a_posteriori() -> None:
    bed = Gaussian()
    loc = nn.Parameter(torch.zeros(2, 1).double())
    family = Point((1,))

    def guide(x: Tensor) -> None:
        pyro.module("guide", nn.ParameterList([loc]))
        with pyro.plate("data", len(x)):
            pyro.sample("z", family(loc.unsqueeze(-2)))

    svi = SVI(bed.model, guide, partial(torch.optim.Adam, lr=0.1), Trace_ELBO())
    for parameter in bed.parameters():
        parameter.requires_grad_(False)
    for _ in range(200):
        svi.step(bed.x)
    precision = 1 + (bed.w / bed.noise_scale).square().sum()
    mode = (bed.x - bed.b) @ bed.w.T / bed.noise_scale**2 / precision
    torch.testing.assert_close(loc.detach(), mode, rtol=0, atol=1e-3)


def test_the_number_of_a_point_is_not_reported_as_a_bound() -> None:
    vae = small_vae(Point)
    with pytest.raises(ValueError, match="'z' is a point, which has no density") as caught:
        evaluation.elbo(vae.model, vae.guide, binary())
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="is a point"):
        SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=0.01), ELBO()).step(binary())


# ---------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: LowRankNormal((3,), rank=0), "rank=0"),
        (lambda: Planar((3,), num_flows=0), "num_flows=0"),
        (lambda: Sylvester((3,), rank=4), "rank=4: Q has from 1 to 3"),
        (lambda: Sylvester((3,), num_reflections=-1), "num_reflections=-1"),
        (lambda: PerDatum(DiagonalNormal((2,)), num_data=0), "num_data=0"),
        (lambda: PerDatum(StandardNormal((2,)), num_data=3), "StandardNormal.*no raw numbers"),
        (lambda: PerDatum(DiagonalNormal((2,)), num_data=3)(torch.tensor([3])), "rows 0 to 2"),
        (lambda: FullNormal((2,))(), "raw parameters"),
        (lambda: Radial((2,))(), "raw parameters"),
    ],
)
def test_bad_arguments_say_which(build, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        build()
    assert "\n" not in str(caught.value)
