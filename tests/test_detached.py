"""Distributions without their parameters' gradients: the slope in the value alone."""

from __future__ import annotations

import pyro.distributions as dist
import pyro.distributions.transforms as flows
import pytest
import torch
from torch import nn

from pyro_vae.inference.detached import detached


def normal(loc, scale):
    return dist.Normal(loc, scale.exp()).to_event(1)


def mixture(loc, scale):
    parts = dist.Normal(torch.stack([loc, loc + 1], -2), scale.exp().unsqueeze(-2)).to_event(1)
    logits = torch.stack([loc[..., 0], scale[..., 1]], -1)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)


def diagonal_mixture(loc, scale):
    logits = torch.stack([loc[..., 0], scale[..., 1]], -1)
    locs = torch.stack([loc, loc + 1], -2)
    return dist.MixtureOfDiagNormals(locs, scale.exp().unsqueeze(-2).expand_as(locs), logits)


def multivariate(loc, scale):
    return dist.MultivariateNormal(
        loc,
        scale_tril=torch.diag_embed(scale.exp())
        + 0.1 * torch.tril(loc.unsqueeze(-1).expand(*loc.shape, loc.shape[-1]), -1),
    )


DENSITIES = {
    "Normal": lambda loc, scale: dist.Normal(loc, scale.exp()),
    "Independent": normal,
    "Independent twice": lambda loc, scale: dist.Normal(loc, scale.exp()).to_event(1).to_event(1),
    "StudentT": lambda loc, scale: dist.StudentT(3.0 + scale.exp(), loc, 1.0).to_event(1),
    "Gamma": lambda loc, scale: dist.Gamma(loc.exp(), scale.exp()).to_event(1),
    "Beta": lambda loc, scale: dist.Beta(1 + loc.exp(), scale.exp()).to_event(1),
    "MultivariateNormal": multivariate,
    "MixtureSameFamily": mixture,
    "MixtureOfDiagNormals": diagonal_mixture,
    "LogNormal": lambda loc, scale: dist.LogNormal(loc, scale.exp()).to_event(1),
    "LogisticNormal": lambda loc, scale: dist.LogisticNormal(loc, scale.exp()),
    "RelaxedBernoulli": lambda loc, scale: dist.RelaxedBernoulli(
        loc.new_tensor(0.7), logits=loc + scale
    ).to_event(1),
    "straight-through": lambda loc, scale: dist.RelaxedBernoulliStraightThrough(
        loc.new_tensor(0.7), logits=loc + scale
    ).to_event(1),
    "masked": lambda loc, scale: normal(loc, scale).mask(loc[..., 0] > 0),
    "not masked": lambda loc, scale: normal(loc, scale).mask(True),
    "expanded": lambda loc, scale: normal(loc[:1], scale[:1]).expand([4]),
    "ExpandedDistribution": lambda loc, scale: dist.torch_distribution.ExpandedDistribution(
        normal(loc[:1], scale[:1]), [4]
    ),
    "transformed": lambda loc, scale: dist.TransformedDistribution(
        dist.Normal(loc, 1.0), [flows.ExpTransform(), flows.AffineTransform(scale, scale.exp())]
    ).to_event(1),
    "Delta": lambda loc, scale: dist.Delta(loc, scale.sum(-1), event_dim=1),
    "Uniform": lambda loc, scale: dist.Uniform(loc - 1, loc + scale.exp()).to_event(1),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_a_detached_density_has_gradients_in_the_value_alone(name):
    loc, scale = (torch.randn(4, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    q = DENSITIES[name](loc, scale)
    z = q.rsample() if q.has_rsample else q.sample().requires_grad_()
    found = detached(q).log_prob(z)
    fixed = z.detach().requires_grad_()
    if hasattr(z, "_unquantize"):
        fixed._unquantize = z._unquantize.detach() + fixed - fixed.detach()
    constant = DENSITIES[name](loc.detach(), scale.detach())
    log_q = constant.log_prob(fixed)
    assert found.shape == q.log_prob(z).shape
    torch.testing.assert_close(found, log_q, rtol=0, atol=1e-12)
    # Different weights, so that a slope on the wrong row would show.
    weights = torch.linspace(0.5, 1.5, found.numel(), dtype=torch.float64).reshape(found.shape)
    slope = torch.zeros_like(fixed)
    if log_q.requires_grad:
        (slope,) = torch.autograd.grad((weights * log_q).sum(), fixed)
    (own,) = torch.autograd.grad((weights * found).sum(), z, retain_graph=True)
    torch.testing.assert_close(own, slope)
    if not q.has_rsample:
        assert not found.requires_grad or torch.autograd.grad(
            found.sum(), [loc, scale], allow_unused=True
        ) == (None, None)
        return
    ways = torch.autograd.grad(
        (weights * found).sum(), [loc, scale], materialize_grads=True, retain_graph=True
    )
    through = torch.autograd.grad((slope * z).sum(), [loc, scale], materialize_grads=True)
    torch.testing.assert_close(ways, through)


@pytest.mark.parametrize("name", ["Independent", "StudentT", "MixtureOfDiagNormals"])
def test_an_attached_density_would_be_noticed(name):
    loc, scale = (torch.randn(4, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    q = DENSITIES[name](loc, scale)
    z = q.rsample()
    whole, through = (
        torch.autograd.grad(density.log_prob(z).sum(), [loc, scale], retain_graph=True)
        for density in (q, detached(q))
    )
    gap = max((one - other).abs().max().item() for one, other in zip(whole, through, strict=True))
    assert gap > 1e-2


def conditioned(kind):
    return kind.condition(torch.randn(3, dtype=torch.float64, requires_grad=True))


LAYERS = {
    "planar": lambda: flows.planar(3),
    "radial": lambda: flows.radial(3),
    "sylvester": lambda: flows.sylvester(3),
    "autoregressive": lambda: flows.affine_autoregressive(3, hidden_dims=[5]),
    "stable autoregressive": lambda: flows.affine_autoregressive(3, hidden_dims=[5], stable=True),
    "inverse": lambda: flows.affine_coupling(3, hidden_dims=[4]).double().inv,
    "neural autoregressive": lambda: flows.neural_autoregressive(3, hidden_dims=[5]),
    "block autoregressive": lambda: flows.block_autoregressive(3),
    "spline autoregressive": lambda: flows.spline_autoregressive(3, hidden_dims=[5]),
    "spline": lambda: flows.spline(3),
    "coupling": lambda: flows.affine_coupling(3, hidden_dims=[4]),
    "householder": lambda: flows.householder(3),
    "permutation": lambda: flows.Permute(torch.tensor([2, 0, 1])),
    "conditional": lambda: conditioned(
        flows.conditional_affine_autoregressive(3, 3, hidden_dims=[5]).double()
    ),
    "conditional spline": lambda: conditioned(flows.conditional_spline(3, 3).double()),
    "conditional planar": lambda: conditioned(flows.conditional_planar(3, 3).double()),
    "several": lambda: flows.ComposeTransform(
        [
            flows.affine_autoregressive(3, hidden_dims=[5]).double(),
            flows.Permute(torch.tensor([2, 0, 1])),
            flows.planar(3).double(),
        ]
    ),
}


@pytest.mark.parametrize("wrap", [lambda q: q, lambda q: q.expand([4]).mask(True)], ids=["", "m"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_detached_flow_has_the_slope_of_its_density(name, wrap):
    layer = LAYERS[name]()
    layer = layer.double() if isinstance(layer, nn.Module) else layer
    loc = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    base = dist.Normal(loc, 1.0).to_event(1).expand([4])
    flow = dist.TransformedDistribution(base, [layer])
    q = wrap(flow)
    z = q.rsample()
    log_q = q.log_prob(z)
    found = detached(q).log_prob(z)
    torch.testing.assert_close(found, log_q, rtol=0, atol=1e-10)
    (slope,) = torch.autograd.grad(found.sum(), z, retain_graph=True)
    # Nothing but z: the parameters' own gradients are those that pass through z.
    (own,) = torch.autograd.grad(found.sum(), loc, retain_graph=True)
    (through,) = torch.autograd.grad((slope * z).sum(), loc, retain_graph=True)
    torch.testing.assert_close(own, through)
    # The slope against central differences, made by running the flow forwards only.
    noise, way = layer.inv(z).detach(), torch.randn(4, 3, dtype=torch.float64)
    ends = []
    for step in (1e-5, -1e-5):
        value = layer(noise + step * way)
        ends.append((value.detach(), flow.log_prob(value).detach()))
    (above, log_above), (below, log_below) = ends
    predicted = (slope * (above - below)).sum(-1)
    torch.testing.assert_close(predicted, log_above - log_below, rtol=1e-4, atol=1e-11)
    # The flow still knows its last sample: nothing was left behind in it.
    torch.testing.assert_close(flow.log_prob(value), log_below)


def test_a_flow_without_an_inverse_scores_its_last_sample_only():
    layer = flows.planar(3)
    q = dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0).to_event(1), [layer])
    with pytest.raises(ValueError, match="Planar has no inverse, and this value is not its last"):
        detached(q).log_prob(torch.zeros(3))


def test_a_detached_distribution_is_one_in_all_else():
    loc = torch.zeros(2, requires_grad=True)
    q = detached(dist.Normal(loc, 1.0).to_event(1))
    assert (q.batch_shape, q.event_shape, q.has_rsample) == ((), (2,), True)
    assert q.expand([5]).rsample().shape == (5, 2)
    assert q.rsample().requires_grad
    assert not q.sample().requires_grad
    assert bool(q.support.check(torch.zeros(2)))
    assert q.mask(False).log_prob(torch.zeros(2)) == 0
