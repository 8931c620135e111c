"""The ladder variational autoencoder: inference goes up without noise, and comes down with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroModuleList
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.assembly import assemble_ladder
from pyro_vae.components.conditional import Distribution, Shape

__all__ = ["LadderVAE", "merged"]


class LadderVAE(PyroModule):
    r"""L layers of normal latents whose guide shares the model's top-down networks.

    Generative process, for each of B data:

    .. math::
        z_L \sim p(z_L), \qquad z_l \sim p(z_l \mid z_{l+1}), \qquad x \sim p(x \mid z_1).

    The guide climbs without noise, :math:`d_l = \mathrm{upward}_l(d_{l-1})` from :math:`d_0 = x`,
    and reads what the data say of each layer, :math:`N(z_l; \hat\mu_l(d_l), \hat\sigma_l(d_l)^2)`.
    Then it comes down, and weighs that against the prior by their precisions:

    .. math::
        q(z_L \mid x) = N(\hat\mu_L, \hat\sigma_L^2), \qquad
        q(z_l \mid z_{l+1}, x) \propto N(z_l; \hat\mu_l, \hat\sigma_l^2) \, p(z_l \mid z_{l+1}).

    Lists run from the data up: their first entry is that of layer 1.

    ======  =====  =========================
    symbol  site   shape
    ======  =====  =========================
    z_l     "zl"   [B, *latent_shapes[l - 1]]
    x       "x"    [B, *event_shape]
    ======  =====  =========================

    Args:
        priors: p(z_l | z_{l+1}) of each layer, a module that maps z_{l+1} to a diagonal normal;
            the last, p(z_L), is called with None.
        likelihood: p(x | z_1), a module that maps z_1 to a distribution.
        upward: The deterministic steps from d_{l-1} to d_l.
        posteriors: What d_l says of z_l, a module that maps d_l to a diagonal normal.

    Raises:
        ValueError: If there is no layer, or a list has not one entry for each; and, when it is
            run, if a layer is not normal.

    References:
        Ladder Variational Autoencoders (Sønderby et al., 2016)
    """

    synonyms = ("LVAE",)

    @at_the_door
    def __init__(
        self,
        *,
        priors: Sequence[nn.Module],
        likelihood: nn.Module,
        upward: Sequence[nn.Module],
        posteriors: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        if not len(priors) == len(upward) == len(posteriors) > 0:
            raise ValueError(
                "a ladder has one or more layers, with a prior, an upward step and a posterior "
                f"each; got {len(priors)}, {len(upward)} and {len(posteriors)}"
            )
        self.priors = PyroModuleList(priors)
        self.likelihood = likelihood
        self.upward = PyroModuleList(upward)
        self.posteriors = PyroModuleList(posteriors)

    def model(self, x: Tensor) -> None:
        """Declare p(z_L) ... p(z_1 | z_2) p(x | z_1) for the data ``x``, ``[B, *event_shape]``."""
        with pyro.plate("data", len(x)):
            z = None
            for layer in range(len(self.priors), 0, -1):
                z = pyro.sample(f"z{layer}", self.priors[layer - 1](z))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Declare q(z_L | x) ... q(z_1 | z_2, x) for the data ``x``, ``[B, *event_shape]``."""
        evidence, d = [], x
        for step, posterior in zip(self.upward, self.posteriors, strict=True):
            d = step(d)
            evidence.append(posterior(d))
        with pyro.plate("data", len(x)):
            z = pyro.sample(f"z{len(evidence)}", evidence[-1])
            for layer in range(len(evidence) - 1, 0, -1):
                z = pyro.sample(f"z{layer}", merged(evidence[layer - 1], self.priors[layer - 1](z)))

    @classmethod
    @at_the_door
    def assemble(
        cls,
        event_shape: Shape,
        latent_shapes: Sequence[Shape] = ((64,), (32,), (16,)),
        **parts: Any,
    ) -> LadderVAE:
        """Build a ladder of families that fit these shapes; see ``assemble_ladder``."""
        return cls(**assemble_ladder(event_shape, latent_shapes, **parts))


def merged(evidence: Distribution, prior: Distribution) -> Distribution:
    r"""Return the normalised product of two diagonal normals over one event.

    .. math::
        \sigma^{-2} = \hat\sigma^{-2} + \sigma_p^{-2}, \qquad
        \mu = \sigma^2 (\hat\mu \, \hat\sigma^{-2} + \mu_p \, \sigma_p^{-2})

    Raises:
        ValueError: If one is not a diagonal normal, or their events have other shapes.
    """
    if evidence.event_shape != prior.event_shape:
        raise ValueError(
            f"a ladder merges a posterior over {tuple(evidence.event_shape)} with a prior over "
            f"{tuple(prior.event_shape)}: give both the shape of the layer's latent"
        )
    ours, theirs = _normal(evidence), _normal(prior)
    total = torch.hypot(ours.scale, theirs.scale)
    # Of ratios of scales: precisions would be squares of small numbers' inverses.
    share = (ours.scale / total).square()
    loc = ours.loc + share * (theirs.loc - ours.loc)
    scale = ours.scale * (theirs.scale / total)
    return dist.Normal(loc, scale).to_event(len(evidence.event_shape))


def _normal(fn: Distribution) -> dist.Normal:
    base = fn
    while isinstance(base, dist.Independent):
        base = base.base_dist
    if not isinstance(base, dist.Normal):
        raise ValueError(
            f"a ladder merges diagonal normals, and a layer has a {type(base).__name__}: give "
            "priors and posteriors as DiagonalNormal, or use HierarchicalVAE, which takes any"
        )
    return base
