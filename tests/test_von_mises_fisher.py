"""The von Mises-Fisher posterior, against scipy's Bessel functions, quadrature and closed forms."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from laws import kolmogorov_bound
from pyro.infer import TraceMeanField_ELBO
from recorded import both
from scipy import integrate, special
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae import evaluation
from pyro_vae.components import MLP, StandardNormal, UniformSphere, VonMisesFisher
from pyro_vae.distributions.spheres import _bessel, _Curve, _LogHeight, _MeanCosine
from pyro_vae.models import VAE

SIZES = (2, 3, 4, 10, 40, 301)
KAPPAS = (1e-3, 0.5, 7.0, 120.0, 1e4)
cases = pytest.mark.parametrize("size", SIZES)


def at(size: int, kappa: float, *batch: int):
    """Return the distribution in a random direction, of a given concentration."""
    family = VonMisesFisher((size,)).double()
    raw = torch.randn(*batch, size + 1).double()
    raw[..., -1] = kappa + math.log(-math.expm1(-kappa)) - math.log(math.e - 1)
    return family(raw)


def angle_weight(angle: float, size: int, kappa: float) -> float:
    return math.exp(kappa * (math.cos(angle) - 1)) * math.sin(angle) ** (size - 2)


def mass_of_angles(end: float, size: int, kappa: float) -> float:
    """Integrate the density of the angle to loc, up to a constant, piece by piece."""
    width = math.sqrt((size - 1) / (size + kappa))
    ends = [*(width * k for k in range(1, 14) if width * k < end), end]
    pieces = zip([0.0, *ends[:-1]], ends, strict=True)
    arguments = {"args": (size, kappa), "epsabs": 0.0, "epsrel": 1e-12}
    return sum(integrate.quad(angle_weight, a, b, **arguments)[0] for a, b in pieces)


@cases
@pytest.mark.parametrize("kappa", [1e-3, 0.5, 7.0, 120.0, 1e4, 1e6])
def test_bessel_functions_are_scipys(size: int, kappa: float) -> None:
    order = size / 2 - 1
    log_height, cosine = _bessel(order, torch.tensor(kappa, dtype=torch.float64))
    scaled = special.ive(order, kappa)
    if scaled > 1e-280:
        expected = order * math.log(kappa) - math.log(scaled)
    else:  # kappa is small: the power series, by its first term
        ratios = [kappa**2 / 4 / (k * (order + k)) for k in range(1, 12)]
        series = math.fsum(np.cumprod([1.0, *ratios]))
        expected = order * math.log(2) + math.lgamma(order + 1) - math.log(series) + kappa
    assert float(log_height) == pytest.approx(expected, rel=1e-11, abs=1e-11)
    if special.ive(order + 1, kappa) > 1e-280:
        assert float(cosine) == pytest.approx(special.ive(order + 1, kappa) / scaled, rel=1e-11)


@cases
@pytest.mark.parametrize("kappa", KAPPAS)
def test_density_integrates_to_one(size: int, kappa: float) -> None:
    q = at(size, kappa)
    log_area = math.log(2) + (size - 1) / 2 * math.log(math.pi) - math.lgamma((size - 1) / 2)
    log_mass = float(q.log_prob(q.loc)) + log_area
    mass = math.log(mass_of_angles(math.pi, size, float(q.concentration)))
    assert log_mass + mass == pytest.approx(0.0, abs=1e-8)
    other = -q.loc
    gap = q.log_prob(q.loc) - q.log_prob(other)
    torch.testing.assert_close(gap, 2 * q.concentration)


@pytest.mark.parametrize("size", [2, 3, 10, 301])
@pytest.mark.parametrize("kappa", [0.5, 40.0, 5e3])
def test_the_cosine_inverts_its_distribution_function(size: int, kappa: float) -> None:
    uniform = torch.tensor([[1e-4, 0.2, 0.5, 0.8, 0.999]], dtype=torch.float64)
    gap, slope = _Curve(torch.tensor([kappa], dtype=torch.float64), size - 1).draw(uniform)
    angles = 2 * (gap[0] / 2).sqrt().asin()
    whole = mass_of_angles(math.pi, size, kappa)
    found = [mass_of_angles(float(angle), size, kappa) / whole for angle in angles]
    assert np.allclose(found, uniform[0], rtol=0, atol=1e-10)
    step = 1e-4 * kappa
    curves = (
        _Curve(torch.tensor([kappa + sign * step], dtype=torch.float64), size - 1)
        for sign in (1, -1)
    )
    above, below = (curve.draw(uniform)[0] for curve in curves)
    differences = (above - below) / (2 * step)
    torch.testing.assert_close(slope, differences, rtol=1e-5, atol=1e-6 * float(gap.max()) / kappa)


def test_samples_on_the_ordinary_sphere_have_its_closed_forms() -> None:
    # A false alarm in 10,000 runs, were the seed not fixed.
    q, num = at(3, 2.5), 20_000
    kappa = float(q.concentration)
    with torch.no_grad():
        z = q.sample((num,))
    cosine = (z @ q.loc).sort().values
    expected = (kappa * (cosine - 1)).exp() - math.exp(-2 * kappa)
    expected = expected / -math.expm1(-2 * kappa)
    empirical = (torch.arange(num) + 0.5) / num
    assert (empirical - expected).abs().max() < kolmogorov_bound(num, false_alarm=1e-4)
    sideways = torch.linalg.cross(q.loc, torch.tensor([0.3, -0.4, 0.8]).double(), dim=-1)
    sideways = sideways / sideways.norm()
    turn = torch.linalg.cross(q.loc, sideways, dim=-1)
    longitude = torch.atan2(z @ sideways, z @ turn).sort().values
    uniform = (longitude + math.pi) / (2 * math.pi)
    assert (empirical - uniform).abs().max() < kolmogorov_bound(num, false_alarm=1e-4)
    nats = math.log(kappa / (4 * math.pi * math.sinh(kappa)))
    torch.testing.assert_close(q.log_prob(z), nats + kappa * (z @ q.loc))
    mean = (1 / math.tanh(kappa) - 1 / kappa) * q.loc
    torch.testing.assert_close(q.mean, mean)


@cases
@pytest.mark.parametrize("kappa", [0.5, 120.0])
def test_kl_to_the_uniform_is_that_of_samples(size: int, kappa: float) -> None:
    q, p = at(size, kappa), UniformSphere((size,)).double()()
    with torch.no_grad():
        z = q.sample((10_000,))
        sampled = q.log_prob(z) - p.log_prob(z)
    assert abs(kl_divergence(q, p) - sampled.mean()) < 5 * sampled.std() / 100 + 1e-12
    torch.testing.assert_close(q.entropy(), p.entropy() - kl_divergence(q, p))
    assert bool(q.support.check(z).all())


@pytest.mark.parametrize("size", [2, 3, 8])
def test_samples_have_the_gradient_of_their_mean(size: int) -> None:
    num, weight = 20_000, torch.randn(size).double()
    family = VonMisesFisher((size,)).double()
    raw = torch.randn(size + 1).double()
    rows = raw.expand(num, -1).clone().requires_grad_()
    (each,) = torch.autograd.grad((family(rows).rsample() @ weight).sum(), rows)
    mean = raw.clone().requires_grad_()
    (expected,) = torch.autograd.grad(family(mean).mean @ weight, mean)
    error = each.std(0) / math.sqrt(num)
    assert bool(((each.mean(0) - expected).abs() < 5 * error).all())


@pytest.mark.parametrize("size", [2, 5, 90])
def test_functions_of_the_concentration_have_their_derivatives(size: int) -> None:
    kappa = torch.tensor([0.03, 1.0, 30.0]).double().requires_grad_()
    for function in (_LogHeight, _MeanCosine):
        assert torch.autograd.gradcheck(lambda k, f=function: f.apply(k, size), kappa)
        assert torch.autograd.gradgradcheck(lambda k, f=function: f.apply(k, size), kappa)


@pytest.mark.parametrize("size", [2, 3, 40])
@pytest.mark.parametrize("extreme", [-1e4, 0.0, 1e4])
def test_extreme_raw_numbers_stay_finite(size: int, extreme: float) -> None:
    family = VonMisesFisher((size,))
    raw = torch.full((3, size + 1), extreme).requires_grad_()
    q = family(raw)
    z = q.rsample((20,))
    kl = kl_divergence(q, UniformSphere((size,))())
    log_q = q.log_prob(z)
    (log_q.sum() + z.sum() + kl.sum()).backward()
    assert raw.grad is not None
    assert all(bool(t.isfinite().all()) for t in (z, log_q, kl, raw.grad))
    assert bool(q.support.check(z).all())
    assert bool((kl >= 0).all())


def test_particles_expansion_and_events_of_several_directions() -> None:
    family = VonMisesFisher((2, 4)).double()
    raw = torch.randn(3, *family.raw_shape).double()
    q = family(raw).expand([5, 3])
    z = q.rsample()
    assert z.shape == (5, 3, 2, 4)
    log_q = q.log_prob(z)
    each = torch.stack([family(raw[1]).log_prob(z[particle, 1]) for particle in range(5)])
    torch.testing.assert_close(log_q[:, 1], each)


def small_vae(size: int = 3, **parts) -> VAE:
    parts = {"prior": UniformSphere, **parts}
    network = partial(MLP, hidden=(5,))
    return VAE.assemble((4,), (size,), posterior=VonMisesFisher, network=network, **parts)


def binary() -> Tensor:
    return torch.randint(0, 2, (6, 4), generator=torch.Generator().manual_seed(7)).float()


def test_recorded_steps_are_eager_steps() -> None:
    def pair():
        vae = small_vae(82)  # from there on without a recurrence, which only makes graphs long
        return type("Pair", (), {"model": vae.model, "guide": vae.guide, "args": (binary(),)})

    assert any(both(pair, TraceMeanField_ELBO, sizes=(6, 6)).replayed)


def test_log_p_is_that_of_samples_from_the_prior() -> None:
    vae = small_vae().double()
    x = binary().double()
    found = evaluation.log_likelihood(vae.model, vae.guide, x, num_samples=4000)
    with torch.no_grad():
        z = UniformSphere((3,)).double()().sample((20_000, 1))
        expected = vae.likelihood(z).log_prob(x).logsumexp(0) - math.log(20_000)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def test_a_density_over_all_space_is_no_prior_of_directions() -> None:
    vae = small_vae(prior=StandardNormal)
    with pytest.raises(ValueError, match=r"VonMisesFisher.*Normal.*prior=UniformSphere"):
        evaluation.elbo(vae.model, vae.guide, binary())


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: VonMisesFisher((1,)), r"event_shape=\(1,\): a sphere has two or more"),
        (lambda: VonMisesFisher((3,))(), "raw parameters"),
    ],
)
def test_bad_arguments_say_which(build, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build()
