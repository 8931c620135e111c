"""Posteriors: families over real latents that can be sampled with a reparameterised gradient."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.components.conditional import Distribution, Family, Shape, positive

__all__ = ["DiagonalNormal"]


class DiagonalNormal(Family):
    r"""A normal with independent coordinates, :math:`N(z; \mu, \mathrm{diag}(\sigma^2))`.

    The mean-field encoder of Kingma & Welling; as a prior, its location and scale are learned.
    Raw numbers of zero give the standard normal.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    """

    def __init__(self, event_shape: Shape) -> None:
        super().__init__(event_shape, raw_shape=(2, *event_shape))

    def forward(self, raw: Tensor | None = None) -> Distribution:
        """Return the normal of ``raw``, ``[*batch, 2, *event_shape]``: location and raw scale."""
        if raw is None:
            raise ValueError("DiagonalNormal needs its raw parameters")
        loc, raw_scale = raw.unbind(-1 - len(self.event_shape))
        return dist.Normal(loc, positive(raw_scale)).to_event(len(self.event_shape))
