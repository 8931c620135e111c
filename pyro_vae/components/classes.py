"""Parts of programs whose latents have a class beside the style: M2, and mixtures of Gaussians."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from pyro_vae.arguments import at_the_door, built
from pyro_vae.components.assembly import (
    dependent_family,
    observations,
    observed,
    standardized,
)
from pyro_vae.components.automatic import Automatic
from pyro_vae.components.conditional import Conditional, Family, Network, Shape
from pyro_vae.components.likelihoods import Bernoulli
from pyro_vae.components.networks import MLP
from pyro_vae.components.posteriors import DiagonalNormal
from pyro_vae.components.priors import StandardNormal

__all__ = ["assemble_clusters", "assemble_semi_supervised"]

_NUM_FEATURES = 128
_APART = 0.3  # of raw numbers of the clusters, at the start


@at_the_door
def assemble_semi_supervised(
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
) -> dict[str, nn.Module]:
    """Build p(y), p(z | y), p(x | z, y), q(y | x) and q(z | x, y); y is a one-hot vector.

    Args:
        event_shape: The shape of one datum.
        latent_shape: The shape of one latent z.
        num_classes: How many classes there are, C.
        prior: Builds the family of p(z | y) from ``latent_shape``; one without raw numbers is the
            same for all classes, as in the paper.
        likelihood: Builds the family of p(x | z, y) from ``event_shape``.
        posterior: Builds the family of q(z | x, y) from ``latent_shape``.
        network: Builds a network from the shapes of an input and an output.
        encoder: The same for q(y | x) and the features of x alone, in place of ``network``.
        decoder: The same for p(x | z, y) alone, in place of ``network``.
        data: Observations, ``[N, *event_shape]``, as in ``assemble``.

    Returns:
        The modules "classes", "prior", "likelihood" (of z, flat, and y behind it), "classifier",
        "features" (of x, ``[*batch, 128]``) and "posterior" (of features, and y behind them).

    Raises:
        ValueError: If there are fewer than two classes, or the prior is made of the posterior.

    References:
        Semi-Supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling,
        2014)
    """
    data = observations(data, event_shape)
    p_z = _of_classes(built("prior", prior, Family, latent_shape))
    p_x = built("likelihood", likelihood, Family, event_shape)
    width = math.prod(latent_shape) + num_classes
    given = Conditional(p_x, context_shape=(width,), network=decoder or network)
    if data is not None:
        given.adapt_outputs(data)
    q_z = built("posterior", posterior, Family, latent_shape)
    reads = observed(encoder or network, p_x, data)
    return {
        "prior": _table(p_z, num_classes), "likelihood": given,
        **_inferred(q_z, event_shape, num_classes, reads, data),
    }  # fmt: skip


@at_the_door
def assemble_clusters(
    event_shape: Shape,
    latent_shape: Shape,
    num_clusters: int,
    *,
    prior: Callable[[Shape], Family] = DiagonalNormal,
    likelihood: Callable[[Shape], Family] = Bernoulli,
    posterior: Callable[[Shape], Family] = DiagonalNormal,
    network: Network = MLP,
    encoder: Network | None = None,
    decoder: Network | None = None,
    data: Tensor | None = None,
) -> dict[str, nn.Module]:
    """Build p(y), p(z | y), p(x | z), q(y | x) and q(z | x, y); y is a one-hot vector.

    Args:
        event_shape: The shape of one datum.
        latent_shape: The shape of one latent z.
        num_clusters: How many clusters there are, K.
        prior: Builds the family of p(z | y) from ``latent_shape``; in the place of one without raw
            numbers, which has no clusters, stands ``DiagonalNormal``. The clusters start apart.
        likelihood: Builds the family of p(x | z) from ``event_shape``.
        posterior: Builds the family of q(z | x, y) from ``latent_shape``.
        network: Builds a network from the shapes of an input and an output.
        encoder: The same for q(y | x) and the features of x alone, in place of ``network``.
        decoder: The same for p(x | z) alone, in place of ``network``.
        data: Observations, ``[N, *event_shape]``, as in ``assemble``.

    Returns:
        The modules "classes", "prior", "likelihood" (of z), "classifier", "features" and
        "posterior", as of ``assemble_semi_supervised``.

    Raises:
        ValueError: If there are fewer than two clusters, or the prior is made of the posterior.
    """
    data = observations(data, event_shape)
    p_z = _table(_of_classes(dependent_family(prior, posterior, latent_shape)), num_clusters)
    for weight in (p for p in p_z.parameters() if p.dim() > 1):
        nn.init.normal_(weight, std=_APART)
    p_x = built("likelihood", likelihood, Family, event_shape)
    given = Conditional(p_x, context_shape=latent_shape, network=decoder or network)
    if data is not None:
        given.adapt_outputs(data)
    q_z = built("posterior", posterior, Family, latent_shape)
    reads = observed(encoder or network, p_x, data)
    return {
        "prior": p_z, "likelihood": given,
        **_inferred(q_z, event_shape, num_clusters, reads, data),
    }  # fmt: skip


def _inferred(
    q_z: Family, event_shape: Shape, num_classes: int, network: Network, data: Tensor | None
) -> dict[str, nn.Module]:
    """Return p(y), q(y | x), the features of x, and q(z | x, y) of these."""
    if num_classes < 2:
        raise ValueError(f"{num_classes} classes: there are two or more, or none to tell apart")
    classifier = Conditional(_one_of(num_classes), context_shape=event_shape, network=network)
    if data is not None:
        classifier.adapt_inputs(data)
    features = standardized(data, network, event_shape, (_NUM_FEATURES,))
    classes = Conditional(_one_of(num_classes))
    of_x, of_y = _columns_apart(nn.Linear(_NUM_FEATURES + num_classes, _NUM_FEATURES))
    posterior = Conditional(
        q_z,
        context_shape=(_NUM_FEATURES + num_classes,),
        network=partial(_OfSum, of_y),
    )
    return {
        "classes": classes,
        "classifier": classifier,
        "features": nn.Sequential(features, nn.SiLU(), of_x),
        "posterior": posterior,
    }


class _OfSum(nn.Module):
    r"""The rest of a perceptron whose first layer takes x and y: :math:`V a(W_x f(x) + W_y y + b)`.

    The features are :math:`W_x f(x) + b`, which is multiplied once for all values of y.
    """

    def __init__(self, of_y: nn.Linear, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__()
        self.of_y = of_y
        self.head = MLP((of_y.out_features,), out_shape, hidden=())

    def forward(self, context: Tensor) -> Tensor:
        """Map features, and y behind them, to ``[*batch, *out_shape]``."""
        of_x, y = context.split((self.of_y.out_features, self.of_y.in_features), -1)
        return self.head(nn.functional.silu(of_x + self.of_y(y)))


def _columns_apart(layer: nn.Linear) -> tuple[nn.Linear, nn.Linear]:
    """Return the part of a layer that takes the features of x, and the one that takes y."""
    num_classes = layer.in_features - _NUM_FEATURES
    of_x, of_y = (
        skip_init(nn.Linear, num, layer.out_features, bias=has_bias)
        for num, has_bias in ((_NUM_FEATURES, True), (num_classes, False))
    )
    with torch.no_grad():
        of_x.weight.copy_(layer.weight[:, :_NUM_FEATURES])
        of_y.weight.copy_(layer.weight[:, _NUM_FEATURES:])
        of_x.bias.copy_(layer.bias)
    return of_x, of_y


def _one_of(num_classes: int) -> Family:
    return Automatic((num_classes,), dist.OneHotCategorical)


def _table(family: Family, num_classes: int) -> Conditional:
    """Return p(z | y): its raw numbers have a row for each class."""
    if family.is_fixed:
        return Conditional(family)
    return Conditional(family, context_shape=(num_classes,), network=partial(MLP, hidden=()))


def _of_classes(family: Family) -> Family:
    if type(family).start_from_posterior is Family.start_from_posterior:
        return family
    raise ValueError(
        f"{type(family).__name__} needs the posterior of its latent as one module that maps data "
        "to it, which a program with classes has not: use StandardNormal or DiagonalNormal"
    )
