"""Normals with closed forms that torch lacks: of any covariance, in a chain, of no width at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, Normal, constraints, kl_divergence, register_kl

__all__ = ["FollowedNormal", "FullNormal", "LowRankNormal", "NormalChain", "Point"]


class FullNormal(dist.MultivariateNormal):
    """Pyro's, under a name for which closed forms are registered."""


class LowRankNormal(dist.LowRankMultivariateNormal):
    """Pyro's, under a name for which closed forms are registered."""


class Point(dist.Delta):
    """Pyro's, distinct from a Delta with a density of its own."""

    has_density = False


@register_kl(FullNormal, dist.Independent)
@register_kl(LowRankNormal, dist.Independent)
def _kl_to_diagonal(q: Any, p: Any) -> Tensor:
    normal = _diagonal(p)
    square = q.variance + (q.mean - normal.mean).square()
    log_p = -0.5 * (square / normal.variance + (2 * math.pi * normal.variance).log())
    return -log_p.sum(-1) - q.entropy()


@register_kl(dist.Independent, FullNormal)
@register_kl(dist.Independent, LowRankNormal)
def _kl_from_diagonal(q: Any, p: Any) -> Tensor:
    normal = _diagonal(q)
    scale_tril = torch.diag_embed(normal.scale)
    return kl_divergence(dist.MultivariateNormal(normal.mean, scale_tril=scale_tril), p)


def _diagonal(distribution: Any) -> Any:
    normal = distribution.base_dist
    if not isinstance(normal, dist.Normal) or distribution.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    return normal


class FollowedNormal(dist.Normal):
    """A Normal that tells how far the values that it scores lay.

    Args:
        loc: ``[*batch]``.
        scale: Likewise.
        follow: Is called with the squared errors of each value that is scored.
    """

    def __init__(self, loc: Tensor, scale: Tensor, follow: Callable[[Tensor], None]) -> None:
        super().__init__(loc, scale)
        self.follow = follow

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with this batch shape."""
        return type(self)(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.follow)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, and tell the squared errors afterwards."""
        log_density = super().log_prob(value)
        self.follow((value - self.loc).square())
        return log_density


class NormalChain(TorchDistribution):
    r"""A stationary chain along the first axis of an event, standard normal at every step.

    .. math:: z_1 \sim N(0, I), \qquad z_t \sim N(\alpha z_{t-1}, (1 - \alpha^2) I)

    Args:
        scale: Of a step given the one before, :math:`\sqrt{1 - \alpha^2}`, in (0, 1]. Near zero
            it is a number that float32 holds, where :math:`\alpha` would be rounded to one.
        event_shape: T steps, and the shape of each.
    """

    arg_constraints = {"scale": constraints.interval(0.0, 1.0)}  # noqa: RUF012
    has_rsample = True

    def __init__(
        self,
        scale: Tensor,
        event_shape: tuple[int, ...],
        batch_shape: tuple[int, ...] = (),
        validate_args: bool | None = None,
    ) -> None:
        self.scale = scale
        super().__init__(
            torch.Size(batch_shape), torch.Size(event_shape), validate_args=validate_args
        )

    @property
    def support(self) -> Any:
        """Return the constraint of real numbers in the event's shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """Return zeros, ``[*batch, *event_shape]``."""
        return self.scale.new_zeros(self.shape())

    @property
    def variance(self) -> Tensor:
        """Return ones, ``[*batch, *event_shape]``: of each number by itself."""
        return self.scale.new_ones(self.shape())

    @property
    def coefficient(self) -> Tensor:
        r"""Return :math:`\alpha`."""
        return (1 - self.scale.square()).sqrt()

    def expand(self, batch_shape: Any, _instance: Any = None) -> NormalChain:
        """Return the chain for more data."""
        return NormalChain(self.scale, self.event_shape, batch_shape, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw chains, ``[*sample_shape, *batch, *event_shape]``."""
        shape = self.shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device)
        steps = noise.movedim(-len(self.event_shape), 0).unbind(0)
        z = [steps[0]]
        for step in steps[1:]:
            z.append(self.coefficient * z[-1] + self.scale * step)
        return torch.stack(z).movedim(0, -len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density in nats, ``[*batch]``."""
        if self._validate_args:
            self._validate_sample(value)
        first, before, after = _steps(value, len(self.event_shape))
        of_first = Normal(torch.zeros_like(first), 1.0).log_prob(first)
        of_rest = Normal(self.coefficient * before, self.scale).log_prob(after)
        total = _summed(of_first, self) + _summed(of_rest, self)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))


@register_kl(Independent, NormalChain)
def _kl_from_normal(q: Any, p: NormalChain) -> Tensor:
    """Return the KL of a normal with independent coordinates from a chain, in nats."""
    if not isinstance(q.base_dist, Normal) or q.event_shape != p.event_shape:
        raise NotImplementedError
    loc, variance = q.base_dist.loc, q.base_dist.scale.square()
    first_loc, loc_before, loc_after = _steps(loc, len(p.event_shape))
    first, before, after = _steps(variance, len(p.event_shape))
    drift = (loc_after - p.coefficient * loc_before).square()
    spread = (drift + after + p.coefficient.square() * before) / p.scale.square()
    of_first = 0.5 * (first_loc.square() + first - 1 - first.log())
    of_rest = 0.5 * (spread - 1 - after.log()) + p.scale.log()
    return _summed(of_first, p) + _summed(of_rest, p)


def _steps(value: Tensor, event_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first step, all but the last, and all but the first."""
    steps = value.shape[-event_dim]
    first, before, after = (
        value.narrow(-event_dim, start, length)
        for start, length in ((0, 1), (0, steps - 1), (1, steps - 1))
    )
    return first, before, after


def _summed(of_numbers: Tensor, chain: NormalChain) -> Tensor:
    return of_numbers.flatten(-len(chain.event_shape)).sum(-1)
