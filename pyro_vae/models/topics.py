"""Topic models: documents as bags of words, of which each has some topics more than others."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.arguments import at_the_door
from pyro_vae.components.assembly import assemble
from pyro_vae.components.conditional import Family, Network, Shape
from pyro_vae.components.networks import DocumentEncoder, ProductOfExperts, TopicMixture
from pyro_vae.components.posteriors import DiagonalNormal
from pyro_vae.components.proportions import LaplaceDirichlet
from pyro_vae.components.sequences import Multinomial

__all__ = ["NVLDA", "ProdLDA"]


class _TopicModel(PyroModule):
    """p(z) p(x | z), where z says the proportions of topics."""

    @at_the_door
    def __init__(self, *, prior: nn.Module, likelihood: nn.Module, posterior: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior

    def model(self, x: Tensor) -> None:
        """Declare p(z) p(x | z) for bags of words ``x``, ``[B, V]``."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Declare q(z | x) for bags of words ``x``, ``[B, V]``."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))


class ProdLDA(_TopicModel):
    r"""ProdLDA, a topic model whose documents are products of topics.

    Generative process, for each of B documents of n words:

    .. math:: z \sim p(z), \qquad \theta = \mathrm{softmax}(z), \qquad
        x \sim \mathrm{Multinomial}\Bigl(n, \mathrm{softmax}\Bigl(b + \mathrm{BN}\Bigl(
        \sum_k \theta_k \beta_k\Bigr)\Bigr)\Bigr)

    with the amortised posterior :math:`q(z \mid x)`. p(z) is the Laplace approximation of a
    Dirichlet. With ``Dirichlet`` as prior and posterior, z is the proportions themselves.

    ======  =====  =========
    symbol  site   shape
    ======  =====  =========
    z       "z"    [B, K]
    x       "x"    [B, V]
    ======  =====  =========

    Args:
        prior: p(z), a module that returns a distribution.
        likelihood: p(x | z), a module that maps z to a distribution.
        posterior: q(z | x), a module that maps x to a distribution.

    References:
        Autoencoding Variational Inference for Topic Models (Srivastava & Sutton, 2017)
    """

    synonyms = ("AVITM",)
    settings: ClassVar[dict[str, Any]] = {
        "likelihood": Multinomial, "lr": 2e-3, "momentum": 0.99, "batch_size": 200, "epochs": 200
    }  # fmt: skip

    @classmethod
    @at_the_door
    def assemble(
        cls,
        event_shape: Shape,
        latent_shape: Shape = (50,),
        *,
        prior: Callable[[Shape], Family] = LaplaceDirichlet,
        likelihood: Callable[[Shape], Family] = Multinomial,
        posterior: Callable[[Shape], Family] = DiagonalNormal,
        encoder: Network = DocumentEncoder,
        decoder: Network = ProductOfExperts,
        data: Tensor | None = None,
    ) -> ProdLDA:
        """Build one for V words and K topics; see ``pyro_vae.components.assemble``.

        Where the posterior is over proportions, the decoder takes z as they are.
        """
        return cls(
            **assemble(
                event_shape, latent_shape, prior=prior, likelihood=likelihood, posterior=posterior,
                encoder=encoder, decoder=_decoder(decoder, posterior(latent_shape)), data=data,
            )
        )  # fmt: skip


class NVLDA(_TopicModel):
    r"""Neural LDA, a topic model whose documents are mixtures of topics.

    Generative process, for each of B documents of n words:

    .. math:: z \sim p(z), \qquad \theta = \mathrm{softmax}(z), \qquad
        x \sim \mathrm{Multinomial}\Bigl(n, \sum_k \theta_k \beta_k\Bigr)

    with the amortised posterior :math:`q(z \mid x)`: latent Dirichlet allocation, whose Dirichlet
    is replaced by its Laplace approximation. With ``Dirichlet`` as prior and posterior, it is LDA
    itself, and z is the proportions.

    ======  =====  =========
    symbol  site   shape
    ======  =====  =========
    z       "z"    [B, K]
    x       "x"    [B, V]
    ======  =====  =========

    Args:
        prior: p(z), a module that returns a distribution.
        likelihood: p(x | z), a module that maps z to a distribution.
        posterior: q(z | x), a module that maps x to a distribution.

    References:
        Latent Dirichlet Allocation (Blei, Ng & Jordan, 2003)
        Autoencoding Variational Inference for Topic Models (Srivastava & Sutton, 2017)
    """

    synonyms = ("NeuralLDA", "LDAVAE")
    settings: ClassVar[dict[str, Any]] = {
        "likelihood": Multinomial, "lr": 5e-3, "momentum": 0.99, "batch_size": 200, "epochs": 200
    }  # fmt: skip

    @classmethod
    @at_the_door
    def assemble(
        cls,
        event_shape: Shape,
        latent_shape: Shape = (50,),
        *,
        prior: Callable[[Shape], Family] = LaplaceDirichlet,
        likelihood: Callable[[Shape], Family] = Multinomial,
        posterior: Callable[[Shape], Family] = DiagonalNormal,
        encoder: Network = DocumentEncoder,
        decoder: Network = TopicMixture,
        data: Tensor | None = None,
    ) -> NVLDA:
        """Build one for V words and K topics; see ``ProdLDA.assemble``."""
        return cls(
            **assemble(
                event_shape, latent_shape, prior=prior, likelihood=likelihood, posterior=posterior,
                encoder=encoder, decoder=_decoder(decoder, posterior(latent_shape)), data=data,
            )
        )  # fmt: skip


def _decoder(build: Network, posterior: Family) -> Network:
    """Return a decoder of topics for latents of a family: real numbers, or proportions."""
    with torch.no_grad():
        support = posterior(torch.zeros(posterior.raw_shape)).support
    takes = inspect.signature(build).parameters
    if support is not constraints.simplex or "proportions" not in takes:
        return build
    as_they_are: Network = partial(build, **{"proportions": nn.Identity})
    return as_they_are
