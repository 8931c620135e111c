"""Expectations of estimators without Monte Carlo: of an objective's value and of its gradient.

    bed = Gaussian()                      # or Chain(), two Gaussian latents, or Bits(), 3 bits
    value, gradient = expected(objective, bed)
    value, gradient = exact(bed, num_particles, bound)

``expected`` runs the objective itself, eagerly, on the bed's Pyro program, once for every tuple of
noise of all particles: the product grid of Gauss-Hermite nodes for Gaussians, all 8^S tuples for
the bits. Each tuple is a row of one batch, so an objective that mixes data is caught. ``exact``
shares no line with it: the bed's densities written out, reduced by ``bound`` from log-weights
[S, T] to [T], and differentiated as a whole, the probability of the tuples included. Both return
nats per datum and a dictionary from parameter to gradient (of the bound: upwards). The parameters
of the model are ``bed.of_model``, those of the guide ``bed.of_guide``.

To take the expectation of something else (pairs drawn by an objective of its own), use
``bed.tuples(S)``: noise [S, T, D] and how to weigh it, and ``injected(noise)``, a context in which
the guide's sites take it in the order of their dimensions. All in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import normal

from pyro_vae.inference import Probe, Program

Expectation = tuple[Tensor, dict[str, Tensor]]


class Bed(nn.Module):
    """A program with small parameters, its data, and its densities written out."""

    of_model: tuple[str, ...]
    of_guide: tuple[str, ...]
    num_dims: int
    x: Tensor

    def __init__(self, shapes: dict[str, tuple[int, ...]], *, scale: float, **options: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(11)
        for name, shape in shapes.items():
            raw = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
            setattr(self, name, nn.Parameter(raw))
        self.options = options

    def plate(self, x: Tensor) -> Any:
        return pyro.plate("data", self.options.get("full_size") or len(x), subsample=x)

    def tuples(self, num_particles: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return noise [S, T, D], and a function from log q [S, rows] to the weights of tuples."""
        raise NotImplementedError

    def draw(self, noise: Tensor, x: Tensor) -> Tensor:
        """Return z [S, T, N, D] for noise [S, T, D], with its gradients if it has any."""
        raise NotImplementedError

    def log_q(self, z: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def log_joint(self, z: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class Gaussian(Bed):
    """z ~ N(0, 1), x ~ N(wz + b, 0.9^2 I), q = N(ax + c, exp(s)^2): one latent, two numbers."""

    of_model = ("w", "b")
    of_guide = ("a", "c", "s")
    num_dims = 1
    noise_scale = 0.9

    def __init__(self, *, num_nodes: int = 24, **options: Any) -> None:
        shapes = {"w": (1, 2), "b": (2,), "a": (2, 1), "c": (1,), "s": (1,)}
        super().__init__(shapes, scale=0.3, **options)
        # Near the posterior the integrand is smooth, and the nodes integrate it to 1e-12.
        with torch.no_grad():
            precision = 1 + (self.w / self.noise_scale).square().sum()
            slope = self.w / self.noise_scale**2 / precision
            self.a.mul_(0.4).add_(slope.T)
            self.c.mul_(0.4).sub_(slope @ self.b)
            self.s.mul_(0.4).sub_(0.5 * precision.log())
        self.num_nodes = num_nodes
        self.x = torch.tensor([[0.7, -0.4], [-0.3, 1.1]], dtype=torch.float64)

    def model(self, x):
        prior = dist.Normal(torch.zeros(1, dtype=x.dtype), 1.0).to_event(1)
        with self.plate(x):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ self.w + self.b, self.noise_scale).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(x):
            pyro.sample("z", dist.Normal(x @ self.a + self.c, self.s.exp()).to_event(1))

    def tuples(self, num_particles):
        return hermite(self.num_nodes, num_particles, self.num_dims)

    def draw(self, noise, x):
        return x @ self.a + self.c + self.s.exp() * noise.unsqueeze(-2)

    def log_q(self, z, x):
        return log_normal(z, x @ self.a + self.c, self.s.exp()).sum(-1)

    def log_joint(self, z, x):
        log_likelihood = log_normal(x, z @ self.w + self.b, self.noise_scale).sum(-1)
        return log_likelihood + log_normal(z, 0.0, 1.0).sum(-1)

    def log_p(self) -> Tensor:
        """Return the closed form of log p(x), [N]."""
        covariance = self.w.T @ self.w + self.noise_scale**2 * torch.eye(2, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.b, covariance).log_prob(self.x)


class Chain(Bed):
    """z2 ~ N(0, 1), z1 ~ N(u z2, 1), x ~ N(w z1 + b, 1); q(z1 | x) q(z2 | z1), reparameterised."""

    of_model = ("u", "w", "b")
    of_guide = ("a", "c", "v", "s")
    num_dims = 2

    def __init__(self, *, num_nodes: int = 12, **options: Any) -> None:
        shapes = {"u": (1,), "w": (1, 2), "b": (2,), "a": (2, 1), "c": (1,), "v": (1,), "s": (2,)}
        super().__init__(shapes, scale=0.3, **options)
        with torch.no_grad():  # near the posterior, as above
            spread = 1 + self.u.square()
            precision = 1 / spread + self.w.square().sum()
            self.a.mul_(0.1).add_(self.w.T / precision)
            self.c.mul_(0.1).sub_((self.w / precision) @ self.b)
            self.v.mul_(0.1).add_(self.u / spread)
            self.s.mul_(0.1).sub_(0.5 * torch.cat([precision, spread]).log())
        self.num_nodes = num_nodes
        self.x = torch.tensor([[0.7, -0.4]], dtype=torch.float64)

    def model(self, x):
        with self.plate(x):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(1, dtype=x.dtype), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(self.u * z2, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1 @ self.w + self.b, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(x):
            z1 = pyro.sample("z1", dist.Normal(x @ self.a + self.c, self.s[:1].exp()).to_event(1))
            pyro.sample("z2", dist.Normal(self.second(z1), self.s[1:].exp()).to_event(1))

    def second(self, z1):
        return self.v * (z1 + 0.1 * z1.sin())

    def tuples(self, num_particles):
        return hermite(self.num_nodes, num_particles, self.num_dims)

    def draw(self, noise, x):
        e1, e2 = noise.unsqueeze(-2).split(1, -1)
        z1 = x @ self.a + self.c + self.s[0].exp() * e1
        return torch.cat([z1, self.second(z1) + self.s[1].exp() * e2], -1)

    def log_q(self, z, x):
        z1, z2 = z.unbind(-1)
        log_q1 = log_normal(z1, (x @ self.a + self.c).squeeze(-1), self.s[0].exp())
        return log_q1 + log_normal(z2, self.second(z1), self.s[1].exp())

    def log_joint(self, z, x):
        z1, z2 = z.unbind(-1)
        log_prior = log_normal(z2, 0.0, 1.0) + log_normal(z1, self.u * z2, 1.0)
        return log_prior + log_normal(x, z[..., :1] @ self.w + self.b, 1.0).sum(-1)


class Bits(Bed):
    """Three bits with logits r, four pixels with logits zw + b; q has the logits xa + c."""

    of_model = ("r", "w", "b")
    of_guide = ("a", "c")
    num_dims = 3

    def __init__(self, **options: Any) -> None:
        shapes = {"r": (3,), "w": (3, 4), "b": (4,), "a": (4, 3), "c": (3,)}
        super().__init__(shapes, scale=1.0, **options)
        self.x = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0]], dtype=torch.float64)

    def model(self, x):
        with self.plate(x):
            z = pyro.sample("z", dist.Bernoulli(logits=self.r).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.w + self.b).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(x):
            pyro.sample("z", dist.Bernoulli(logits=x @ self.a + self.c).to_event(1))

    def tuples(self, num_particles):
        each = itertools.product(bits(3).tolist(), repeat=num_particles)
        noise = torch.tensor(list(each), dtype=torch.float64).transpose(0, 1)
        return noise, lambda log_q: log_q.sum(0).exp()

    def draw(self, noise, x):
        return noise.unsqueeze(-2).expand(*noise.shape[:-1], len(x), -1)

    def log_q(self, z, x):
        return log_bernoulli(z, x @ self.a + self.c).sum(-1)

    def log_joint(self, z, x):
        return log_bernoulli(z, self.r).sum(-1) + log_bernoulli(x, z @ self.w + self.b).sum(-1)

    def log_p(self) -> Tensor:
        """Return log p(x), summed over the 8 states, [N]."""
        return self.log_joint(bits(3)[:, None], self.x).logsumexp(0)


def expected(objective: Any, bed: Bed) -> Expectation:
    """Return the expectation of the objective's value and of its gradient, per datum."""
    noise, weigh = bed.tuples(objective.num_particles)
    num_tuples, num_data = noise.shape[1], len(bed.x)
    x = bed.x.repeat(num_tuples, 1)
    with torch.no_grad():
        log_q = bed.log_q(bed.draw(noise, bed.x), bed.x)  # [S, T, N]
        weights = weigh(log_q).expand(num_tuples, num_data) / num_data
    program = Program(bed.model, bed.guide)
    layout = Probe(program, x).layout
    with program.running(), injected(noise.repeat_interleave(num_data, 1)):
        terms = objective.table(program, layout, x)
        value = (weights.flatten() * objective.value(terms)).sum()
        total = (weights.flatten() * objective.surrogate(terms)).sum()
    return value.detach(), _gradient(total, bed)


def exact(bed: Bed, num_particles: int, bound: Callable[[Tensor], Tensor]) -> Expectation:
    """Return the expectation of a function of the log-weights [S, ...] and its whole gradient."""
    value = bed_mean(bed, num_particles, lambda log_p, log_q: bound(log_p - log_q))
    return value.detach(), _gradient(value, bed)


def bed_mean(bed: Bed, num_particles: int, f: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the mean over tuples and data of a function of log p(x, z) and log q(z | x)."""
    noise, weigh = bed.tuples(num_particles)
    z = bed.draw(noise, bed.x)
    log_q = bed.log_q(z, bed.x)
    return (weigh(log_q) * f(bed.log_joint(z, bed.x), log_q)).sum(0).mean()


def apart(total: Expectation, *, model: Expectation, guide: Expectation, bed: Bed) -> Expectation:
    """Return a value, with the gradients of the model and of the guide from two expectations."""
    gradients = {name: model[1][name] for name in bed.of_model}
    return total[0], gradients | {name: guide[1][name] for name in bed.of_guide}


def distance(found: Expectation, reference: Expectation) -> float:
    """Return the largest difference between two values or entries of two gradients."""
    gaps = [found[0] - reference[0], *(found[1][name] - g for name, g in reference[1].items())]
    return max(gap.abs().max().item() for gap in gaps)


def bits(num_bits: int) -> Tensor:
    """Return all strings of bits, [2^n, n]."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_bits)), dtype=torch.float64)


def hermite(
    num_nodes: int, num_particles: int, num_dims: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the product grid over particles and dimensions, [S, T, D], and its weights."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    size = num_particles * num_dims
    grid = np.stack(np.meshgrid(*[nodes] * size, indexing="ij"), -1).reshape(-1, size)
    mass = np.stack(np.meshgrid(*[weights / weights.sum()] * size, indexing="ij"), -1)
    mass = mass.reshape(-1, size).prod(-1)
    kept = mass > 1e-22  # the others weigh nothing, and are most of them
    noise = torch.from_numpy(grid[kept]).reshape(-1, num_particles, num_dims).transpose(0, 1)
    probability = torch.from_numpy(mass[kept]).unsqueeze(-1)
    return noise.contiguous(), lambda log_q: probability


def log_normal(value: Tensor, loc: Any, scale: Any) -> Tensor:
    scale = torch.as_tensor(scale, dtype=torch.float64)
    return -0.5 * ((value - loc) / scale) ** 2 - scale.log() - 0.5 * np.log(2 * np.pi)


def log_bernoulli(value: Tensor, logits: Tensor) -> Tensor:
    return value * logits - nn.functional.softplus(logits)


class injected(Messenger):
    """Let a guide's sites take this noise, [S, rows, D], dimension after dimension.

    Gaussian noise becomes a sample as the distribution itself would make it, so flows over a
    normal work, too; for latents that are not reparameterised the noise is the value.
    """

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise, self.used = noise, 0

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or pyro.poutine.util.site_is_subsample(msg):
            return
        fn = msg["fn"]
        size = fn.event_shape.numel()
        taken = self.noise[..., self.used : self.used + size]
        taken = taken.reshape(fn.batch_shape + fn.event_shape)
        self.used += size
        msg["value"] = _reparameterised(fn, taken) if fn.has_rsample else taken
        msg["done"] = True


def _reparameterised(fn: Any, noise: Tensor) -> Tensor:
    drawn = normal._standard_normal
    normal._standard_normal = lambda shape, dtype, device: noise.reshape(shape)
    try:
        return fn.rsample()
    finally:
        normal._standard_normal = drawn


def _gradient(total: Tensor, bed: Bed) -> dict[str, Tensor]:
    parameters = dict(bed.named_parameters())
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }
