"""Autoregressive families of discrete vectors: each entry given the entries before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.arguments import at_the_door
from pyro_vae.components.conditional import Distribution, Family, Shape
from pyro_vae.components.flows import widths
from pyro_vae.components.images import log_frequencies
from pyro_vae.components.likelihoods import Bernoulli
from pyro_vae.components.networks.transformer import CausalTransformer

__all__ = ["AutoregressiveBernoulli", "AutoregressiveCategorical"]


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

    def raw_from(self, data: Tensor) -> Tensor | None:
        """Return the logits of the data's means, and a context of zeros."""
        logits = Bernoulli(self.event_shape).raw_from(data).flatten()
        return torch.cat([logits, logits.new_zeros(self.raw_shape[0] - len(logits))])


class AutoregressiveCategorical(Family):
    r"""Autoregressive integers 0..K-1, such as codes of a codebook on a grid, by one transformer.

    .. math:: p(z) = \prod_m \mathrm{Categorical}\big(z_m; \alpha_m + f_m(z_{<m})\big)

    Places are in the order of memory, an image's row by row. A probability costs one pass of the
    causal network, a sample M passes in turn. Raw numbers are the logits :math:`\alpha`, ``[*batch,
    K, *event_shape]``; they start at the logarithm of how often each integer occurs at each place.
    Samples carry no gradient.

    Args:
        event_shape: The shape of one event, of M places.
        num_categories: The number of categories, K.
        width: How many numbers stand for a place in the network.
        num_heads: The number of attention heads, which share the width.
        num_layers: How many blocks of attention and dense layers there are.

    Raises:
        ValueError: If there are fewer than two categories, a size is no positive integer, or the
            heads cannot share the width.

    References:
        Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017)
        Attention Is All You Need (Vaswani et al., 2017)
    """

    roles = ("prior",)
    data = "levels and categories"
    example: ClassVar = {"num_categories": 3, "width": 4, "num_heads": 2, "num_layers": 1}

    @at_the_door
    def __init__(
        self,
        event_shape: Shape,
        *,
        num_categories: int = 256,
        width: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
    ) -> None:
        super().__init__(event_shape, raw_shape=(num_categories, *event_shape))
        if num_categories < 2:
            raise ValueError(
                f"num_categories={num_categories}: an AutoregressiveCategorical has 2 or more"
            )
        self.num_categories = num_categories
        self.network = CausalTransformer(
            num_categories, math.prod(event_shape),
            width=width, num_heads=num_heads, num_layers=num_layers,
        )  # fmt: skip

    def forward(self, raw: Tensor) -> Distribution:
        """Return the distribution of ``raw``, ``[*batch, K, *event_shape]``."""
        logits = raw.flatten(raw.dim() - len(self.event_shape)).movedim(-2, -1)
        return distributions.AutoregressiveCategorical(self.network, logits, self.event_shape)

    def raw_from(self, data: Tensor) -> Tensor | None:
        """Return the logarithms of how often each category occurs at each place."""
        return log_frequencies(data, self.num_categories)

    def extra_repr(self) -> str:
        """Show the event's shape and the number of categories."""
        return f"event_shape={self.event_shape}, num_categories={self.num_categories}"
