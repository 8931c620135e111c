"""Networks of topic models: from documents to topics, and from topics to words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door, built
from pyro_vae.components.networks.layers import Build, Rows, Shape, check_sizes, dense

__all__ = ["DocumentEncoder", "ProductOfExperts", "TopicMixture"]


class DocumentEncoder(nn.Module):
    """The encoder of ProdLDA: dense layers, dropout, and a batch norm of what comes out.

    The outputs have mean zero and variance one over a batch: no topic can start unused.

    Args:
        in_shape: The shape of one document, ``(V,)``.
        out_shape: The shape of one output.
        hidden: The widths of the hidden layers, from input to output.
        activation: The nonlinearity after each hidden layer.
        dropout: The probability that a number of the last hidden layer is left out in training.

    Raises:
        ValueError: If a size is no positive integer, or the probability is not in [0, 1).

    References:
        Autoencoding Variational Inference for Topic Models (Srivastava & Sutton, 2017)
    """

    roles = ("encoder", "network")

    @at_the_door
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        hidden: Sequence[int] = (100, 100),
        activation: Build = nn.Softplus,
        dropout: float = 0.6,
    ) -> None:
        super().__init__()
        check_sizes("hidden", hidden)
        self.rows = Rows(self, in_shape, out_shape)
        layers: list[nn.Module] = []
        for before, after in zip([self.rows.in_size, *hidden], hidden, strict=False):
            layers += dense(before, after, activation)
        layers += [_dropout(dropout), nn.Linear(hidden[-1], self.rows.out_size, bias=False)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm1d(self.rows.out_size, affine=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""
        return self.rows.back(self.layers(self.rows.of(x)), x)


class ProductOfExperts(nn.Module):
    r"""The decoder of ProdLDA: each topic is an expert, and words are drawn of their product.

    .. math:: p(w \mid \theta) \propto \exp\Bigl(\Bigl[\mathrm{BN}\Bigl(\sum_k \theta_k
        \beta_k\Bigr)\Bigr]_w\Bigr) \approx \prod_k p(w \mid \beta_k)^{\theta_k}, \qquad
        \theta = \mathrm{softmax}(z)

    The batch norm has no scale; its offset is that of the conditional that owns the network.

    Args:
        in_shape: The shape of one latent z, ``(K,)``.
        out_shape: The shape of the words' logits, of V numbers.
        dropout: The probability that a topic of a document is left out in training.
        proportions: Makes proportions of z, a softmax unless given; ``nn.Identity`` where z is
            proportions itself, as a draw from a Dirichlet is.

    Raises:
        ValueError: If there are fewer than two topics, or the probability is not in [0, 1).

    References:
        Autoencoding Variational Inference for Topic Models (Srivastava & Sutton, 2017)
    """

    roles = ("decoder", "network")

    @at_the_door
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        dropout: float = 0.6,
        proportions: Build | None = None,
    ) -> None:
        super().__init__()
        self.rows = _topics_of(self, in_shape, out_shape)
        self.proportions = _proportions(proportions)
        self.dropout = _dropout(dropout)
        self.experts = nn.Linear(self.rows.in_size, self.rows.out_size, bias=False)
        self.norm = nn.BatchNorm1d(self.rows.out_size, affine=False)

    @property
    def topics(self) -> Tensor:
        """What each topic adds to the logit of each word, ``[K, V]``."""
        return self.experts.weight.T

    def forward(self, z: Tensor) -> Tensor:
        """Map ``[*batch, K]`` to logits ``[*batch, *out_shape]``."""
        theta = self.dropout(self.proportions(self.rows.of(z)))
        return self.rows.back(self.norm(self.experts(theta)), z)


class TopicMixture(nn.Module):
    r"""The decoder of LDA: words are drawn of a mixture of the topics.

    .. math:: p(w \mid \theta) = \sum_k \theta_k \, \mathrm{softmax}(b + \beta_k)_w, \qquad
        \theta = \mathrm{softmax}(z)

    The numbers that come out are the logarithms of these probabilities. The offset b of all topics
    starts where the words of the data are; the conditional that owns the network has none. Each
    word's numbers over the topics are standardised, as by the authors' batch norm. Their dropout of
    0.6 is not the default: the posterior of 20 newsgroups collapses under it.

    Args:
        in_shape: The shape of one latent z, ``(K,)``.
        out_shape: The shape of the words' logits, of V numbers.
        dropout: The probability that a topic of a document is left out in training.
        proportions: Makes proportions of z, a softmax unless given; ``nn.Identity`` where z is
            proportions itself, as a draw from a Dirichlet is.

    Raises:
        ValueError: If there are fewer than two topics, or the probability is not in [0, 1).

    References:
        Latent Dirichlet Allocation (Blei, Ng & Jordan, 2003)
        Autoencoding Variational Inference for Topic Models (Srivastava & Sutton, 2017)
    """

    roles = ("decoder", "network")

    @at_the_door
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        dropout: float = 0.0,
        proportions: Build | None = None,
    ) -> None:
        super().__init__()
        self.rows = _topics_of(self, in_shape, out_shape)
        self.proportions = _proportions(proportions)
        self.dropout = _dropout(dropout)
        self.weight = nn.Parameter(torch.randn(self.rows.in_size, self.rows.out_size))
        self.norm = nn.BatchNorm1d(self.rows.out_size, affine=False, track_running_stats=False)
        self.offset = nn.Parameter(torch.zeros(self.rows.out_size))

    @torch.no_grad()
    def start_at(self, raw: Tensor) -> None:
        """Take the logits at which all topics start, ``out_shape``."""
        self.offset.copy_(raw.reshape(-1))

    @property
    def topics(self) -> Tensor:
        """The log-probability of each word in each topic, ``[K, V]``."""
        return (self.offset + self.norm(self.weight)).log_softmax(-1)

    def forward(self, z: Tensor) -> Tensor:
        """Map ``[*batch, K]`` to log-probabilities ``[*batch, *out_shape]``."""
        theta = self.dropout(self.proportions(self.rows.of(z)))
        shares = theta @ self.topics.exp()
        # Of words in no topic that dropout has left; a product of small numbers may be zero.
        return self.rows.back(shares.clamp(min=torch.finfo(shares.dtype).tiny).log(), z)


def _topics_of(network: nn.Module, in_shape: Shape, out_shape: Shape) -> Rows:
    rows = Rows(network, in_shape, out_shape)
    if rows.in_size < 2:
        name = type(network).__name__
        raise ValueError(f"{name} of {rows.in_size} topic: give 2 topics or more, such as (50,)")
    return rows


def _proportions(given: Build | None) -> nn.Module:
    return nn.Softmax(-1) if given is None else built("proportions", given, nn.Module)


def _dropout(probability: float) -> nn.Module:
    if not 0 <= probability < 1:
        raise ValueError(
            f"dropout={probability:g}: the probability to leave a number out is 0 or more, below 1"
        )
    return nn.Dropout(probability)
