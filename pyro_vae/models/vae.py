"""The variational autoencoder, as in the textbook. Copy this file and edit it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.components.conditional import Conditional, Family, Network, Shape
from pyro_vae.components.likelihoods import Bernoulli
from pyro_vae.components.networks import MLP, Standardize
from pyro_vae.components.posteriors import DiagonalNormal
from pyro_vae.components.priors import StandardNormal, learned

__all__ = ["VAE"]


class VAE(PyroModule):
    r"""A variational autoencoder with one layer of latents.

    Generative process, for each of B data:

    .. math:: z \sim p(z), \qquad x \sim p(x \mid z),

    with the amortised posterior :math:`q(z \mid x)`.

    ======  =====  ==================
    symbol  site   shape
    ======  =====  ==================
    z       "z"    [B, *latent_shape]
    x       "x"    [B, *event_shape]
    ======  =====  ==================

    Args:
        prior: p(z), a module that returns a distribution.
        likelihood: p(x | z), a module that maps z to a distribution.
        posterior: q(z | x), a module that maps x to a distribution.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        Stochastic Backpropagation and Approximate Inference in Deep Generative Models
        (Rezende, Mohamed & Wierstra, 2014)
    """

    def __init__(self, *, prior: nn.Module, likelihood: nn.Module, posterior: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior

    def model(self, x: Tensor) -> None:
        """Declare p(z) p(x | z) for the data ``x``, ``[B, *event_shape]``."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Declare q(z | x) for the data ``x``, ``[B, *event_shape]``."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))

    @classmethod
    def assemble(
        cls,
        event_shape: Shape,
        latent_shape: Shape = (40,),
        *,
        prior: Callable[[Shape], Family] = StandardNormal,
        likelihood: Callable[[Shape], Family] = Bernoulli,
        posterior: Callable[[Shape], Family] = DiagonalNormal,
        network: Network = MLP,
        data: Tensor | None = None,
    ) -> VAE:
        """Build the networks between families of these shapes, and the VAE of them.

        Args:
            event_shape: The shape of one datum.
            latent_shape: The shape of one latent.
            prior: Builds the family of p(z) from ``latent_shape``.
            likelihood: Builds the family of p(x | z) from ``event_shape``.
            posterior: Builds the family of q(z | x) from ``latent_shape``.
            network: Builds both networks from the shapes of an input and an output.
            data: Observations, ``[N, *event_shape]``: the encoder's inputs are standardised as
                they are, and the likelihood starts at their mean.
        """
        encoder = network if data is None else partial(_standardized, Standardize.of(data), network)
        vae = cls(
            prior=learned(prior(latent_shape)),
            likelihood=Conditional(
                likelihood(event_shape), context_shape=latent_shape, network=network
            ),
            posterior=Conditional(
                posterior(latent_shape), context_shape=event_shape, network=encoder
            ),
        )
        if data is not None:
            vae.likelihood.start_at(data.mean(0))
        return vae


def _standardized(
    standardize: Standardize, network: Network, in_shape: Shape, out_shape: Shape
) -> nn.Module:
    return nn.Sequential(standardize, network(in_shape, out_shape))
