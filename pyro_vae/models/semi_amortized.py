"""The semi-amortized VAE: gradient steps on each datum's bound refine the encoder's q."""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.assembly import assemble
from pyro_vae.components.conditional import Conditional, Shape

__all__ = ["SemiAmortizedVAE"]


class SemiAmortizedVAE(PyroModule):
    r"""A variational autoencoder with semi-amortised inference.

    Generative process, for each of B data:

    .. math:: z \sim p(z), \qquad x \sim p(x \mid z),

    with a posterior whose raw numbers r start at the encoder's and climb K steps on the bound,

    .. math:: r_{k+1} = r_k + \eta \, \nabla_r \mathrm{E}_{q_r} [\log p(x, z) - \log q_r(z)],

    each with a sample of its own. The steps are part of the program, so training differentiates
    through them: decoder and encoder learn what is best *after* the steps, as in the paper (which
    approximates those second derivatives). A step costs about as much as one of training. Samples
    of one datum are refined and drawn one after the other, not as a dimension of particles.

    ======  =====  ==================
    symbol  site   shape
    ======  =====  ==================
    z       "z"    [B, *latent_shape]
    x       "x"    [B, *event_shape]
    ======  =====  ==================

    Args:
        prior: p(z), a module that returns a distribution.
        likelihood: p(x | z), a module that maps z to a distribution.
        posterior: Where q(z | x) starts; its samples are reparameterised and twice
            differentiable (those of ``VonMisesFisher`` are not).
        num_steps: The number of gradient steps, K.
        step_size: The size of a gradient step, :math:`\eta`.
        max_norm: The largest norm of a datum's gradient; longer ones are cut.

    Raises:
        ValueError: If a number is out of range; later, if samples of q carry no gradients.

    References:
        Semi-Amortized Variational Autoencoders (Kim, Wiseman, Miller, Sontag & Rush, 2018)
    """

    synonyms = ("SAVAE",)

    @at_the_door
    def __init__(
        self,
        *,
        prior: nn.Module,
        likelihood: nn.Module,
        posterior: Conditional,
        num_steps: int = 5,
        step_size: float = 0.1,
        max_norm: float = 5.0,
    ) -> None:
        super().__init__()
        if num_steps < 0:
            raise ValueError(f"num_steps={num_steps}: give 0 or more steps")
        for name, value in (("step_size", step_size), ("max_norm", max_norm)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: it is positive and finite")
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior
        self.num_steps = num_steps
        self.step_size = step_size
        self.max_norm = max_norm

    def model(self, x: Tensor) -> None:
        """Declare p(z) p(x | z) for the data ``x``, ``[B, *event_shape]``."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Declare the refined q(z | x) for the data ``x``, ``[B, *event_shape]``."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior.family(self.refined(x)))

    def refined(self, x: Tensor) -> Tensor:
        """Return the refined raw numbers of q(z | x), ``[B, *raw_shape]``."""
        raw, trains = self.posterior.raw(x), torch.is_grad_enabled()
        with torch.enable_grad():
            for _ in range(self.num_steps):
                if not (trains and raw.requires_grad):
                    raw = raw.detach().requires_grad_()
                bound = self._bound(raw, x).sum()
                (slope,) = torch.autograd.grad(bound, raw, create_graph=trains)
                raw = raw + self.step_size * self._cut(slope)
        return raw if trains else raw.detach()

    def _bound(self, raw: Tensor, x: Tensor) -> Tensor:
        q = self.posterior.family(raw)
        if not q.has_rsample:
            name = type(self.posterior.family).__name__
            raise ValueError(
                f"SemiAmortizedVAE climbs along samples, and those of {name} carry no gradients: "
                "take a reparameterised posterior, such as DiagonalNormal"
            )
        z = q.rsample()
        log_p = self.prior().log_prob(z) + self.likelihood(z).log_prob(x)
        return log_p - q.log_prob(z)

    def _cut(self, slope: Tensor) -> Tensor:
        dims = tuple(range(1, slope.dim()))
        norm = torch.linalg.vector_norm(slope, dim=dims, keepdim=True)
        return slope * (self.max_norm / norm.clamp(min=self.max_norm))

    @classmethod
    @at_the_door
    def assemble(
        cls, event_shape: Shape, latent_shape: Shape = (40,), **parts: Any
    ) -> SemiAmortizedVAE:
        """Build one of families that fit these shapes; see ``pyro_vae.components.assemble``."""
        names = {"num_steps", "step_size", "max_norm"} & parts.keys()
        own = {name: parts.pop(name) for name in names}
        built: Any = assemble(event_shape, latent_shape, **parts)
        return cls(**built, **own)
