"""Families against posterior collapse (delta-VAE): the KL from the prior has a positive minimum.

Each commits by what it cannot express, whatever the network says: a prior whose numbers hang
together beside a posterior whose numbers do not, scales that stay below one, or means that vary
over the data by construction. No weight of the KL is needed, and the bound stays the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.arguments import at_the_door
from pyro_vae.components.conditional import Distribution, Family, Shape
from pyro_vae.distributions import positive

__all__ = ["AutoregressiveNormal", "BatchNormalizedNormal", "CommittedNormal"]

_SMALLEST_SCALE = 1e-3
# Of 1 - alpha^2, the variance of a step: below it densities lose too many digits in float32.
_SMALLEST_STEP = 1e-6


class AutoregressiveNormal(Family):
    r"""An AR(1) prior over the latents (delta-VAE), for posteriors whose latents are independent.

    .. math:: z_1 \sim N(0, I), \qquad z_t \sim N(\alpha z_{t-1}, (1 - \alpha^2) I)

    along the first axis of the event, T steps of D numbers. A normal with independent coordinates
    can come no nearer to it than

    .. math:: \frac{D}{2} \big((T - 2) \log(1 + \alpha^2) - \log(1 - \alpha^2)\big)

    nats, and :math:`\alpha` is chosen so that this is ``rate``. The posterior is
    ``DiagonalNormal``. There are no raw numbers.

    Args:
        event_shape: The shape of one latent, the first axis of which is the chain's.
        rate: The smallest KL of a ``DiagonalNormal`` posterior, in nats per datum.

    Raises:
        ValueError: If ``rate`` is negative or above what a chain of this length can commit to.

    References:
        Preventing Posterior Collapse with delta-VAEs (Razavi et al., 2019)
    """

    roles = ("prior",)
    near: ClassVar = {
        "DeltaVAE": "its prior is AutoregressiveNormal, for the posterior DiagonalNormal; of its "
        "other form, CommittedNormal is the posterior",
    }

    scale: Tensor

    @at_the_door
    def __init__(self, event_shape: Shape, *, rate: float = 2.0) -> None:
        super().__init__(event_shape, raw_shape=(0,))
        num_steps, num_units = event_shape[0], math.prod(event_shape[1:])

        def floor(log_step: float) -> float:
            """Return the smallest KL where 1 - alpha^2 is exp(log_step)."""
            inner = (num_steps - 2) * math.log(2 - math.exp(log_step))
            return 0.5 * num_units * (inner - log_step)

        most = floor(math.log(_SMALLEST_STEP)) if num_steps > 1 else 0.0
        _check_rate(rate, most, f"a chain of {num_steps} step(s) of {num_units} number(s)")
        log_step = _decreasing_root(floor, rate, math.log(_SMALLEST_STEP)) if rate else 0.0
        self.rate = rate
        self.register_buffer("scale", torch.tensor(math.exp(0.5 * log_step)), persistent=False)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the chain; there are no raw numbers."""
        return distributions.NormalChain(self.scale, self.event_shape)

    def extra_repr(self) -> str:
        """Show the event's shape and the rate."""
        return f"event_shape={self.event_shape}, rate={self.rate}"


class CommittedNormal(Family):
    r"""A normal posterior whose KL from N(0, I) has a positive minimum (delta-VAE).

    .. math::
        \mathrm{KL} = \sum_d \tfrac12 (\mu_d^2 + \sigma_d^2 - 1 - \log \sigma_d^2)
        \ge \tfrac{D}{2} (s^2 - 1 - \log s^2), \qquad \sigma_d \le s < 1,

    and s is chosen so that the right-hand side is ``rate``. Raw numbers are locations and the
    scales' logits between 0.001 and s. The prior is ``StandardNormal``.

    Args:
        event_shape: The shape of one latent.
        rate: The smallest KL from N(0, I), in nats per datum.

    Raises:
        ValueError: If ``rate`` is negative or above what so many latents can commit to.

    References:
        Preventing Posterior Collapse with delta-VAEs (Razavi et al., 2019), section 2
    """

    roles = ("posterior",)

    @at_the_door
    def __init__(self, event_shape: Shape, *, rate: float = 2.0) -> None:
        super().__init__(event_shape, raw_shape=(2, *event_shape))
        num_units = math.prod(event_shape)

        def floor(log_scale: float) -> float:
            return 0.5 * num_units * (math.expm1(2 * log_scale) - 2 * log_scale)

        least = math.log(_SMALLEST_SCALE)
        _check_rate(rate, floor(least), f"{num_units} normal latent(s) of scale {_SMALLEST_SCALE}")
        self.rate = rate
        self.largest_scale = math.exp(_decreasing_root(floor, rate, least)) if rate else 1.0

    def forward(self, raw: Tensor) -> Distribution:
        """Return the normal of ``raw``, ``[*batch, 2, *event_shape]``: location and raw scale."""
        loc, raw_scale = raw.unbind(-1 - len(self.event_shape))
        room = self.largest_scale - _SMALLEST_SCALE
        scale = _SMALLEST_SCALE + room * raw_scale.sigmoid()
        return dist.Normal(loc, scale).to_event(len(self.event_shape))

    def extra_repr(self) -> str:
        """Show the event's shape and the rate."""
        return f"event_shape={self.event_shape}, rate={self.rate}"


class BatchNormalizedNormal(Family):
    r"""A normal posterior with batch-normalised means, against posterior collapse.

    .. math::
        \mu_d = \gamma \, \frac{m_d - \mathrm{mean}(m_d)}{\mathrm{std}(m_d)} + \beta_d, \qquad
        \mathrm{E}_x[\mathrm{KL}] \ge \tfrac{D}{2} \gamma^2

    from a standard normal prior: the mean square of :math:`\mu_d` over a batch is
    :math:`\gamma^2 + \beta_d^2`. Raw numbers are m and raw scales. Each number has a learned
    :math:`\beta_d`; :math:`\gamma` is fixed. In evaluation mode, and for a batch of one datum,
    averages over the batches so far take the place of the batch's own.

    Args:
        event_shape: The shape of one latent.
        gamma: The standard deviation of the means over a batch, positive; a rate of r nats takes
            :math:`\sqrt{2 r / D}`.

    Raises:
        ValueError: If ``gamma`` is not positive.

    References:
        A Batch Normalized Inference Network Keeps the KL Vanishing Away (Zhu et al., 2020)
    """

    roles = ("posterior",)

    @at_the_door
    def __init__(self, event_shape: Shape, *, gamma: float = 0.5) -> None:
        super().__init__(event_shape, raw_shape=(2, *event_shape))
        if not 0 < gamma < math.inf:
            raise ValueError(f"gamma={gamma}: the spread of means is positive and finite")
        self.gamma = gamma
        self.norm = nn.BatchNorm1d(math.prod(event_shape), affine=False)
        self.beta = nn.Parameter(torch.zeros(event_shape))

    def forward(self, raw: Tensor) -> Distribution:
        """Return the normal of ``raw``, ``[*batch, 2, *event_shape]``: location and raw scale."""
        loc, raw_scale = raw.unbind(-1 - len(self.event_shape))
        rows = loc.reshape(-1, self.beta.numel())
        normalized = self.norm(rows) if len(rows) > 1 else self._of_history(rows)
        loc = self.gamma * normalized.reshape(loc.shape) + self.beta
        return dist.Normal(loc, positive(raw_scale)).to_event(len(self.event_shape))

    def _of_history(self, rows: Tensor) -> Tensor:
        mean, variance = self.norm.running_mean, self.norm.running_var
        return nn.functional.batch_norm(rows, mean, variance, eps=self.norm.eps)

    def extra_repr(self) -> str:
        """Show the event's shape and the spread of the means."""
        return f"event_shape={self.event_shape}, gamma={self.gamma}"


def _check_rate(rate: float, most: float, what: str) -> None:
    if not 0 <= rate < math.inf:
        raise ValueError(f"rate={rate}: the committed rate is 0 nats or more, and finite")
    if rate > most:
        raise ValueError(
            f"rate={rate}: {what} can commit to {most:.4g} nats at most; lower the rate, or take "
            "more latents"
        )


def _decreasing_root(f: Callable[[float], float], value: float, low: float) -> float:
    """Return where a decreasing function of negative numbers from ``low`` on has this value."""
    high = 0.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if f(middle) > value else (low, middle)
    return low
