"""The autoencoder: a VAE whose posterior is a point. It has a reconstruction, and no bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.assembly import assemble
from pyro_vae.components.conditional import Family, Shape
from pyro_vae.components.points import Point

__all__ = ["Autoencoder"]


class Autoencoder(PyroModule):
    r"""An autoencoder: data are encoded as a point and decoded as a distribution.

    .. math:: z = f(x), \qquad x \sim p(x \mid z)

    The objective is ``Reconstruction``, log p(x | z), the squared error of a ``Normal`` likelihood.
    It is plain with the posterior ``Point``, sparse with ``SparsePoint``, ``RatePoint`` or
    ``TopKPoint``. The prior p(z) plays no part in training: samples from it are poor until it is
    fitted to the codes (``pyro-vae refit``).

    ======  =====  ==================
    symbol  site   shape
    ======  =====  ==================
    z       "z"    [B, *latent_shape]
    x       "x"    [B, *event_shape]
    ======  =====  ==================

    Args:
        prior: p(z), a module that returns a distribution.
        likelihood: p(x | z), a module that maps z to a distribution.
        posterior: f(x), a module that maps x to a point.

    References:
        Reducing the Dimensionality of Data with Neural Networks (Hinton & Salakhutdinov, 2006)
        From Variational to Deterministic Autoencoders (Ghosh et al., 2020)
    """

    synonyms = ("AE",)

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
        """Declare z = f(x) for the data ``x``, ``[B, *event_shape]``."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))

    @classmethod
    @at_the_door
    def assemble(
        cls,
        event_shape: Shape,
        latent_shape: Shape = (40,),
        *,
        posterior: Callable[[Shape], Family] = Point,
        **parts: Any,
    ) -> Autoencoder:
        """Build one of families that fit these shapes; see ``pyro_vae.components.assemble``."""
        return cls(**assemble(event_shape, latent_shape, posterior=posterior, **parts))
