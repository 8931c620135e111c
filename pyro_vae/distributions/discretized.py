"""Probabilities of integers 0..levels by the logistic distribution function: pixels as counted."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.utils import clamp_probs

__all__ = ["CoupledLogisticMixture", "DiscretizedLogistic", "DiscretizedLogisticMixture"]


class DiscretizedLogistic(dist.TorchDistribution):
    r"""A logistic variable, rounded to the nearest of the integers 0..levels.

    .. math:: P(x) = \sigma\Big(\frac{x + 1/2 - \mu}{s}\Big)
        - \sigma\Big(\frac{x - 1/2 - \mu}{s}\Big)

    The first bin reaches down to minus infinity and the last one up to infinity, so that the
    probabilities sum to one exactly. Their logarithms are computed without a difference, from

    .. math:: \sigma(b) - \sigma(a) = \sigma(b) \, \sigma(-a) \, (1 - e^{-(b - a)}),

    and stay finite, with finite gradients, however far x lies from :math:`\mu`.

    Args:
        loc: :math:`\mu`, in units of the levels, ``[*batch]``.
        scale: s, positive, in units of the levels, ``[*batch]``.
        levels: The largest value, at least 1.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
        Modifications (Salimans, Karpathy, Chen & Kingma, 2017)
    """

    arg_constraints: ClassVar[Any] = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(
        self, loc: Tensor, scale: Tensor, levels: int, *, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The integers 0..levels."""
        return constraints.integer_interval(0, self.levels)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with this batch shape."""
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return type(self)(loc, scale, self.levels, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Return the mean, the sum of the probabilities of values above 0, 1, ..., levels - 1."""
        total = torch.zeros_like(self.loc)
        for level in range(self.levels):  # one by one, so that memory does not grow
            total = total + torch.sigmoid((self.loc - level - 0.5) / self.scale)
        return total

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of integers, stored as floats or not."""
        if self._validate_args:
            self._validate_sample(value)
        return _log_prob(value, self.loc, self.scale, self.levels)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw a logistic variable and round it."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            return _rounded(self.loc.expand(shape), self.scale, self.levels)


class DiscretizedLogisticMixture(dist.MixtureSameFamily):
    """A mixture of discretized logistics, each number by itself.

    Args:
        logits: Of the components, ``[*batch, K]``.
        loc: ``[*batch, K]``, in units of the levels.
        scale: ``[*batch, K]``, positive, in units of the levels.
        levels: The largest value.
    """

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor, levels: int) -> None:
        super().__init__(dist.Categorical(logits=logits), DiscretizedLogistic(loc, scale, levels))

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The integers 0..levels."""
        return self.component_distribution.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with this batch shape."""
        shape = (*batch_shape, self.mixture_distribution.logits.shape[-1])
        part = self.component_distribution
        logits = self.mixture_distribution.logits.expand(shape)
        return type(self)(logits, part.loc.expand(shape), part.scale.expand(shape), part.levels)


class CoupledLogisticMixture(dist.TorchDistribution):
    r"""Pixels of several channels, each a mixture that sees the channels before it.

    All channels of a pixel share the component k, and within it the location of channel c is
    moved by the values that the earlier channels have taken, n being the largest value:

    .. math:: P(x) = \sum_k \pi_k \prod_c P(x_c \mid \mu_{kc} + \textstyle\sum_{j < c} a_{kcj}
        (x_j - n / 2),\; s_{kc})

    Memory grows with the components times the numbers of an image. There is no closed form of the
    mean.

    Args:
        logits: Of the components, ``[*batch, K, *pixels]``.
        loc: ``[*batch, K, C, *pixels]``, in units of the levels.
        scale: The same shape, positive, in units of the levels.
        coupling: ``[*batch, K, C (C - 1) / 2, *pixels]``: a, in the order (1, 0), (2, 0), (2, 1).
        levels: The largest value.

    References:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
        Modifications (Salimans, Karpathy, Chen & Kingma, 2017)
    """

    arg_constraints: ClassVar[Any] = {
        "logits": constraints.real,
        "loc": constraints.real,
        "scale": constraints.positive,
        "coupling": constraints.real,
    }

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        coupling: Tensor,
        levels: int,
        *,
        num_pixel_axes: int = 2,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.loc, self.scale, self.coupling = logits, loc, scale, coupling
        self.levels = levels
        self._channel_axis = -1 - num_pixel_axes
        self._event_axes = num_pixel_axes + 1
        batch, event = loc.shape[: -1 - self._event_axes], loc.shape[self._channel_axis :]
        super().__init__(batch, event, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """Arrays of the integers 0..levels."""
        return constraints.independent(
            constraints.integer_interval(0, self.levels), self._event_axes
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with this batch shape."""
        old = len(self.batch_shape)
        logits, loc, scale, coupling = (
            part.expand(*batch_shape, *part.shape[old:])
            for part in (self.logits, self.loc, self.scale, self.coupling)
        )
        pixel_axes = self._event_axes - 1
        return type(self)(
            logits,
            loc,
            scale,
            coupling,
            self.levels,
            num_pixel_axes=pixel_axes,
            validate_args=False,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of images ``[..., C, *pixels]``, ``[...]``."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.unsqueeze(-1 - self._event_axes)
        channels = list(value.unbind(self._channel_axis))
        loc = [self._loc(c, channels, self.loc, self.coupling) for c in range(len(channels))]
        stacked = torch.stack(torch.broadcast_tensors(*loc), self._channel_axis)
        parts = _log_prob(value, stacked, self.scale, self.levels).sum(self._channel_axis)
        mixed = parts + self.logits.log_softmax(self._channel_axis)
        pixels = mixed.logsumexp(self._channel_axis)
        return pixels.flatten(len(pixels.shape) - self._event_axes + 1).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw a component for each pixel, then its channels one after the other."""
        if len(sample_shape):
            return self.expand(torch.Size(sample_shape) + self.batch_shape).sample()
        with torch.no_grad():
            noise = -torch.log(-torch.log(clamp_probs(torch.rand_like(self.logits))))
            chosen = (self.logits + noise).argmax(self._channel_axis, keepdim=True)
            loc, scale, coupling = (
                torch.take_along_dim(
                    part, chosen.unsqueeze(self._channel_axis), -1 - self._event_axes
                ).squeeze(-1 - self._event_axes)
                for part in (self.loc, self.scale, self.coupling)
            )
            channels: list[Tensor] = []
            for c, part in enumerate(scale.unbind(self._channel_axis)):
                moved = self._loc(c, channels, loc, coupling)
                channels.append(_rounded(moved, part, self.levels))
            return torch.stack(channels, self._channel_axis)

    def channel_log_probs(self, before: Tensor) -> Tensor:
        """Return log P of each level of the next channel, ``[..., levels + 1, *pixels]``.

        Args:
            before: The channels before it, ``[..., 0 to C - 1, *pixels]``; they say how likely
                each component is.
        """
        axis = self._channel_axis
        channels = list(before.unsqueeze(-1 - self._event_axes).unbind(axis))
        log_weights = self.logits.log_softmax(axis)
        for c, value in enumerate(channels):
            loc = self._loc(c, channels, self.loc, self.coupling)
            log_weights = log_weights + _log_prob(
                value, loc, self.scale.select(axis, c), self.levels
            )
        c = len(channels)
        loc = self._loc(c, channels, self.loc, self.coupling).unsqueeze(axis - 1)
        scale = self.scale.select(axis, c).unsqueeze(axis - 1)
        level = torch.arange(self.levels + 1, dtype=loc.dtype, device=loc.device)
        parts = _log_prob(level.reshape(-1, *[1] * self._event_axes), loc, scale, self.levels)
        return (parts + log_weights.log_softmax(axis).unsqueeze(axis - 1)).logsumexp(axis)

    def _loc(self, c: int, channels: list[Tensor], loc: Tensor, coupling: Tensor) -> Tensor:
        """Return the locations of channel c, given the channels before it."""
        first = c * (c - 1) // 2
        total = loc.select(self._channel_axis, c)
        for j in range(c):
            slope = coupling.select(self._channel_axis, first + j)
            total = total + slope * (channels[j] - self.levels / 2)
        return total


def _log_prob(value: Tensor, loc: Tensor, scale: Tensor, levels: int) -> Tensor:
    first, last = value <= 0, value >= levels
    below = nn.functional.logsigmoid((value + 0.5 - loc) / scale)
    above = nn.functional.logsigmoid((loc - value + 0.5) / scale)
    width = torch.log(-torch.expm1(-1 / scale))
    inner = torch.where(first | last, 0.0, width)
    return inner + torch.where(last, 0.0, below) + torch.where(first, 0.0, above)


def _rounded(loc: Tensor, scale: Tensor, levels: int) -> Tensor:
    uniform = clamp_probs(torch.rand_like(loc))
    draw = loc + scale * (uniform.log() - (-uniform).log1p())
    return draw.round().clamp(0, levels)
