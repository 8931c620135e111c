"""A linear-Gaussian program, whose every number is known."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import nn


class LinearGaussian(nn.Module):
    """z ~ N(0, I), x ~ N(Wz + b, s^2 I); q(z | x) = N(Ax + c, diag(t^2)), exact where asked."""

    def __init__(self, num_latents=2, num_dims=3, *, exact=False, scale=0.6):
        super().__init__()
        generator = torch.Generator().manual_seed(5)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.weight = nn.Parameter(draw(num_dims, num_latents))
        self.bias = nn.Parameter(draw(num_dims))
        self.scale = scale
        precision = torch.eye(num_latents).double() + self.weight.T @ self.weight / scale**2
        gain = torch.linalg.solve(precision, self.weight.T) / scale**2
        self.gain = nn.Parameter((gain if exact else gain + 0.1 * draw(*gain.shape)).detach())
        self.offset = nn.Parameter((-gain @ self.bias).detach())
        self.spread = nn.Parameter(precision.diagonal().rsqrt().detach() * (1 if exact else 1.3))
        self.zeros = torch.zeros(num_latents, dtype=torch.float64)
        self.train()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.zeros, 1.0).to_event(1))
            pyro.sample(
                "x", dist.Normal(z @ self.weight.T + self.bias, self.scale).to_event(1), obs=x
            )

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc = x @ self.gain.T + self.offset
            pyro.sample("z", dist.Normal(loc, self.spread).to_event(1))

    def log_p(self, x):
        noise = self.scale**2 * torch.eye(len(self.bias)).double()
        covariance = self.weight @ self.weight.T + noise
        return dist.MultivariateNormal(self.bias, covariance).log_prob(x).detach()

    def rate(self, x):
        loc = x @ self.gain.T + self.offset
        variance = self.spread**2
        kl = 0.5 * (loc**2 + variance - 1 - variance.log())
        return kl.sum(-1).detach()

    def distortion(self, x):
        loc = (x @ self.gain.T + self.offset) @ self.weight.T + self.bias
        spread = (self.weight**2 * self.spread**2).sum()
        square = ((x - loc) ** 2).sum(-1) + spread
        constant = 0.5 * len(self.bias) * math.log(2 * math.pi * self.scale**2)
        return (constant + square / (2 * self.scale**2)).detach()

    def posterior(self, x):
        """Return the exact posterior."""
        num_latents = len(self.zeros)
        precision = torch.eye(num_latents).double() + self.weight.T @ self.weight / self.scale**2
        loc = (x - self.bias) @ self.weight / self.scale**2 @ precision.inverse()
        return dist.MultivariateNormal(loc.detach(), precision_matrix=precision.detach())

    def best_diagonal_bound(self, x):
        """Return the largest ELBO of a diagonal normal: its precisions are the posterior's own."""
        precision = self.posterior(x).precision_matrix[0]
        gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
        return self.log_p(x) - gap

    def bound(self, x):
        """Return the guide's ELBO."""
        return -(self.rate(x) + self.distortion(x))
