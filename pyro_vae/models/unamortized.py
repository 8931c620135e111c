"""A VAE without an encoder: every training datum has posterior parameters of its own."""

from __future__ import annotations

from typing import Any

import pyro
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.assembly import assemble
from pyro_vae.components.conditional import Conditional, Shape
from pyro_vae.components.mixtures import VampPrior
from pyro_vae.components.posteriors import PerDatum

__all__ = ["UnamortizedVAE"]


class UnamortizedVAE(PyroModule):
    r"""A decoder trained by plain variational inference, to measure what an encoder costs.

    Generative process, for each of B data:

    .. math:: z \sim p(z), \qquad x \sim p(x \mid z),

    with a posterior :math:`q_n(z)` for each row n of the training set, none of which knows x.

    ======  =====  ==================
    symbol  site   shape
    ======  =====  ==================
    z       "z"    [B, *latent_shape]
    x       "x"    [B, *event_shape]
    ======  =====  ==================

    It is called with the number of each row: ``fit(vae, Dataset("x", part, part, part,
    levels=None))`` of ``pyro_vae.datasets``, with ``part = Data(x)``. Other data have no posterior:
    that is why training rows serve validation and evaluation, too; or refine posteriors for other
    data by ``evaluation.refine``, from an encoder.

    Args:
        prior: p(z), a module that returns a distribution.
        likelihood: p(x | z), a module that maps z to a distribution.
        posterior: q_n(z), a module that maps row numbers to a distribution.

    References:
        Stochastic Variational Inference (Hoffman, Blei, Wang & Paisley, 2013), for its local
        parameters
        Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud, 2018)
    """

    roles = ()

    @at_the_door
    def __init__(self, *, prior: nn.Module, likelihood: nn.Module, posterior: PerDatum) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior

    def model(self, x: Tensor, row: Tensor) -> None:
        """Declare p(z) p(x | z) for the data ``x``, ``[B, *event_shape]``."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor, row: Tensor) -> None:
        """Declare q_n(z) for the data in rows ``row``, ``[B]``, of the training set."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(row))

    @classmethod
    @at_the_door
    def assemble(
        cls, event_shape: Shape, latent_shape: Shape = (40,), *, num_data: int, **parts: Any
    ) -> UnamortizedVAE:
        """Build one for ``num_data`` training data; see ``pyro_vae.components.assemble``.

        Raises:
            ValueError: If a part needs an encoder, as a VampPrior does.
        """
        built = assemble(event_shape, latent_shape, **parts)
        encoder = built.pop("posterior")
        assert isinstance(encoder, Conditional)
        if isinstance(built["prior"], VampPrior):
            raise ValueError(
                "UnamortizedVAE with a VampPrior: that prior is made of an encoder's posteriors, "
                "and here is no encoder; take MixtureOfNormals"
            )
        return cls(**built, posterior=PerDatum(encoder.family, num_data=num_data))
