"""Hierarchies whose densities are known in closed form: every layer is linear and Gaussian.

    z2 ~ N(m2, s2^2 I),  z1 ~ N(W1 z2 + b1, s1^2 I),  x ~ N(W0 z1 + b0, s0^2 I)

The joint is one Gaussian, and every term of a bound is a quadratic in the guide's noise. The grid
of all signs has the mean and covariance of standard normal noise, so it integrates them exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from exact import injected
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from pyro_vae.components import MLP, Conditional, Normal, StandardNormal
from pyro_vae.inference import Probe, Program
from pyro_vae.inference.terms import SiteTerms, site_terms

X = torch.tensor([[0.7, -0.4, 0.1, 1.2], [-0.3, 1.1, 0.9, -0.8]], dtype=torch.float64)
NUM_X, NUM_1, NUM_2 = 4, 3, 2
SCALES = {"x": 0.9, "z1": 0.7, "z2": 1.0}


def linear(in_size: int, out_size: int, scale: float) -> Conditional:
    """Return N(W c + b, scale^2 I), a layer."""
    family = Normal((out_size,), scale=scale)
    layer = Conditional(family, context_shape=(in_size,), network=partial(MLP, hidden=()))
    generator = torch.Generator().manual_seed(in_size * 10 + out_size)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
    return layer.double()


def generative() -> dict[str, Any]:
    """Return priors and likelihood of the model above."""
    return {
        "priors": [linear(NUM_2, NUM_1, SCALES["z1"]), StandardNormal((NUM_2,)).double()],
        "likelihood": linear(NUM_1, NUM_X, SCALES["x"]),
    }


def affine(layer: Any) -> tuple[Tensor, Tensor]:
    """Return W, [out, in], and b, [out], of a linear layer."""
    (weight,) = layer.network.parameters()
    return weight.detach(), layer.offset.detach().squeeze(0)


def joint(bottom_up: Sequence[tuple[Tensor, Tensor, float]]) -> MultivariateNormal:
    """Return the Gaussian of a chain v_1 ~ N(b, s^2 I), v_i ~ N(W v_{i-1} + b, s^2 I), stacked."""
    loc, root = torch.zeros(0).double(), torch.zeros(0, 0).double()
    last = 0
    for weight, bias, scale in bottom_up:
        size, old = len(bias), len(loc)
        # v = W v_last + b + s e, and v_last is the end of what is there.
        mean = weight @ loc[old - last :] + bias
        rows = torch.cat([weight @ root[old - last :], scale * torch.eye(size).double()], 1)
        root = torch.cat([torch.cat([root, torch.zeros(old, size).double()], 1), rows])
        loc, last = torch.cat([loc, mean]), size
    return MultivariateNormal(loc, root @ root.T)


def of_model(vae: Any) -> MultivariateNormal:
    """Return p(z2, z1, x)."""
    none = torch.zeros(NUM_2, 0).double()
    (w1, b1), (w0, b0) = affine(vae.priors[0]), affine(vae.likelihood)
    layers = [(none, torch.zeros(NUM_2).double(), SCALES["z2"])]
    return joint([*layers, (w1, b1, SCALES["z1"]), (w0, b0, SCALES["x"])])


def conditioned(gaussian: MultivariateNormal, x: Tensor) -> MultivariateNormal:
    """Return the Gaussian of the first numbers given the last, x [B, D]."""
    num = gaussian.loc.numel() - x.shape[-1]
    cov = gaussian.covariance_matrix
    gain = cov[:num, num:] @ cov[num:, num:].inverse()
    loc = gaussian.loc[:num] + (x - gaussian.loc[num:]) @ gain.T
    return MultivariateNormal(loc, cov[:num, :num] - gain @ cov[num:, :num])


def table(vae: nn.Module, x: Tensor = X) -> SiteTerms:
    """Return the site terms on all signs as noise: their mean over particles is exact."""
    signs = itertools.product([-1.0, 1.0], repeat=NUM_1 + NUM_2)
    noise = torch.tensor(list(signs), dtype=torch.float64)
    program = Program(vae.model, vae.guide)
    layout = Probe(program, x).layout
    with program.running(), injected(noise.unsqueeze(1).expand(-1, len(x), -1)):
        return site_terms(program, layout, x, num_particles=len(noise))
