"""Parts of a conditional VAE: each distribution is also given the label."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door, built
from pyro_vae.components.assembly import observations, observed, standardized
from pyro_vae.components.conditional import Conditional, Family, Network, Shape
from pyro_vae.components.likelihoods import Bernoulli
from pyro_vae.components.networks import MLP
from pyro_vae.components.posteriors import DiagonalNormal
from pyro_vae.components.priors import StandardNormal

__all__ = ["assemble_conditional", "beside"]

_NUM_FEATURES = 128


@at_the_door
def assemble_conditional(
    event_shape: Shape,
    latent_shape: Shape,
    num_classes: int,
    *,
    prior: Callable[[Shape], Family] = StandardNormal,
    likelihood: Callable[[Shape], Family] = Bernoulli,
    posterior: Callable[[Shape], Family] = DiagonalNormal,
    network: Network = MLP,
    encoder: Network | None = None,
    decoder: Network | None = None,
    data: Tensor | None = None,
    labels: Tensor | None = None,
) -> dict[str, nn.Module]:
    """Build p(z | y), p(x | z, y) and q(z | x, y) for labels y, one-hot vectors.

    The prior's raw numbers are a table with a row for each class; a prior without raw numbers is
    the same for all. The likelihood's network sees z and y side by side. That of the posterior
    makes 128 features of x, and a second one, of one hidden layer, joins them with y.

    Args:
        event_shape: The shape of one datum.
        latent_shape: The shape of one latent.
        num_classes: How many labels there are.
        prior: Builds the family of p(z | y) from ``latent_shape``.
        likelihood: Builds the family of p(x | z, y) from ``event_shape``.
        posterior: Builds the family of q(z | x, y) from ``latent_shape``.
        network: Builds a network from the shapes of an input and an output.
        encoder: The same for x in q(z | x, y) alone, in place of ``network``.
        decoder: The same for p(x | z, y) alone, in place of ``network``.
        data: Observations, ``[N, *event_shape]``, as in ``assemble``.
        labels: Their classes, ``[N]``; a prior that is made of data takes both.

    Returns:
        The modules "prior", "likelihood" and "posterior". The last two take one vector: z, or x,
        flat and with y behind.

    Raises:
        ValueError: If there is no class.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: labels have one class or more")
    data = observations(data, event_shape)
    p_x = built("likelihood", likelihood, Family, event_shape)
    p_z = built("prior", prior, Family, latent_shape)
    width = math.prod(latent_shape) + num_classes
    given_z = Conditional(p_x, context_shape=(width,), network=decoder or network)
    if data is not None:
        given_z.adapt_outputs(data)
    of_data = partial(standardized, data, observed(encoder or network, p_x, data))
    given_x = Conditional(
        built("posterior", posterior, Family, latent_shape),
        context_shape=(math.prod(event_shape) + num_classes,),
        network=partial(_Joining, of_data, event_shape, num_classes),
    )
    joined = None
    if data is not None and labels is not None:
        data, labels = data[labels >= 0], labels[labels >= 0]  # the others have no class
        one_hot = nn.functional.one_hot(labels.long(), num_classes).to(data)
        joined = beside(data, one_hot, event_dim=data.dim() - 1)
    p_z.start_from_posterior(given_x, joined)
    table: dict[str, Any] = {"context_shape": (num_classes,), "network": partial(MLP, hidden=())}
    return {
        "prior": Conditional(p_z, **({} if p_z.is_fixed else table)),
        "likelihood": given_z,
        "posterior": given_x,
    }


def beside(x: Tensor, y: Tensor, *, event_dim: int) -> Tensor:
    """Put ``[*batch, C]`` behind ``[*batch, *event]``, flat; either may have particles alone."""
    flat = x.flatten(x.dim() - event_dim)
    batch = torch.broadcast_shapes(flat.shape[:-1], y.shape[:-1])
    return torch.cat([flat.expand(*batch, flat.shape[-1]), y.expand(*batch, y.shape[-1])], -1)


class _Joining(nn.Module):
    """Features of x, joined with y."""

    def __init__(
        self,
        network: Network,
        event_shape: Shape,
        num_classes: int,
        in_shape: Shape,
        out_shape: Shape,
    ) -> None:
        super().__init__()
        self.features = network(event_shape, (_NUM_FEATURES,))
        self.event_shape = event_shape
        self.num_classes = num_classes
        joined = (_NUM_FEATURES + num_classes,)
        self.head = MLP(joined, out_shape, hidden=(_NUM_FEATURES,))

    def forward(self, context: Tensor) -> Tensor:
        x, y = context[..., : -self.num_classes], context[..., -self.num_classes :]
        features = self.features(x.unflatten(-1, self.event_shape))
        return self.head(torch.cat([nn.functional.silu(features), y], -1))
