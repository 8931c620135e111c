"""Densities on the unit interval that Pyro and torch lack, or have only where logits are small."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, kl_divergence, transform_to
from torch.distributions.kl import register_kl
from torch.distributions.transforms import SigmoidTransform

__all__ = ["ContinuousBernoulli", "LogitNormal"]


class ContinuousBernoulli(dist.TorchDistribution):
    r"""The Bernoulli's form as a density on [0, 1], normalised for every logit :math:`\eta`.

    .. math:: p(x) = \exp(\eta x - A(\eta)), \qquad A(\eta) = \log \frac{e^\eta - 1}{\eta}

    In terms of :math:`\theta = \sigma(\eta)` it is :math:`C \theta^x (1 - \theta)^{1 - x}` with
    :math:`\log C = \log(\eta / \tanh(\eta / 2))`. Torch's own computes C from :math:`\theta`, which
    has lost a large logit: its densities do not integrate to one beyond logits of about 15.

    Args:
        logits: :math:`\eta`, ``[*batch]``.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem & Cunningham, 2019)
    """

    arg_constraints: ClassVar[Any] = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with this batch shape."""
        return type(self)(self.logits.expand(batch_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        r"""Return :math:`1 / (1 - e^{-\eta}) - 1 / \eta`, the derivative of A."""
        return 0.5 + 0.5 * _langevin(self.logits / 2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of values in [0, 1]."""
        if self._validate_args:
            self._validate_sample(value)
        return (value - 0.5) * self.logits - _log_sinhc(self.logits / 2)

    def cdf(self, value: Tensor) -> Tensor:
        """Return the probability of a value no larger than this one."""
        if self._validate_args:
            self._validate_sample(value)
        size, positive = -self.logits.abs().clamp(min=1e-20), self.logits > 0
        flipped = torch.where(positive, 1 - value, value)
        below = torch.expm1(size * flipped) / torch.expm1(size)
        return torch.where(positive, 1 - below, below)

    def icdf(self, value: Tensor) -> Tensor:
        r"""Return the quantile, :math:`\log(1 + u (e^\eta - 1)) / \eta`."""
        # By the symmetry x -> 1 - x the logit is negative, where no exponential overflows.
        positive = self.logits > 0
        flipped = torch.where(positive, 1 - value, value)
        quantile = _quantile(-self.logits.abs(), flipped)
        return torch.where(positive, 1 - quantile, quantile)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by the inverse of the distribution function."""
        shape = self._extended_shape(torch.Size(sample_shape))
        logits = self.logits
        return self.icdf(torch.rand(shape, dtype=logits.dtype, device=logits.device))

    def entropy(self) -> Tensor:
        """Return the differential entropy, in nats."""
        return _log_sinhc(self.logits / 2) - (self.mean - 0.5) * self.logits


@register_kl(ContinuousBernoulli, ContinuousBernoulli)
def _kl_of_continuous_bernoullis(p: ContinuousBernoulli, q: ContinuousBernoulli) -> Tensor:
    normalizers = _log_sinhc(q.logits / 2) - _log_sinhc(p.logits / 2)
    return (p.mean - 0.5) * (p.logits - q.logits) + normalizers


class _Inside(constraints.interval):
    """The unit interval without its ends."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)

    def __str__(self) -> str:
        return "above 0 and below 1"


biject_to.register(_Inside, lambda inside: SigmoidTransform())
transform_to.register(_Inside, lambda inside: SigmoidTransform())


class LogitNormal(dist.TorchDistribution):
    r"""A Gaussian squashed into (0, 1), :math:`x = \sigma(\mu + s \epsilon)`.

    .. math:: p(x) = \frac{N(\mathrm{logit}(x); \mu, s^2)}{x (1 - x)}

    Args:
        loc: :math:`\mu`, in logits, ``[*batch]``.
        scale: s, positive, in logits, ``[*batch]``.
    """

    arg_constraints: ClassVar[Any] = {"loc": constraints.real, "scale": constraints.positive}
    support = _Inside()
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with this batch shape."""
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return type(self)(loc, scale, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Return the mean, by quadrature; exact to 1e-5."""
        # Sharper than the nodes can see, the sigmoid is a normal's distribution function.
        sharp = self.loc / (math.pi**2 / 3 + self.scale.square()).sqrt()
        limit = torch.special.ndtr(sharp)
        step = 2 * _LAST_NODE / _NUM_NODES
        total = torch.zeros_like(self.loc)
        for node in range(_NUM_NODES + 1):  # one by one, so that memory does not grow
            noise = node * step - _LAST_NODE
            weight = step * math.exp(-0.5 * noise * noise) / math.sqrt(2 * math.pi)
            total = total + weight * torch.sigmoid(self.loc + self.scale * noise)
        return torch.where(self.scale > _SHARP, limit, total)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of values between 0 and 1, both excluded."""
        if self._validate_args:
            self._validate_sample(value)
        logit = value.log() - (-value).log1p()
        residual = (logit - self.loc) / self.scale
        normal = -0.5 * residual.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)
        return normal - value.log() - (-value).log1p()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw a Gaussian and squash it."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        number = torch.finfo(noise.dtype)
        # A number of the type is 1 long before the real one is.
        squashed = torch.sigmoid(self.loc + self.scale * noise)
        return squashed.clamp(min=number.tiny, max=1 - number.eps / 2)


@register_kl(LogitNormal, LogitNormal)
def _kl_of_logit_normals(p: LogitNormal, q: LogitNormal) -> Tensor:
    # One and the same map squashes both, so their divergence is that of the Gaussians.
    return kl_divergence(dist.Normal(p.loc, p.scale), dist.Normal(q.loc, q.scale))


_SMALL = 0.5
_SMALLEST = 1e-2
_SHARP = 30.0
_LAST_NODE = 8.5
_NUM_NODES = 256
# log(sinh(h) / h) and its derivative coth(h) - 1/h by powers of h**2, exact to 1e-14 up to 1/4.
_LOG_SINHC = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775)
_LANGEVIN = (1 / 3, -1 / 45, 2 / 945, -1 / 4725, 2 / 93555)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = total * x + coefficient
    return total


def _apart(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where |h| is small, and h made harmless for the one and for the other formula."""
    small = h.abs() < _SMALL / 2
    return small, torch.where(small, h, 0.0), torch.where(small, 1.0, h)


def _log_sinhc(h: Tensor) -> Tensor:
    small, near, far = _apart(h)
    series = near.square() * _polynomial(_LOG_SINHC, near.square())
    size = far.abs()
    exact = size + torch.log1p(-torch.exp(-2 * size)) - (2 * size).log()
    return torch.where(small, series, exact)


def _langevin(h: Tensor) -> Tensor:
    small, near, far = _apart(h)
    series = near * _polynomial(_LANGEVIN, near.square())
    return torch.where(small, series, 1 / torch.tanh(far) - 1 / far)


def _quantile(logits: Tensor, u: Tensor) -> Tensor:
    """Return log(1 + u (exp(a) - 1)) / a for logits a <= 0."""
    u = u.clamp(max=1 - torch.finfo(u.dtype).eps / 2)
    small = logits.abs() < _SMALLEST
    near, far = torch.where(small, logits, 0.0), torch.where(small, -1.0, logits)
    spread = u * (1 - u)
    # The cumulants of a Bernoulli variable of probability u.
    series = u + spread * near * (1 / 2 + near * ((1 - 2 * u) / 6 + near * (1 - 6 * spread) / 24))
    return torch.where(small, series, torch.log1p(u * torch.expm1(far)) / far)
