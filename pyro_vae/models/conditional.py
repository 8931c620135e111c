"""The conditional VAE: every distribution is given the label."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.conditional import Shape
from pyro_vae.components.labelled import assemble_conditional, beside

__all__ = ["ConditionalVAE"]


class ConditionalVAE(PyroModule):
    r"""A conditional variational autoencoder: one layer of latents, given labels.

    Generative process, for each of B data with classes y:

    .. math:: z \sim p(z \mid y), \qquad x \sim p(x \mid z, y),

    with the amortised posterior :math:`q(z \mid x, y)`. Bounds are of
    :math:`\log p(x \mid y)`.

    ======  =====  ==================
    symbol  site   shape
    ======  =====  ==================
    z       "z"    [B, *latent_shape]
    x       "x"    [B, *event_shape]
    ======  =====  ==================

    Args:
        prior: p(z | y), a module that maps y to a distribution, one-hot as everywhere here.
        likelihood: p(x | z, y), a module that maps z, flat, and y behind it to a distribution.
        posterior: q(z | x, y), a module that maps x, flat, and y behind it to a distribution.
        num_classes: How many labels there are: y counts from 0.

    References:
        Semi-Supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling,
        2014)
        Learning Structured Output Representation Using Deep Conditional Generative Models (Sohn,
        Lee & Yan, 2015)
    """

    synonyms = ("CVAE",)

    one_hot: Tensor

    @at_the_door
    def __init__(
        self, *, prior: nn.Module, likelihood: nn.Module, posterior: nn.Module, num_classes: int
    ) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior
        self.num_classes = num_classes
        self.register_buffer("one_hot", torch.eye(num_classes), persistent=False)

    def model(self, x: Tensor, y: Tensor) -> None:
        """Declare p(z | y) p(x | z, y) for data ``[B, *event_shape]`` with labels ``[B]``."""
        y = self.one_hot[y]
        with pyro.plate("data", len(x)):
            p_z = self.prior(y)
            z = pyro.sample("z", p_z)
            given = beside(z, y, event_dim=len(p_z.event_shape))
            pyro.sample("x", self.likelihood(given), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Declare q(z | x, y) for data ``[B, *event_shape]`` with labels ``[B]``."""
        y = self.one_hot[y]
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(beside(x, y, event_dim=x.dim() - 1)))

    @classmethod
    @at_the_door
    def assemble(
        cls, event_shape: Shape, latent_shape: Shape = (40,), *, num_classes: int, **parts: Any
    ) -> ConditionalVAE:
        """Build one of families that fit these shapes; see ``assemble_conditional``."""
        built = assemble_conditional(event_shape, latent_shape, num_classes, **parts)
        return cls(**built, num_classes=num_classes)
