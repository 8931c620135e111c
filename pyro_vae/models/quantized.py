"""The vector-quantised VAE: discrete codes from a deterministic encoder, and a bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.assembly import assemble
from pyro_vae.components.conditional import Family, Shape
from pyro_vae.components.quantized import NearestCode, UniformCodes

__all__ = ["VQVAE"]


class VQVAE(PyroModule):
    r"""A VQ-VAE: the latents are vectors of a codebook, chosen by a deterministic encoder.

    .. math:: k_m \sim \mathrm{Uniform}(K), \qquad z_m = e_{k_m}, \qquad x \sim p(x \mid z)

    and q(z | x) has probability one at the codes next to the encoder's output. Its KL is M log K
    nats, so that the ELBO is a bound of log p(x). A learned prior over the codes, the second stage
    of the paper, tightens it: ``pyro-vae refit``.

    ======  =====  =================
    symbol  site   shape
    ======  =====  =================
    z       "z"    [B, D, *grid]
    x       "x"    [B, *event_shape]
    ======  =====  =================

    Args:
        prior: p(z), a module that returns a distribution over code vectors.
        likelihood: p(x | z), a module that maps z to a distribution.
        posterior: q(z | x), a module that maps x to one grid of code vectors.

    References:
        Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017)
        Finite Scalar Quantization: VQ-VAE Made Simple (Mentzer, Minnen, Agustsson & Tschannen,
        2024)
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
        """Declare the codes of the data ``x``, ``[B, *event_shape]``."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))

    @classmethod
    @at_the_door
    def assemble(
        cls,
        event_shape: Shape,
        latent_shape: Shape = (16, 8),
        *,
        prior: Callable[[Shape], Family] = UniformCodes,
        posterior: Callable[[Shape], Family] = NearestCode,
        **parts: Any,
    ) -> VQVAE:
        """Build one of families that fit these shapes; see ``pyro_vae.components.assemble``."""
        return cls(**assemble(event_shape, latent_shape, prior=prior, posterior=posterior, **parts))
