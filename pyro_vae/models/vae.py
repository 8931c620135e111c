"""The variational autoencoder, as in the textbook. Copy this file and edit it."""

from __future__ import annotations

from typing import Any

import pyro
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.assembly import assemble
from pyro_vae.components.conditional import Shape

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

    @at_the_door
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
    @at_the_door
    def assemble(cls, event_shape: Shape, latent_shape: Shape = (40,), **parts: Any) -> VAE:
        """Build a VAE of families that fit these shapes; see ``pyro_vae.components.assemble``."""
        return cls(**assemble(event_shape, latent_shape, **parts))
