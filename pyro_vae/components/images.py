"""Likelihoods of pixels: densities on the unit interval, and probabilities of levels."""

from __future__ import annotations

from collections.abc import Callable
from math import exp

import torch
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import at_the_door
from pyro_vae.components.conditional import (
    Distribution,
    Family,
    Shape,
    unbound,
)
from pyro_vae.components.scales import (
    OptimalScale,
    Scale,
    built_scale,
    mean_of,
    raw_spread,
    without_missing,
)
from pyro_vae.distributions import positive

__all__ = [
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "LogitNormal",
    "check_levels",
    "in_levels",
    "log_frequencies",
]

_SMALLEST_PROBABILITY = 1e-3
_SMALLEST_SCALE = exp(-7)  # as published, in half ranges
_LARGEST_LOGIT = 80.0


class ContinuousBernoulli(Family):
    r"""Independent values in [0, 1], :math:`\prod_d C(\eta_d)\, e^{\eta_d x_d}`, normalised.

    Raw numbers are the logits :math:`\eta`. A density: its numbers compare with those of other
    densities on [0, 1] (dequantised pixels), not with a Bernoulli's.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem & Cunningham, 2019)
    """

    roles = ("likelihood",)
    data = "numbers between 0 and 1"

    @at_the_door
    def __init__(self, event_shape: Shape) -> None:
        super().__init__(event_shape, raw_shape=(1, *event_shape))

    def forward(self, raw: Tensor) -> Distribution:
        """Return the density with logits ``raw``, ``[*batch, 1, *event_shape]``."""
        (logits,) = unbound(self, raw)
        return distributions.ContinuousBernoulli(logits).to_event(len(self.event_shape))

    def raw_from(self, data: Tensor) -> Tensor:
        """Return the logits whose density has the mean of the data, by bisection."""
        mean = mean_of(data)
        low = torch.full_like(mean, -_LARGEST_LOGIT)
        high = -low
        for _ in range(60):
            middle = (low + high) / 2
            below = distributions.ContinuousBernoulli(middle).mean < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return ((low + high) / 2).unsqueeze(0)


class LogitNormal(Family):
    r"""Independent squashed Gaussians in (0, 1): :math:`\mathrm{logit}(x) \sim N(\mu, s^2)`.

    Raw numbers are locations, and scales where none is given, in logits.

    Args:
        event_shape: The shape of one datum.
        scale: A fixed scale; a class such as ``SharedScale`` or ``PerDimensionScale``; None:
            predicted for every dimension.
        min_scale: The smallest predicted scale.

    Raises:
        ValueError: If a scale is not positive, or an ``OptimalScale``, which is a Normal's.
    """

    roles = ("likelihood",)
    data = "numbers between 0 and 1"

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
        if isinstance(self.scale, OptimalScale):
            raise ValueError("scale=OptimalScale is of a Normal: give a LogitNormal SharedScale")
        self.min_scale = min_scale

    def forward(self, raw: Tensor) -> Distribution:
        """Return the density of ``raw``, ``[*batch, 1 or 2, *event_shape]``."""
        loc, *raw_scale = unbound(self, raw)
        if isinstance(self.scale, Scale):
            scale = self.scale()
        elif self.scale is None:
            scale = positive(raw_scale[0], floor=self.min_scale)
        else:
            scale = torch.full_like(loc, self.scale)
        return distributions.LogitNormal(loc, scale).to_event(len(self.event_shape))

    def raw_from(self, data: Tensor) -> Tensor:
        """Return the mean of the data's logits, and start the scale at their deviation, or one."""
        known = without_missing(data, unknown=0.5)
        logits = _logit(known, typical=known.mean(0))
        return torch.stack([logits.mean(0), raw_spread(self, logits)][: self.raw_shape[0]])


class Categorical(Family):
    """Independent integers 0..K-1 with free probabilities.

    Exact for 8-bit pixels with 256 categories; for latents, symbols and columns of a table as well.
    Raw numbers are logits; they start at the logarithm of how often each category
    occurs at each place of the data.

    Args:
        event_shape: The shape of one event.
        num_categories: The number of categories, K.

    Raises:
        ValueError: If there are fewer than two categories.
    """

    roles = ("likelihood",)
    data = "levels and categories"
    synonyms = ("CrossEntropy",)

    @at_the_door
    def __init__(self, event_shape: Shape, *, num_categories: int = 256) -> None:
        super().__init__(event_shape, raw_shape=(num_categories, *event_shape))
        if num_categories < 2:
            raise ValueError(f"num_categories={num_categories}: give a Categorical 2 or more")
        self.num_categories = num_categories

    def forward(self, raw: Tensor) -> Distribution:
        """Return the probabilities of ``raw``, ``[*batch, K, *event_shape]``."""
        logits = raw.movedim(-1 - len(self.event_shape), -1)
        return distributions.Categorical(logits).to_event(len(self.event_shape))

    def raw_from(self, data: Tensor) -> Tensor | None:
        """Return the logarithms of how often each category occurs at each place.

        Data outside the support have none: they are refused, with their index, before training.
        """
        return log_frequencies(data, self.num_categories)

    def extra_repr(self) -> str:
        """Show the event's shape and the number of categories."""
        return f"event_shape={self.event_shape}, num_categories={self.num_categories}"


def log_frequencies(data: Tensor, num_categories: int) -> Tensor | None:
    """Return how often each of K categories occurs at each place of ``[N, *event_shape]``.

    Logarithms, ``[K, *event_shape]``; None of data that are no such categories.
    """
    data = without_missing(data, unknown=1.0)
    known = (data >= 0) & (data < num_categories) & (data == data.round())
    if not bool(known.all()):
        return None
    counts = torch.zeros((num_categories, *data.shape[1:]), device=data.device)
    counts.scatter_add_(0, data.long(), torch.ones_like(data, dtype=counts.dtype))
    # As if each category had been seen once more, in all places together.
    prior = counts.flatten(1).sum(1).add(1) / (counts.sum() + num_categories)
    prior = prior.reshape(-1, *[1] * (data.dim() - 1))
    frequencies = (counts + num_categories * prior) / (len(data) + num_categories)
    return frequencies.log()


class DiscretizedLogistic(Family):
    r"""Independent integers 0..levels, logistic variables that are rounded; sums to one exactly.

    Raw numbers are locations and scales in half ranges, -1 being zero and 1 the largest value.

    Args:
        event_shape: The shape of one datum.
        levels: The largest value.

    Raises:
        ValueError: If ``levels`` is less than one.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
    """

    roles = ("likelihood",)
    data = "levels and categories"

    @at_the_door
    def __init__(self, event_shape: Shape, *, levels: int = 255) -> None:
        super().__init__(event_shape, raw_shape=(2, *event_shape))
        check_levels(levels)
        self.levels = levels

    def forward(self, raw: Tensor) -> Distribution:
        """Return the probabilities of ``raw``, ``[*batch, 2, *event_shape]``."""
        loc, scale = in_levels(*unbound(self, raw), levels=self.levels)
        logistic = distributions.DiscretizedLogistic(loc, scale, self.levels)
        return logistic.to_event(len(self.event_shape))

    def raw_from(self, data: Tensor) -> Tensor:
        """Return the mean of the data for a location, and a scale of a tenth of the range."""
        loc = mean_of(data) / (self.levels / 2) - 1
        return torch.stack([loc, torch.full_like(loc, _RAW_TENTH)])

    def extra_repr(self) -> str:
        """Show the event's shape and the largest value."""
        return f"event_shape={self.event_shape}, levels={self.levels}"


class DiscretizedLogisticMixture(Family):
    r"""A mixture of discretized logistics for each pixel, channels coupled: that of PixelCNN++.

    For images of several channels, ``(C, height, width)``, all channels of a pixel share the
    component, in which each sees the channels before it:

    .. math:: P(x) = \sum_k \pi_k \prod_c P(x_c \mid \mu_{kc} + \textstyle\sum_{j < c} a_{kcj} x_j,
        s_{kc})

    Events of one channel or of another shape are mixtures of each number by itself. Raw numbers
    are, for each component, a logit, C locations and scales in half ranges, and C (C - 1) / 2
    couplings, which tanh bounds.

    Args:
        event_shape: The shape of one datum.
        num_components: The number of components, K.
        levels: The largest value.

    Raises:
        ValueError: If ``levels`` or ``num_components`` is less than one.

    References:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
        Modifications (Salimans, Karpathy, Chen & Kingma, 2017)
    """

    roles = ("likelihood",)
    data = "levels and categories"

    @at_the_door
    def __init__(self, event_shape: Shape, *, num_components: int = 10, levels: int = 255) -> None:
        if num_components < 1:
            raise ValueError(f"num_components={num_components}: a mixture has 1 or more")
        check_levels(levels)
        coupled = len(event_shape) > 2 and event_shape[0] > 1
        channels, pixels = (
            (event_shape[0], tuple(event_shape[1:])) if coupled else (1, tuple(event_shape))
        )
        self._sizes = (1, channels, channels, channels * (channels - 1) // 2)
        super().__init__(event_shape, raw_shape=(num_components * sum(self._sizes), *pixels))
        self.num_components = num_components
        self.levels = levels
        self._coupled = coupled

    def forward(self, raw: Tensor) -> Distribution:
        """Return the probabilities of ``raw``, ``[*batch, K (1 + 2 C + C (C - 1) / 2), ...]``."""
        axis = -len(self.raw_shape)
        parts = raw.unflatten(axis, (self.num_components, -1)).split(self._sizes, axis)
        logits, raw_loc, raw_scale, raw_coupling = parts
        loc, scale = in_levels(raw_loc, raw_scale, levels=self.levels)
        if self._coupled:
            return distributions.CoupledLogisticMixture(
                logits.squeeze(axis), loc, scale, raw_coupling.tanh(), self.levels,
                num_pixel_axes=len(self.event_shape) - 1,
            )  # fmt: skip
        logits, loc, scale = (p.squeeze(axis).movedim(axis, -1) for p in (logits, loc, scale))
        mixture = distributions.DiscretizedLogisticMixture(logits, loc, scale, self.levels)
        return mixture.to_event(len(self.event_shape))

    def raw_from(self, data: Tensor) -> Tensor:
        """Return locations spread about the mean, and scales of a tenth of the range."""
        channels = self._sizes[1]
        loc = (mean_of(data) / (self.levels / 2) - 1).reshape(1, channels, *self.raw_shape[1:])
        spread = torch.linspace(-0.5, 0.5, self.num_components) if self.num_components > 1 else 0
        spread = torch.as_tensor(spread).to(loc).reshape(-1, *[1] * (loc.dim() - 1))
        raw = loc.new_zeros(self.num_components, sum(self._sizes), *self.raw_shape[1:])
        raw[:, 1 : 1 + channels] = loc + spread
        raw[:, 1 + channels : 1 + 2 * channels] = _RAW_TENTH
        return raw.flatten(0, 1)

    def extra_repr(self) -> str:
        """Show the event's shape, the number of components and the largest value."""
        return (
            f"event_shape={self.event_shape}, num_components={self.num_components}, "
            f"levels={self.levels}"
        )


_RAW_TENTH = -2.05  # a fifth of a half range


def _logit(probability: Tensor, *, typical: Tensor) -> Tensor:
    """Return finite logits of numbers near ``typical``, also where that is nearly zero or one."""
    low = _SMALLEST_PROBABILITY * (2 * typical).clamp(1e-6, 1)
    high = 1 - _SMALLEST_PROBABILITY * (2 - 2 * typical).clamp(1e-4, 1)
    return torch.minimum(torch.maximum(probability, low), high).logit()


def check_levels(levels: int) -> None:
    """Refuse a largest value below one."""
    if levels < 1:
        raise ValueError(f"levels={levels}: the largest value is 1 or more")


def in_levels(raw_loc: Tensor, raw_scale: Tensor, *, levels: int) -> tuple[Tensor, Tensor]:
    """Return location and scale in levels, of raw numbers in half ranges."""
    half = levels / 2
    return half * (raw_loc + 1), half * positive(raw_scale, floor=_SMALLEST_SCALE)
