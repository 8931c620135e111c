"""A variational autoencoder with layers of latents, inferred from the data up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
from pyro.nn import PyroModule, PyroModuleList
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.assembly import assemble_hierarchy
from pyro_vae.components.conditional import Shape

__all__ = ["HierarchicalVAE"]


class HierarchicalVAE(PyroModule):
    r"""L layers of latents, each given the one above, inferred from the data up.

    Generative process, for each of B data:

    .. math::
        z_L \sim p(z_L), \qquad z_l \sim p(z_l \mid z_{l+1}), \qquad x \sim p(x \mid z_1),

    with the amortised posterior
    :math:`q(z_1 \mid x) \, q(z_2 \mid z_1) \cdots q(z_L \mid z_{L-1})`. Lists run from the data
    up: their first entry is that of layer 1. One layer makes it a ``VAE``.

    ======  =====  =========================
    symbol  site   shape
    ======  =====  =========================
    z_l     "zl"   [B, *latent_shapes[l - 1]]
    x       "x"    [B, *event_shape]
    ======  =====  =========================

    Args:
        priors: p(z_l | z_{l+1}) of each layer, a module that maps z_{l+1} to a distribution; the
            last, p(z_L), is called with None.
        likelihood: p(x | z_1), a module that maps z_1 to a distribution.
        posteriors: q(z_l | z_{l-1}) of each layer, the first of which maps x to a distribution.

    Raises:
        ValueError: If there is no layer, or not one prior for each posterior.

    References:
        Stochastic Backpropagation and Approximate Inference in Deep Generative Models
        (Rezende, Mohamed & Wierstra, 2014)
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016)
    """

    synonyms = ("HVAE",)

    @at_the_door
    def __init__(
        self,
        *,
        priors: Sequence[nn.Module],
        likelihood: nn.Module,
        posteriors: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        if not len(priors) == len(posteriors) > 0:
            raise ValueError(
                f"a hierarchy has one or more layers, with a prior and a posterior each; got "
                f"{len(priors)} priors and {len(posteriors)} posteriors"
            )
        self.priors = PyroModuleList(priors)
        self.likelihood = likelihood
        self.posteriors = PyroModuleList(posteriors)

    def model(self, x: Tensor) -> None:
        """Declare p(z_L) ... p(z_1 | z_2) p(x | z_1) for the data ``x``, ``[B, *event_shape]``."""
        with pyro.plate("data", len(x)):
            z = None
            for layer in range(len(self.priors), 0, -1):
                z = pyro.sample(f"z{layer}", self.priors[layer - 1](z))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Declare q(z_1 | x) ... q(z_L | z_{L-1}) for the data ``x``, ``[B, *event_shape]``."""
        with pyro.plate("data", len(x)):
            z = x
            for layer, posterior in enumerate(self.posteriors, start=1):
                z = pyro.sample(f"z{layer}", posterior(z))

    @classmethod
    @at_the_door
    def assemble(
        cls,
        event_shape: Shape,
        latent_shapes: Sequence[Shape] = ((64,), (32,), (16,)),
        **parts: Any,
    ) -> HierarchicalVAE:
        """Build a hierarchy of families that fit these shapes; see ``assemble_hierarchy``."""
        return cls(**assemble_hierarchy(event_shape, latent_shapes, **parts))
