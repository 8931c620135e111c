"""Flows are normalised densities with right Jacobians, new or old values, at any raw numbers."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from laws import FLOWS, kolmogorov_bound
from pyro.distributions.transforms import AffineAutoregressive
from torch import nn

from pyro_vae.components import (
    MLP,
    AffineCoupling,
    Conditional,
    Family,
    InverseAutoregressive,
    MaskedAutoregressive,
    NeuralSpline,
    learned,
)
from pyro_vae.distributions.autoregressive import AutoregressiveStep, Masked
from pyro_vae.inference.detached import detached

every_flow = pytest.mark.parametrize("build", FLOWS.values(), ids=FLOWS.keys())
TWO_STEPS = [InverseAutoregressive, MaskedAutoregressive, AffineCoupling, NeuralSpline]


def stirred(build, event_shape=(2,), *, gain: float = 1.0, **options) -> Family:
    """Return a flow in float64 far from the identity."""
    flow = build(event_shape, **options).double()
    for parameter in flow.parameters():
        fan_in = parameter.shape[-1] if parameter.dim() > 1 else 4
        nn.init.normal_(parameter, std=gain / math.sqrt(fan_in))
    return flow


def at_random(flow: Family, *batch: int):
    return flow(0.7 * torch.randn(*batch, *flow.raw_shape).double())


def on_a_grid(distribution, num: int = 200, width: float = 20.0):
    """Return points of the plane where it is dense, and the mass of a cell around each."""
    draws = distribution.sample((500,))
    centre, scale = draws.median(0).values, draws.std(0)
    # Fine in the middle, far outside.
    t = torch.linspace(-1, 1, num, dtype=torch.float64)
    axis, spacing = width * t**3 + t, (3 * width * t**2 + 1) * 2 / (num - 1)
    points = torch.cartesian_prod(axis, axis) * scale + centre
    area = torch.outer(spacing, spacing).flatten() * scale.prod()
    return points, distribution.log_prob(points), area


@every_flow
def test_density_integrates_to_one(build) -> None:
    with torch.no_grad():
        _, log_p, area = on_a_grid(at_random(stirred(build, gain=0.5)))
    assert (log_p.exp() * area).sum().sub(1).abs() < 2e-3


@every_flow
def test_samples_agree_with_the_density(build) -> None:
    # Both coordinates and the log-density itself, each with a false alarm in 10,000 runs.
    num = 3000
    with torch.no_grad():
        distribution = at_random(stirred(build, gain=0.5))
        points, log_p, area = on_a_grid(distribution)
        mass = log_p.exp() * area
        draws = distribution.sample((num,))
        statistics = [
            (draws[:, 0], points[:, 0]),
            (draws[:, 1], points[:, 1]),
            (distribution.log_prob(draws), log_p),
        ]
        for found, expected in statistics:
            order = expected.argsort()
            below = mass[order].cumsum(0)
            rank = torch.searchsorted(expected[order], found.sort().values).clamp(max=len(mass) - 1)
            distance = (below[rank] - torch.linspace(0, 1, num).double()).abs().max()
            # The grid itself is about this coarse.
            assert distance < kolmogorov_bound(num, false_alarm=1e-4) + 6e-3


@every_flow
@pytest.mark.parametrize("event_shape", [(3,), (2, 2)])
def test_the_jacobian_is_autograds(build, event_shape) -> None:
    flow = stirred(build, event_shape)
    raw = 0.7 * torch.randn(flow.raw_shape).double()
    e = torch.randn(math.prod(event_shape)).double()

    def moved(noise):
        for transform in flow(raw).transforms:
            noise = transform(noise)
        return noise

    jacobian = torch.autograd.functional.jacobian(moved, e).reshape(len(e), len(e))
    z = moved(e)
    base = torch.distributions.Normal(0.0, 1.0).log_prob(e).sum()
    expected = base - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(flow(raw).log_prob(z), expected)
    # The density of a sample takes another way, through what the transforms remember.
    distribution = flow(raw)
    sample = distribution.rsample()
    torch.testing.assert_close(distribution.log_prob(sample), flow(raw).log_prob(sample.clone()))


@every_flow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_is_one(build, dtype) -> None:
    flow = stirred(build, (3,), gain=0.5).to(dtype)
    raw = torch.randn(4, *flow.raw_shape, dtype=dtype)
    noise = z = torch.randn(5, 4, 3, dtype=dtype)
    for transform in flow(raw).transforms:
        z = transform(z)
    for transform in reversed(flow(raw).transforms):
        z = transform.inv(z)
    assert z.dtype == dtype
    torch.testing.assert_close(z, noise, atol=3e-4 if dtype == torch.float32 else 1e-9, rtol=0)


@every_flow
def test_shapes_with_particles(build) -> None:
    flow = build((2, 2)).double()
    distribution = at_random(flow, 3)
    assert distribution.batch_shape == (3,)
    assert distribution.event_shape == (2, 2)
    spread = distribution.expand([5, 3])
    z = spread.rsample()
    assert z.shape == (5, 3, 2, 2)
    expected = torch.stack([distribution.log_prob(particle) for particle in z])
    torch.testing.assert_close(spread.log_prob(z), expected)
    torch.testing.assert_close(
        distribution.log_prob(z[:, :1]), spread.log_prob(z[:, :1].expand_as(z))
    )
    with pytest.raises(NotImplementedError):
        _ = distribution.mean


@every_flow
def test_one_row_does_not_see_another(build) -> None:
    flow = stirred(build, (3,))
    raw, z = torch.randn(4, *flow.raw_shape).double(), torch.randn(4, 3).double()
    alone = torch.stack([flow(raw[row]).log_prob(z[row]) for row in range(4)])
    torch.testing.assert_close(flow(raw).log_prob(z), alone)


@every_flow
def test_flows_start_near_the_normal(build) -> None:
    prior = learned(build((4,)))
    noise = z = torch.randn(200, 4)
    for transform in prior().transforms:
        z = transform(z)
    assert (z - noise).abs().max() < 0.1


@every_flow
@pytest.mark.parametrize("sampled", [True, False])
def test_gradients_reach_every_parameter(build, sampled: bool) -> None:
    network = partial(MLP, hidden=(6,))
    q = Conditional(build((3,)), context_shape=(4,), network=network).double()
    distribution = q(torch.randn(5, 4).double())
    z = distribution.rsample() if sampled else torch.randn(5, 3).double()
    # The sum alone has the same gradient for every order of a flow's derivatives at zero.
    (distribution.log_prob(z) + z.pow(2).sum(-1)).sum().backward()
    for name, parameter in q.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool((parameter.grad != 0).any()), name


@every_flow
@pytest.mark.parametrize("extreme", [-1e4, 1e4])
def test_extreme_raw_numbers_stay_finite(build, extreme: float) -> None:
    flow = stirred(build, (3,)).float()
    raw = torch.full((20, *flow.raw_shape), extreme).requires_grad_()
    values = [torch.zeros(20, 3), torch.ones(20, 3), flow(raw).rsample()]
    for value in values:
        log_p = flow(raw).log_prob(value)
        log_p.sum().backward()
        assert bool(log_p.isfinite().all())
    for parameter in (raw, *flow.parameters()):
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())


@every_flow
def test_nothing_of_an_old_density_is_remembered(build) -> None:
    prior = learned(build((3,)))
    z = prior().sample((4,))
    prior().log_prob(z)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(prior().log_prob(z), copy.deepcopy(prior)().log_prob(z.clone()))
    assert prior.state_dict().keys() == learned(build((3,))).state_dict().keys()


@every_flow
def test_a_density_can_be_detached_from_its_parameters(build) -> None:
    flow = stirred(build, (3,), gain=0.5)
    raw = torch.randn(2, *flow.raw_shape).double().requires_grad_()
    distribution = flow(raw)
    z = distribution.rsample()
    log_q = detached(distribution).log_prob(z)
    other = z.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(flow(raw).log_prob(other).sum(), other)
    expected = torch.autograd.grad((slope * z).sum(), raw, retain_graph=True)
    torch.testing.assert_close(log_q, flow(raw).log_prob(other))
    torch.testing.assert_close(torch.autograd.grad(log_q.sum(), raw), expected)


def test_the_conditionals_of_one_masked_step_are_normals() -> None:
    flow = stirred(partial(MaskedAutoregressive, num_flows=1, num_context=0), (3,))
    distribution = flow(torch.randn(flow.raw_shape).double())
    along = torch.linspace(-2, 2, 5).double()[:, None]

    def third_difference(place: int):
        unit = torch.eye(3).double()[place]
        return distribution.log_prob(torch.randn(3).double() + along * unit).diff(n=3).abs().max()

    # Given the others, the last entry is normal; the first is not, for those are made of it.
    assert third_difference(2) < 1e-8
    assert third_difference(0) > 1e-3


@pytest.mark.parametrize(
    ("build", "said"),
    [
        *((partial(family, (1,)), rf"{family.__name__}.*two or more") for family in TWO_STEPS),
        *((partial(family, (4,), num_flows=0), "num_flows=0") for family in TWO_STEPS),
        *((partial(family, (4,), num_context=-1), "num_context=-1") for family in TWO_STEPS),
        *((partial(family, (4,), hidden_dims=[]), r"hidden_dims=\(\)") for family in TWO_STEPS),
        *((partial(family, (0, 2)), r"event_shape=\(0, 2\)") for family in TWO_STEPS),
        (partial(MaskedAutoregressive, (4,), hidden_dims=[3]), r"hidden_dims=\(3,\).*the 4 dim"),
        (partial(NeuralSpline, (4,), num_bins=1), "num_bins=1"),
        (partial(NeuralSpline, (4,), bound=-1.0), "bound=-1.0"),
        (lambda: NeuralSpline((4,))(), "raw parameters"),
    ],
)
def test_bad_arguments_say_which(build, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        build()
    assert "\n" not in str(caught.value)


# Inverses of autoregressive steps -----------------------------------------------------------------

STEPS = {
    "two dimensions": (2, 0, [64], False),
    "two layers": (5, 3, [7, 9], True),
    "no context": (5, 0, [7, 9], False),
    "three layers": (4, 1, [4, 6, 5], True),
}


@pytest.mark.parametrize("case", STEPS)
def test_the_inverse_in_one_pass_is_pyros_in_many(case: str) -> None:
    num_dims, num_context, hidden, reverse = STEPS[case]
    order = torch.arange(num_dims)
    order = order.flip(0) if reverse else order
    network = Masked(num_dims, num_context, hidden, permutation=order, nonlinearity=nn.SiLU())
    network = network.double()
    context = torch.randn(6, 1, num_context, dtype=torch.float64)
    y = torch.randn(6, 3, num_dims, dtype=torch.float64, requires_grad=True)
    bounds = {"log_scale_min_clip": -3.0, "log_scale_max_clip": 3.0}
    conditioned = partial(network, context=context)
    conditioned.permutation = order.tolist()
    found = []
    for step in (
        AutoregressiveStep(network, order.tolist(), context, **bounds),
        AffineAutoregressive(conditioned, **bounds),
    ):
        x = step.inv(y)
        log_slope = step._cached_log_scale.sum(-1)
        gradients = torch.autograd.grad(x.sin().sum() + log_slope.cos().sum(),
                                        [y, *network.parameters()])  # fmt: skip
        found.append([x, log_slope, *gradients])
    for ours, pyros in zip(*found, strict=True):
        torch.testing.assert_close(ours, pyros, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(step(x), y)


def test_an_inverse_keeps_the_activations_of_one_pass() -> None:
    """Pyro's keeps those of D passes, each of all units."""
    num_dims, num_rows = 16, 64
    flow = InverseAutoregressive((num_dims,), num_flows=1)
    y = torch.randn(num_rows, num_dims)
    kept = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        flow(torch.zeros(flow.raw_shape)).log_prob(y)
    size = sum({storage.data_ptr(): storage.nbytes() for storage in kept}.values())
    one_pass = 4 * num_rows * (64 + 2 * num_dims)
    weights = 2 * sum(4 * p.numel() for p in flow.parameters())
    assert size < 4 * one_pass + weights
