"""Autoregressive families of discrete vectors: each entry given the entries before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.arguments import at_the_door
from pyro_vae.components.conditional import Distribution, Family, Shape
from pyro_vae.components.flows import widths

__all__ = ["AutoregressiveBernoulli"]


class AutoregressiveBernoulli(Family):
    r"""Autoregressive binary values by one masked network: MADE.

    .. math:: p(z) = \prod_d \mathrm{Bernoulli}\big(z_d; \sigma(\alpha_d + f_d(z_{<d}, h))\big)

    The discrete sibling of one step of ``MaskedAutoregressive``: a probability costs one pass of
    the network, a sample D passes in turn. Raw numbers are ``[*batch, D + num_context]`` for D
    entries: the logits :math:`\alpha` and the context h. Samples carry no gradient.

    Args:
        event_shape: The shape of one event, of D >= 2 entries in the order of memory.
        hidden_dims: The widths of the network's hidden layers, D or more each; None: one layer of
            3 D, but 64 at least.
        num_context: The size of h; h is a function of the data where this is a posterior.

    Raises:
        ValueError: If there are fewer than two entries, a layer is too narrow, or ``num_context``
            is negative.

    References:
        The Neural Autoregressive Distribution Estimator (Larochelle & Murray, 2011)
        MADE: Masked Autoencoder for Distribution Estimation (Germain, Gregor, Murray &
        Larochelle, 2015)
    """

    data = "bits"

    @at_the_door
    def __init__(
        self,
        event_shape: Shape,
        *,
        hidden_dims: Sequence[int] | None = None,
        num_context: int = 16,
    ) -> None:
        num_dims, hidden = widths(
            self, event_shape, hidden_dims, num_context, masked=True, instead="Bernoulli"
        )
        super().__init__(event_shape, raw_shape=(num_dims + num_context,))
        self.network = ConditionalAutoRegressiveNN(
            num_dims, num_context, hidden, param_dims=[1], permutation=torch.arange(num_dims),
            nonlinearity=nn.SiLU(),
        )  # fmt: skip

    def forward(self, raw: Tensor) -> Distribution:
        """Return the distribution of ``raw``, ``[*batch, D + num_context]``."""
        num_dims = math.prod(self.event_shape)
        logits, context = raw[..., :num_dims], raw[..., num_dims:]
        return distributions.AutoregressiveBernoulli(
            self.network, logits, context, self.event_shape
        )
