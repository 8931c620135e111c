"""Priors: families that need no raw numbers. Any other family, without a context, is one too."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.arguments import at_the_door
from pyro_vae.components.conditional import Conditional, Distribution, Family, Shape

__all__ = ["StandardNormal", "learned"]


class StandardNormal(Family):
    r"""The standard normal prior of Kingma & Welling, :math:`p(z) = N(z; 0, I)`.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    """

    roles = ("prior",)

    loc: Tensor
    scale: Tensor

    @at_the_door
    def __init__(self, event_shape: Shape) -> None:
        super().__init__(event_shape, raw_shape=(0,))
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("scale", torch.ones(self.event_shape), persistent=False)

    def forward(self, raw: Tensor) -> Distribution:
        """Return N(0, I); there are no raw numbers."""
        return dist.Normal(self.loc, self.scale).to_event(len(self.event_shape))


def learned(family: Family) -> Family | Conditional:
    """Return the prior of this family: its parameters are learned where it has any."""
    return family if family.is_fixed else Conditional(family)
