"""The three parts of a VAE, built from families that fit each other's shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from pyro_vae.components.conditional import Conditional, Family, Network, Shape
from pyro_vae.components.likelihoods import Bernoulli
from pyro_vae.components.networks import MLP, Standardize
from pyro_vae.components.posteriors import DiagonalNormal
from pyro_vae.components.priors import StandardNormal, learned

__all__ = ["assemble"]


def assemble(
    event_shape: Shape,
    latent_shape: Shape,
    *,
    prior: Callable[[Shape], Family] = StandardNormal,
    likelihood: Callable[[Shape], Family] = Bernoulli,
    posterior: Callable[[Shape], Family] = DiagonalNormal,
    network: Network = MLP,
    data: Tensor | None = None,
) -> dict[str, nn.Module]:
    """Build p(z), p(x | z) and q(z | x), with a network each for the last two.

    Args:
        event_shape: The shape of one datum.
        latent_shape: The shape of one latent.
        prior: Builds the family of p(z) from ``latent_shape``.
        likelihood: Builds the family of p(x | z) from ``event_shape``.
        posterior: Builds the family of q(z | x) from ``latent_shape``.
        network: Builds a network from the shapes of an input and an output.
        data: Observations, ``[N, *event_shape]``: the encoder's inputs are standardised as they
            are, and the likelihood starts at their mean. ``Family.meet`` hands them to the prior
            and the likelihood, to the prior with the posterior.

    Returns:
        The modules "prior", "likelihood" and "posterior".
    """
    p_x = likelihood(event_shape)
    p_x.meet(None, data)
    decoder = Conditional(p_x, context_shape=latent_shape, network=network)
    if data is not None:
        decoder.start_at(data.mean(0))
    p_z = prior(latent_shape)
    encoder = Conditional(
        posterior(latent_shape),
        context_shape=event_shape,
        network=network if data is None else partial(_standardized, Standardize.of(data), network),
    )
    p_z.meet(encoder, data)
    return {"prior": learned(p_z), "likelihood": decoder, "posterior": encoder}


def _standardized(
    standardize: Standardize, network: Network, in_shape: Shape, out_shape: Shape
) -> nn.Module:
    return nn.Sequential(standardize, network(in_shape, out_shape))
