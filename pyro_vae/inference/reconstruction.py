"""The objective of autoencoders: how well a code gives the data back, which is no bound."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from pyro_vae.inference.objectives import Objective, data_weight
from pyro_vae.inference.quantities import Quantity
from pyro_vae.inference.terms import SiteTerms

__all__ = ["RECONSTRUCTION_NATS", "Reconstruction"]

RECONSTRUCTION_NATS = Quantity("reconstruction", "nats", "reconstruction, log p(x | z)")


class Reconstruction(Objective):
    r"""The log-density of the data given their codes, :math:`\log p(x \mid z)`.

    .. math:: \frac1S \sum_s \log p(x \mid z_s), \qquad z_s \sim q(z \mid x)

    With the posterior ``Point``, :math:`z = f(x)`, this trains an autoencoder, whose squared error
    is a ``Normal`` likelihood and whose cross-entropy is a ``Bernoulli`` one. The prior plays no
    part. No bound of log p(x): it is reported as ``reconstruction_nats``, and evaluations that need
    a bound refuse a program of points. Auxiliary losses, such as a sparsity penalty, are followed.

    Args:
        num_particles: S, the number of samples of the latents for each datum; a point needs one.

    Raises:
        ValueError: Before the first step, if a latent is not reparameterised.

    References:
        Reducing the Dimensionality of Data with Neural Networks (Hinton & Salakhutdinov, 2006)
        From Variational to Deterministic Autoencoders (Ghosh et al., 2020)
    """

    averages = True
    quantity: ClassVar[Quantity] = RECONSTRUCTION_NATS
    near: ClassVar = {
        "MSE": "the squared error is a Normal likelihood of one fixed scale under Reconstruction",
    }

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the mean of log p(x | z) of each datum in nats, ``[B]``."""
        return -terms.average(terms.distortion)

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``."""
        observed = [name for name in terms.log_p if name not in terms.log_q]
        log_p = sum((terms.scale_p[n] * terms.log_p[n] for n in observed), torch.zeros(()))
        return data_weight(terms) * terms.average(log_p)

    def refusal(self, terms: SiteTerms) -> str | None:
        """Say which latent has samples without gradients, if one has."""
        for name, pathwise in terms.pathwise.items():
            if not pathwise:
                return (
                    f"Reconstruction needs reparameterised latents, but samples of site {name!r} "
                    "carry no gradients: its encoder would not be trained; use ELBO"
                )
        return super().refusal(terms)
