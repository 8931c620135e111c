"""Scales of likelihoods over real numbers that the network does not predict: shared or optimal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.arguments import at_the_door
from pyro_vae.components.conditional import Shape
from pyro_vae.distributions import positive, raw_at_scale

__all__ = [
    "OptimalScale",
    "PerDimensionScale",
    "Scale",
    "SharedScale",
    "built_scale",
    "deviation_of",
    "mean_of",
    "raw_spread",
    "without_missing",
]


class Scale(nn.Module):
    """A scale that does not depend on the latents; ``forward`` returns it."""

    def forward(self) -> Tensor:
        """Return the scale, which broadcasts against one event."""
        raise NotImplementedError

    def start_at(self, deviation: Tensor) -> None:
        """Start at the standard deviation of data, ``event_shape``, unless a start is given."""
        raise NotImplementedError

    def measured(self, units: Tensor) -> None:
        """Convert the given start into units of the data, ``event_shape``."""
        raise NotImplementedError


class SharedScale(Scale):
    """One learned number for all data and all dimensions, in units of the data.

    Args:
        event_shape: The shape of one event.
        initial: Where it starts, in the data's own units (their root mean square, where columns
            have several); None: 1, or the standard deviation of the training data.
        min_scale: The smallest that it can become, in standard deviations of these data.

    Raises:
        ValueError: If ``initial`` is not above ``min_scale``, or that not above zero.
    """

    @at_the_door
    def __init__(
        self, event_shape: Shape, *, initial: float | None = None, min_scale: float = 1e-3
    ) -> None:
        super().__init__()
        _check(initial, min_scale)
        started = torch.full((), 1.0 if initial is None else float(initial))
        self.raw = nn.Parameter(raw_at_scale(started, floor=min_scale))
        self.min_scale = min_scale
        self._initial = initial

    def forward(self) -> Tensor:
        """Return the scale, a scalar."""
        return positive(self.raw, floor=self.min_scale)

    @torch.no_grad()
    def start_at(self, deviation: Tensor) -> None:
        """Start at the standard deviation of data about their mean, unless a start is given."""
        if self._initial is None:
            self.raw.copy_(raw_at_scale(deviation.square().mean().sqrt(), floor=self.min_scale))

    @torch.no_grad()
    def measured(self, units: Tensor) -> None:
        """Convert the given start into units of the data."""
        if self._initial is not None:
            typical = units.square().mean().sqrt()
            self.raw.copy_(raw_at_scale(self._initial / typical, floor=self.min_scale))


class PerDimensionScale(Scale):
    """A learned number for each dimension, the same for all data.

    Args:
        event_shape: The shape of one event.
        initial: Where all of them start, in the data's own units; None: 1, or the standard
            deviations of the training data.
        min_scale: The smallest that one can become, in standard deviations of these data.

    Raises:
        ValueError: If ``initial`` is not above ``min_scale``, or that not above zero.
    """

    @at_the_door
    def __init__(
        self, event_shape: Shape, *, initial: float | None = None, min_scale: float = 1e-3
    ) -> None:
        super().__init__()
        _check(initial, min_scale)
        started = torch.full(event_shape, 1.0 if initial is None else float(initial))
        self.raw = nn.Parameter(raw_at_scale(started, floor=min_scale))
        self.min_scale = min_scale
        self._initial = initial

    def forward(self) -> Tensor:
        """Return the scales, ``event_shape``."""
        return positive(self.raw, floor=self.min_scale)

    @torch.no_grad()
    def start_at(self, deviation: Tensor) -> None:
        """Start at the standard deviations of data, unless a start is given."""
        if self._initial is None:
            self.raw.copy_(raw_at_scale(deviation, floor=self.min_scale))

    @torch.no_grad()
    def measured(self, units: Tensor) -> None:
        """Convert the given start into units of the data."""
        if self._initial is not None:
            self.raw.copy_(raw_at_scale(self._initial / units, floor=self.min_scale))


class OptimalScale(Scale):
    r"""The scale that the data ask for: the root of the mean squared error, in closed form.

    .. math:: \sigma^2 \leftarrow (1 - r)\, \sigma^2 + r\, \overline{(x - \mu)^2}

    Among all shared scales, the root of the mean squared error has the largest likelihood. A scale
    that is computed from the very datum it scores is no density's, so it is kept as a number: each
    training batch is scored under what the batches before it gave, and moves it afterwards.
    In evaluation mode it stays as it is. Every reported number is thus the bound of a density.

    Args:
        event_shape: The shape of one event.
        initial: Where it starts, in the data's own units (their root mean square, where columns
            have several); None: 1, or the standard deviation of the training data.
        rate: r, the weight of one batch.
        min_scale: The smallest that it can become, in standard deviations of these data.

    Raises:
        ValueError: If ``initial`` is not above ``min_scale``, that not above zero, or ``rate`` not
            between 0 and 1.

    References:
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin, Daniilidis & Levine,
        2021)
    """

    variance: Tensor

    @at_the_door
    def __init__(
        self,
        event_shape: Shape,
        *,
        initial: float | None = None,
        rate: float = 0.1,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__()
        if not 0 < rate <= 1:
            raise ValueError(f"rate={rate}: the weight of a batch is above 0 and at most 1")
        _check(initial, min_scale)
        started = 1.0 if initial is None else float(initial)
        self.register_buffer("variance", torch.tensor(started**2))
        self.rate = rate
        self.min_scale = min_scale
        self._initial = initial

    def forward(self) -> Tensor:
        """Return the scale, a scalar."""
        # A copy: scoring a batch under it changes it in place.
        return self.variance.clone().sqrt().clamp(min=self.min_scale)

    @torch.no_grad()
    def start_at(self, deviation: Tensor) -> None:
        """Start at the standard deviation of data about their mean, unless a start is given."""
        if self._initial is None:
            self.variance.copy_(deviation.square().mean())

    @torch.no_grad()
    def measured(self, units: Tensor) -> None:
        """Convert the given start into units of the data."""
        if self._initial is not None:
            self.variance.copy_(self._initial**2 / units.square().mean())

    @torch.no_grad()
    def follow(self, squared_error: Tensor) -> None:
        """Move towards the mean of squared errors, in training mode."""
        if self.training:
            self.variance.lerp_(squared_error.mean().to(self.variance), self.rate)

    def normal(self, loc: Tensor) -> dist.Normal:
        """Return the Normal around ``loc`` that this scale follows when it scores data."""
        return distributions.FollowedNormal(loc, self(), self.follow)


def built_scale(
    event_shape: Shape, scale: float | Callable[[Shape], Scale] | None
) -> float | Scale | None:
    """Return a scale as a family keeps it: a number, a module, or None where it is predicted.

    Raises:
        ValueError: If it is a number that is not positive.
    """
    if callable(scale):
        return scale(event_shape)
    if scale is not None and not scale > 0:
        raise ValueError(f"scale={scale}: the scale of a Normal is positive")
    return None if scale is None else float(scale)


def raw_spread(family: Any, data: Tensor) -> Tensor:
    """Return the raw scale, ``event_shape``, of the standard deviation of data, or of one.

    A scale that is a module of the family's is started there.

    Args:
        family: Has a ``scale`` and a ``min_scale``.
        data: In the units of the scale, ``[N, *event_shape]``.
    """
    deviation = deviation_of(data)
    if deviation is None:
        return torch.zeros_like(data[0])
    if isinstance(family.scale, Scale):
        family.scale.start_at(deviation)
    return raw_at_scale(deviation, floor=family.min_scale)


def mean_of(data: Tensor) -> Tensor:
    """Return the mean of each number of a datum, ``event_shape``; NaN is missing."""
    return data.nanmean(0).nan_to_num()


def without_missing(data: Tensor, *, unknown: float) -> Tensor:
    """Return the known values of each number of a datum, repeated in the places of missing ones.

    Rows are mixed, which a family over independent numbers does not see.

    Args:
        data: ``[N, *event_shape]``; NaN is missing.
        unknown: What stands for a number that is known of no datum.
    """
    flat = data.flatten(1)
    missing = flat.isnan()
    if not bool(missing.any()):
        return data
    known = flat.gather(0, missing.byte().argsort(dim=0, stable=True))
    num_known = missing.logical_not().sum(0).clamp(min=1)
    again = torch.arange(len(flat), device=flat.device).unsqueeze(1) % num_known
    return known.gather(0, again).reshape(data.shape).nan_to_num(unknown)


def deviation_of(data: Tensor) -> Tensor | None:
    """Return the standard deviation of each number of a datum, but none far below the average.

    Of a single row, and of numbers that are not finite, there is none.
    """
    data = without_missing(data, unknown=0.5)
    if len(data) < 2 or not bool(data.isfinite().all()):
        return None
    deviation = data.std(0, correction=0)
    overall = deviation.square().mean().sqrt()
    return deviation.clamp(min=0.1 * float(overall)) if overall > 0 else torch.ones_like(deviation)


def _check(initial: float | None, min_scale: float) -> None:
    if not min_scale > 0:
        raise ValueError(f"min_scale={min_scale}: the smallest scale is positive")
    if initial is not None and not initial > min_scale:
        raise ValueError(f"initial={initial}: a scale starts above min_scale={min_scale}")
