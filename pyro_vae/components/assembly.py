"""The parts of a VAE, of one layer or several, built from families of fitting shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.arguments import at_the_door, built
from pyro_vae.components.conditional import Conditional, Family, Network, Shape, checked_shape
from pyro_vae.components.likelihoods import Bernoulli
from pyro_vae.components.networks import MLP, Observed, Standardize
from pyro_vae.components.posteriors import DiagonalNormal
from pyro_vae.components.priors import StandardNormal, learned
from pyro_vae.components.tables import Incomplete

__all__ = [
    "assemble",
    "assemble_hierarchy",
    "assemble_ladder",
    "dependent_family",
    "observations",
    "observed",
    "standardized",
]

_T = TypeVar("_T")


@at_the_door
def assemble(
    event_shape: Shape,
    latent_shape: Shape,
    *,
    prior: Callable[[Shape], Family] = StandardNormal,
    likelihood: Callable[[Shape], Family] = Bernoulli,
    posterior: Callable[[Shape], Family] = DiagonalNormal,
    network: Network = MLP,
    encoder: Network | None = None,
    decoder: Network | None = None,
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
        encoder: The same for q(z | x) alone, in place of ``network``.
        decoder: The same for p(x | z) alone, in place of ``network``.
        data: Observations, ``[N, *event_shape]``: the encoder's inputs are standardised as they
            are, and the likelihood takes their units and starts at their mean. Where numbers are
            missing (NaN, or an ``Incomplete`` likelihood), the encoder is given a mask as well.
            A prior that is made of the posterior is given both. Without data, ``fit`` does all this
            but for the mask.

    Returns:
        The modules "prior", "likelihood" and "posterior".
    """
    data = observations(data, event_shape)
    p_x = built("likelihood", likelihood, Family, event_shape)
    given_z = Conditional(p_x, context_shape=latent_shape, network=decoder or network)
    if data is not None:
        given_z.adapt_outputs(data)
    p_z = built("prior", prior, Family, latent_shape)
    given_x = Conditional(
        built("posterior", posterior, Family, latent_shape),
        context_shape=event_shape,
        network=observed(encoder or network, p_x, data),
    )
    if data is not None:
        given_x.adapt_inputs(data)
    p_z.start_from_posterior(given_x, data)
    return {"prior": learned(p_z), "likelihood": given_z, "posterior": given_x}


@at_the_door
def assemble_hierarchy(
    event_shape: Shape,
    latent_shapes: Sequence[Shape],
    *,
    prior: Callable[[Shape], Family] | Sequence[Callable[[Shape], Family]] = StandardNormal,
    likelihood: Callable[[Shape], Family] = Bernoulli,
    posterior: Callable[[Shape], Family] | Sequence[Callable[[Shape], Family]] = DiagonalNormal,
    network: Network | Sequence[Network] = MLP,
    encoder: Network | None = None,
    decoder: Network | None = None,
    data: Tensor | None = None,
) -> dict[str, Any]:
    """Build the layers of a hierarchy: p(z_l | z_{l+1}), p(x | z_1) and q(z_l | z_{l-1}).

    What is given once serves every layer; a list has one entry for each, from the data up. A
    prior without raw numbers (``StandardNormal``) cannot depend on the layer above: below the top,
    ``DiagonalNormal`` takes its place, or the posterior's family where that is not over all real
    numbers. A single network that joins images and vectors only joins latents to the data;
    between latents, ``MLP`` takes its place.

    Args:
        event_shape: The shape of one datum.
        latent_shapes: The shape of one latent of each layer, from the data up.
        prior: Builds the family of p(z_l | z_{l+1}) from the latent's shape.
        likelihood: Builds the family of p(x | z_1) from ``event_shape``.
        posterior: Builds the family of q(z_l | z_{l-1}) from the latent's shape.
        network: Builds a network from the shapes of an input and an output.
        encoder: The same for q(z_1 | x) alone, in place of ``network``.
        decoder: The same for p(x | z_1) alone, in place of ``network``.
        data: Observations, ``[N, *event_shape]``, as in ``assemble``.

    Returns:
        The modules "priors" (a list, from the data up), "likelihood" and "posteriors" (likewise).

    Raises:
        ValueError: If there is no layer, or a list has not one entry for each.
    """
    num_layers = len(latent_shapes)
    if num_layers == 0:
        raise ValueError("latent_shapes=(): a hierarchy has at least one layer, such as ((40,),)")
    families = _each("prior", prior, num_layers)
    guides = _each("posterior", posterior, num_layers)
    networks = _networks(network, num_layers)
    bottom = assemble(
        event_shape, latent_shapes[0], prior=families[0] if num_layers == 1 else StandardNormal,
        likelihood=likelihood, posterior=guides[0], network=networks[0], encoder=encoder,
        decoder=decoder, data=data,
    )  # fmt: skip
    priors: list[Any] = [bottom["prior"]]
    posteriors: list[Any] = [bottom["posterior"]]
    for layer in range(1, num_layers):
        below, shape = latent_shapes[layer - 1], latent_shapes[layer]
        dependent = dependent_family(families[layer - 1], guides[layer - 1], below)
        priors[-1] = Conditional(dependent, context_shape=shape, network=networks[layer])
        priors.append(learned(built("prior", families[layer], Family, shape)))
        posteriors.append(
            Conditional(
                built("posterior", guides[layer], Family, shape),
                context_shape=below,
                network=networks[layer],
            )
        )
    top = priors[-1]
    if num_layers > 1 and isinstance(top, Family) and _meets(top):
        top.start_from_posterior(posteriors[-1], _climbed(posteriors[:-1], data))
    return {"priors": priors, "likelihood": bottom["likelihood"], "posteriors": posteriors}


def _meets(prior: nn.Module) -> bool:
    ours = Family.start_from_posterior
    return getattr(type(prior), "start_from_posterior", ours) is not ours


@torch.no_grad()
def _climbed(posteriors: Sequence[nn.Module], data: Tensor | None) -> Tensor | None:
    """Return what the posteriors make of the data: draws of the layer below the top."""
    for posterior in posteriors:
        data = None if data is None else posterior(data).sample()
    return data


@at_the_door
def assemble_ladder(
    event_shape: Shape,
    latent_shapes: Sequence[Shape],
    *,
    network: Network | Sequence[Network] = MLP,
    encoder: Network | None = None,
    data: Tensor | None = None,
    width: int = 8,
    **families: Any,
) -> dict[str, Any]:
    """Build a ladder: the layers of a hierarchy, and a way up without noise beside them.

    The deterministic state d_l is a vector, and what it says of z_l is linear in it.

    Args:
        event_shape: The shape of one datum.
        latent_shapes: The shape of one latent of each layer, from the data up.
        network: Builds a network from the shapes of an input and an output.
        encoder: The same for the first step up alone, in place of ``network``.
        data: Observations, ``[N, *event_shape]``, as in ``assemble``.
        width: How many numbers d_l has for each number of z_l, as many as in the paper.
        families: ``prior``, ``likelihood``, ``posterior`` and ``decoder``, as in
            ``assemble_hierarchy``.

    Returns:
        The modules "priors" (a list, from the data up), "likelihood", "upward" and "posteriors"
        (likewise).

    Raises:
        ValueError: If there is no layer, or a list has not one entry for each.

    References:
        Ladder Variational Autoencoders (Sønderby et al., 2016)
    """
    parts = assemble_hierarchy(
        event_shape, latent_shapes, network=network, encoder=encoder, data=data, **families
    )
    if _meets(parts["priors"][-1]):
        raise ValueError(
            f"{type(parts['priors'][-1]).__name__} needs the posterior of its latent as one module "
            "that maps data to it, which a ladder has not: use HierarchicalVAE, or StandardNormal"
        )
    networks = _networks(network, len(latent_shapes))
    first = observed(encoder or networks[0], parts["likelihood"].family, data)
    networks[0] = partial(standardized, data, first)
    upward: list[nn.Module] = []
    posteriors: list[nn.Module] = []
    state = event_shape
    for build, shape, posterior in zip(networks, latent_shapes, parts["posteriors"], strict=True):
        below, state = state, (width * math.prod(shape),)
        upward.append(nn.Sequential(build(below, state), nn.SiLU()))
        linear = partial(MLP, hidden=())
        posteriors.append(Conditional(posterior.family, context_shape=state, network=linear))
    return {**parts, "upward": upward, "posteriors": posteriors}


def observations(data: Tensor | None, event_shape: Shape) -> Tensor | None:
    """Return data as numbers with a point, held against the shape of an event.

    Raises:
        ValueError: If there are none, or they have another shape.
    """
    if data is None:
        return None
    event_shape = checked_shape("event_shape", event_shape)
    if data.dim() < 2 or len(data) == 0 or tuple(data.shape[1:]) != event_shape:
        raise ValueError(
            f"data has shape {tuple(data.shape)}, expected (N, {', '.join(map(str, event_shape))}):"
            f" one row or more of event_shape={event_shape}"
        )
    return data if data.is_floating_point() else data.to(torch.get_default_dtype())


def _each(name: str, given: _T | Sequence[_T], num_layers: int) -> list[_T]:
    """Return one entry for each layer."""
    entries: list[_T] = list(given) if isinstance(given, Sequence) else [given] * num_layers
    if len(entries) != num_layers:
        raise ValueError(
            f"{name}: {len(entries)} given for {num_layers} layer(s) of latents; give one for each "
            "layer, or a single one for all"
        )
    return entries


def _networks(network: Network | Sequence[Network], num_layers: int) -> list[Network]:
    if not isinstance(network, Sequence):
        return [network] + [partial(_between_latents, network)] * (num_layers - 1)
    return _each("network", network, num_layers)


def _between_latents(network: Network, in_shape: Shape, out_shape: Shape) -> nn.Module:
    try:
        return network(in_shape, out_shape)
    except ValueError:  # one that needs an image on one side, as it has next to the data
        return MLP(in_shape, out_shape)


def dependent_family(
    prior: Callable[[Shape], Family], posterior: Callable[[Shape], Family], shape: Shape
) -> Family:
    """Return the family of p(z_l | z_{l+1})."""
    family = prior(shape)
    if not family.is_fixed:
        return family
    alike = posterior(shape)
    support = alike(torch.zeros(alike.raw_shape)).support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return DiagonalNormal(shape) if support is constraints.real else alike


def observed(network: Network, likelihood: Family, data: Tensor | None) -> Network:
    """Return the network that takes data, with a mask where numbers are missing."""
    missing = isinstance(likelihood, Incomplete) or (data is not None and bool(data.isnan().any()))
    return partial(Observed, network) if missing else network


def standardized(
    data: Tensor | None, network: Network, in_shape: Shape, out_shape: Shape
) -> nn.Module:
    """Build a network of standardised inputs; without data, they are standardised once met."""
    built = network(in_shape, out_shape)
    if getattr(built, "reads_symbols", False):  # symbols are names, which have no mean
        return built
    inputs = Standardize.unknown(in_shape)
    if data is not None:
        inputs.adapt_inputs(data)
    return nn.Sequential(inputs, built)
