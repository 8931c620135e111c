"""Likelihoods: families over data, each a normalised density or probability mass."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.arguments import at_the_door
from pyro_vae.components.conditional import (
    Distribution,
    Family,
    Shape,
    unbound,
)
from pyro_vae.components.networks import Standardize
from pyro_vae.components.scales import OptimalScale, Scale, built_scale, mean_of, raw_spread
from pyro_vae.distributions import positive

__all__ = ["Bernoulli", "Binomial", "Normal"]

# A mean of exactly 0 or 1 in the training data must not start a logit at infinity.
_SMALLEST_PROBABILITY = 1e-3


class Bernoulli(Family):
    r"""Independent binary values, :math:`\prod_d \theta_d^{x_d} (1 - \theta_d)^{1 - x_d}`.

    Raw numbers are logits. For data in {0, 1}: grey values have to be binarised first.
    """

    roles = ("likelihood", "prior", "posterior")
    data = "bits"
    synonyms = ("BCE",)

    @at_the_door
    def __init__(self, event_shape: Shape) -> None:
        super().__init__(event_shape, raw_shape=(1, *event_shape))

    def forward(self, raw: Tensor) -> Distribution:
        """Return the Bernoulli with logits ``raw``, ``[*batch, 1, *event_shape]``."""
        axis = -1 - len(self.event_shape)
        return dist.Bernoulli(logits=raw.squeeze(axis)).to_event(len(self.event_shape))

    def raw_from(self, data: Tensor) -> Tensor:
        """Return the logits of the data's means."""
        probability = mean_of(data).clamp(_SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
        return torch.logit(probability).unsqueeze(0)


class Binomial(Family):
    r"""Independent counts out of ``total_count``, :math:`\binom{n}{x} \theta^x (1 - \theta)^{n-x}`.

    Exact for grey values that count something, such as the black cells in each block of a scan.
    Raw numbers are logits.

    Args:
        event_shape: The shape of one datum.
        total_count: The largest value, n.
    """

    roles = ("likelihood", "prior", "posterior")
    data = "counts"

    @at_the_door
    def __init__(self, event_shape: Shape, *, total_count: int = 16) -> None:
        super().__init__(event_shape, raw_shape=(1, *event_shape))
        if total_count < 1:
            raise ValueError(f"total_count={total_count}: a Binomial counts up to 1 or more")
        self.total_count = total_count

    def forward(self, raw: Tensor) -> Distribution:
        """Return the Binomial with logits ``raw``, ``[*batch, 1, *event_shape]``."""
        logits = raw.squeeze(-1 - len(self.event_shape))
        return dist.Binomial(self.total_count, logits=logits).to_event(len(self.event_shape))

    def raw_from(self, data: Tensor) -> Tensor:
        """Return the logits of the data's means, as shares of ``total_count``."""
        probability = (mean_of(data) / self.total_count).clamp(
            _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY
        )
        return torch.logit(probability).unsqueeze(0)

    def extra_repr(self) -> str:
        """Show the event's shape and the largest count."""
        return f"event_shape={self.event_shape}, total_count={self.total_count}"


class Normal(Family):
    r"""Independent real values, :math:`\prod_d N(x_d; \mu_d, \sigma_d^2)`.

    Raw numbers are locations, and scales where none is given. A predicted scale is bounded below,
    since a density over data that lie on a grid has no upper bound otherwise.

    Args:
        event_shape: The shape of one datum.
        scale: A fixed scale, in the data's own units; a class such as ``SharedScale``,
            ``PerDimensionScale`` or ``OptimalScale``; None: predicted for every dimension.
        min_scale: The smallest predicted scale, in standard deviations of the data that the model
            has met.

    Raises:
        ValueError: If a scale is not positive.
    """

    roles = ("likelihood", "posterior", "prior")
    synonyms = ("Gaussian",)
    near: ClassVar = {
        "MSE": "half of the squared error is, but for a constant, the negative log-density of "
        "Normal(scale=1.0)",
    }

    @at_the_door
    def __init__(
        self,
        event_shape: Shape,
        *,
        scale: float | Callable[[Shape], Scale] | None = None,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(event_shape, raw_shape=(2 if scale is None else 1, *event_shape))
        if not min_scale > 0:
            raise ValueError(f"min_scale={min_scale}: the smallest scale is positive")
        self.scale = built_scale(self.event_shape, scale)
        if isinstance(self.scale, float):
            self.constant_units = Standardize.unknown(self.event_shape)
        self.min_scale = min_scale

    def forward(self, raw: Tensor) -> Distribution:
        """Return the Normal of ``raw``, ``[*batch, 1 or 2, *event_shape]``."""
        loc, *raw_scale = unbound(self, raw)
        if isinstance(self.scale, OptimalScale):
            return self.scale.normal(loc).to_event(len(self.event_shape))
        if isinstance(self.scale, Scale):
            scale: Tensor | float = self.scale()
        elif self.scale is None:
            scale = positive(raw_scale[0], floor=self.min_scale)
        else:
            scale = (
                self.scale / self.constant_units.scale if self.constant_units.known else self.scale
            )
        return dist.Normal(loc, scale).to_event(len(self.event_shape))

    def raw_from(self, data: Tensor) -> Tensor:
        """Return the mean of the data, and start the scale at their standard deviation, or one."""
        loc = mean_of(data)
        return torch.stack([loc, raw_spread(self, data)][: self.raw_shape[0]])

    def measured(self, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Convert a fixed scale, or the given start of a learned one, into units of the data."""
        if isinstance(self.scale, Scale):
            self.scale.measured(scale)
        elif self.scale is not None:
            self.constant_units.take(loc, scale)
        return loc, scale
