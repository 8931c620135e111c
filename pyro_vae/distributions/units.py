"""A density of data in their own units, from one of the same data in other units."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.distributions.entries import Incomplete

__all__ = ["InUnits", "in_units", "kinds_of_units"]

# Densities of angles: over one turn they integrate to one, over all real numbers they do not.
_OF_ANGLES = ("VonMises", "SineBivariateVonMises", "SineSkewed")


class InUnits(dist.TorchDistribution):
    r"""The distribution of :math:`x = a + b\,t`, where t has a distribution of its own.

    .. math:: \log p(x) = \log p_t\big((x - a) / b\big) - \textstyle\sum_d \log b_d

    The difference x - a is taken before anything else, so that data far from zero lose no digits.

    Args:
        base_dist: Of t; over all real numbers, or over positive ones where a is zero.
        loc: a, of the shape of one event of the data.
        scale: b, positive, likewise.
    """

    arg_constraints: ClassVar[Any] = {}

    def __init__(
        self, base_dist: Any, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.base_dist, self.loc, self.scale = base_dist, loc, scale
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        """Whether draws have gradients."""
        return bool(self.base_dist.has_rsample)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The support of t, which no change of units moves."""
        return self.base_dist.support

    @property
    def mean(self) -> Tensor:
        """Return the mean, in the units of x."""
        return self.loc + self.scale * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """Return the variance, in the squared units of x."""
        return self.scale.square() * self.base_dist.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with this batch shape."""
        return type(self)(
            self.base_dist.expand(batch_shape), self.loc, self.scale, validate_args=False
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of x, in its own units."""
        if self._validate_args:
            self._validate_sample(value)
        # A missing number, where the base knows such, has no density and no volume.
        log_scale = torch.where(value.isnan(), 0.0, self.scale.log())
        return self.base_dist.log_prob((value - self.loc) / self.scale) - self._sum(log_scale)

    def cdf(self, value: Tensor) -> Tensor:
        """Return the probability of a value no larger than this one."""
        return self.base_dist.cdf((value - self.loc) / self.scale)

    def icdf(self, value: Tensor) -> Tensor:
        """Return the quantile, in the units of x."""
        return self.loc + self.scale * self.base_dist.icdf(value)

    def entropy(self) -> Tensor:
        """Return the differential entropy of x, in nats."""
        return self.base_dist.entropy() + self._sum(self.scale.log())

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw x, with gradients."""
        return self.loc + self.scale * self.base_dist.rsample(sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw x."""
        return self.loc + self.scale * self.base_dist.sample(sample_shape)

    def _sum(self, log_scale: Tensor) -> Tensor:
        return log_scale.sum(tuple(range(-self.event_dim, 0))) if self.event_dim else log_scale


@torch.distributions.register_kl(torch.distributions.Normal, InUnits)
def _kl_of_normals(q: torch.distributions.Normal, p: InUnits) -> Tensor:
    """Return KL(q || p), which no change of units moves, for a normal in units."""
    if not isinstance(p.base_dist, torch.distributions.Normal):
        raise NotImplementedError
    q_in_units = dist.Normal((q.loc - p.loc) / p.scale, q.scale / p.scale, validate_args=False)
    return torch.distributions.kl_divergence(q_in_units, p.base_dist)


def in_units(distribution: Any, loc: Tensor, scale: Tensor) -> Any:
    """Return the distribution of ``loc + scale * t`` for t of the given one.

    Independent numbers stay independent, and missing ones missing.

    Args:
        distribution: Of t, with an event of the shape of ``loc``.
        loc: In the units of the data, of the shape of one event.
        scale: Likewise, positive.
    """
    if isinstance(distribution, torch.distributions.Independent):
        base = in_units(distribution.base_dist, loc, scale)
        return dist.Independent(base, distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, Incomplete):
        complete = in_units(distribution.complete, loc, scale)
        return Incomplete(complete, loc + scale * distribution.fill, validate_args=False)
    return InUnits(distribution, loc, scale, validate_args=False)


def kinds_of_units(distribution: Any) -> list[str]:
    """Return what may be done to the units of an event's numbers, or of each of its columns.

    "real" numbers can be moved and scaled, "positive" ones scaled, and others ("fixed": counts,
    categories, numbers between bounds, angles) have units of their own.
    """
    innermost = distribution
    while hasattr(innermost, "base_dist"):
        innermost = innermost.base_dist
    if type(innermost).__name__ in _OF_ANGLES:
        return ["fixed"]
    try:
        support = distribution.support
    except (AttributeError, NotImplementedError):
        return ["fixed"]
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    support = getattr(support, "base_constraint", support)  # beside it, values may be missing
    return [_kind(column) for column in getattr(support, "columns", (support,))]


def _kind(support: Any) -> str:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.real:
        return "real"
    half_line = (constraints.greater_than, constraints.greater_than_eq)
    bound = getattr(support, "lower_bound", None)
    if isinstance(support, half_line) and not isinstance(bound, Tensor) and bound == 0:
        return "positive"
    return "fixed"
