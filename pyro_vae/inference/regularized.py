"""Regularised objectives (beta-VAE, capacity, free bits); they report the ELBO.

Each is log p(x | z) less a penalty that stands in for the KL. The latents have to be
reparameterised. ``aggregate`` has those that look at the posteriors of all data together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.arguments import at_the_door
from pyro_vae.inference.objectives import Objective, data_weight
from pyro_vae.inference.schedules import Moving, check_weight, current
from pyro_vae.inference.terms import SiteTerms

__all__ = [
    "BetaVAE",
    "Capacity",
    "FreeBits",
    "Groups",
    "Layers",
    "Regularized",
    "Split",
    "Units",
]


class Regularized(Objective):
    r"""Reports the ELBO, and follows :math:`\log p(x \mid z)` less the penalty of a leaf.

    A leaf defines ``penalty``. Scales of handlers weigh the sites, and a subsampled plate's scale
    the whole, as in every objective.
    """

    exact_instead = "BetaVAE"

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the ELBO of each datum in nats, ``[B]``: no weight or penalty is in it."""
        return terms.average(terms.log_w)

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``."""
        observed = [name for name in terms.log_p if name not in terms.log_q]
        log_p = sum(terms.scale_p[name] * terms.log_p[name] for name in observed)
        return data_weight(terms) * (terms.average(torch.as_tensor(log_p)) - self.penalty(terms))

    def penalty(self, terms: SiteTerms) -> Tensor:
        """Return what is taken from log p(x | z) for each datum in nats, ``[B]``."""
        raise NotImplementedError

    def refusal(self, terms: SiteTerms) -> str | None:
        """Say which latent is not reparameterised; None if all are."""
        for name, pathwise in terms.pathwise.items():
            if not pathwise:
                return (
                    f"{type(self).__name__} needs reparameterised latents, but samples of site "
                    f"{name!r} carry no gradients; use AnalyticELBO with KLWeight, which can weigh "
                    "its KL, or a relaxed distribution"
                )
        return None


class BetaVAE(Regularized):
    r"""The KL weighed by beta, :math:`\beta \, KL(q(z \mid x) \,\|\, p(z))`.

    In closed form where there is one. With ``Scheduled`` it is KL annealing; with ``Controlled``
    the weight keeps the KL at a target, which is ControlVAE.

    Args:
        beta: The weight of the KL, not negative.
        num_particles: S, the number of samples of the latents for each datum.

    Raises:
        ValueError: If ``beta`` is negative or not a number.

    References:
        beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework
        (Higgins et al., 2017)
        ControlVAE: Controllable Variational Autoencoder (Shao et al., 2020)
    """

    averages = True

    @at_the_door
    def __init__(self, beta: float | Moving = 4.0, num_particles: int = 1) -> None:
        check_weight("beta", beta)
        super().__init__(num_particles)
        self.beta = beta

    def penalty(self, terms: SiteTerms) -> Tensor:
        """Return beta times the KL of each datum in nats, ``[B]``."""
        kl = terms.average(weighted_kl(terms))
        if not isinstance(self.beta, Moving):
            return self.beta * kl
        # Of the weight now: a controller fills it anew before the backward pass reads it.
        penalty = self.beta.value.clone() * kl
        rate = sum((terms.kl(name) for name in terms.log_q), torch.zeros(()))
        rate = rate.detach()
        self.beta.observe(rate.mean() if terms.log_share is None else terms.average(rate).mean())
        return penalty


class Capacity(Regularized):
    r"""The KL held at a capacity C that grows in training, :math:`\gamma \, |KL - C|`.

    The KL is the mean over the batch, as in its authors' experiments.

    Args:
        capacity: C in nats per datum; in the paper ``Scheduled(Linear(0.0, 25.0))``.
        gamma: The weight of the distance between the KL and C.
        num_particles: S, the number of samples of the latents for each datum.

    Raises:
        ValueError: If ``gamma`` or the capacity is negative or not a number.

    References:
        Understanding disentangling in beta-VAE (Burgess et al., 2018)
    """

    averages = True

    @at_the_door
    def __init__(
        self,
        capacity: float | Moving = 25.0,
        gamma: float | Moving = 1000.0,
        num_particles: int = 1,
    ) -> None:
        check_weight("capacity", capacity)
        check_weight("gamma", gamma)
        super().__init__(num_particles)
        self.capacity = capacity
        self.gamma = gamma

    def penalty(self, terms: SiteTerms) -> Tensor:
        """Return the distance from the capacity in nats, the same for each datum, ``[B]``."""
        kl = over_data(terms, weighted_kl(terms))
        penalty = current(self.gamma) * (kl - current(self.capacity)).abs()
        return penalty.expand(terms.log_w.shape[1])


class Split:
    """How the KL of a site is split into the parts that each have their free bits."""

    def __call__(self, terms: SiteTerms, name: str) -> Tensor:
        """Return the KL of each part in nats, ``[S, B, num_parts]``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Layers(Split):
    """Each latent site is one part."""

    def __call__(self, terms: SiteTerms, name: str) -> Tensor:
        """Return the KL of the site in nats, ``[S, B, 1]``."""
        return terms.kl(name).unsqueeze(-1)


@dataclass(frozen=True)
class Units(Split):
    """Each number of an event is a part; guide and model have to factorise over them."""

    def __call__(self, terms: SiteTerms, name: str) -> Tensor:
        """Return the KL of each unit in nats, ``[S, B, num_units]``."""
        return _unit_kl(terms, name).reshape(*terms.log_w.shape, -1)


@dataclass(frozen=True)
class Groups(Split):
    """So many equal groups of units, cut along the first axis of the event, as channels are.

    Args:
        num_groups: How many groups; the first axis has to be a multiple of it.
    """

    num_groups: int

    def __post_init__(self) -> None:
        if self.num_groups < 1:
            raise ValueError(f"num_groups={self.num_groups}: there is at least one group")

    def __call__(self, terms: SiteTerms, name: str) -> Tensor:
        """Return the KL of each group in nats, ``[S, B, num_groups]``."""
        kl = _unit_kl(terms, name)
        if kl.dim() < 3 or kl.shape[2] % self.num_groups:
            raise ValueError(
                f"num_groups={self.num_groups}: the first axis of site {name!r}, an event of shape "
                f"{tuple(kl.shape[2:])}, cannot be cut into so many equal groups; choose a divisor"
            )
        return kl.unflatten(2, (self.num_groups, -1)).flatten(3).sum(3)


class FreeBits(Regularized):
    r"""No gain from a KL below a threshold, :math:`\sum_j \max(\lambda, E_x[KL_j])`.

    The expectation is over the batch. A part whose mean KL is below the threshold has no gradient
    from its KL at all. Where the KL has no closed form, its sampled mean is compared.

    Args:
        nats: The threshold lambda of each part, in nats.
        split: What the parts are: ``Layers()``, ``Groups(num_groups)`` or ``Units()``.
        num_particles: S, the number of samples of the latents for each datum.

    Raises:
        ValueError: If ``nats`` is negative, or, at the first step, if the units of a site or its
            groups cannot be distinguished.

    References:
        Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
    """

    averages = True

    @at_the_door
    def __init__(
        self, nats: float | Moving = 0.5, split: Split | None = None, num_particles: int = 1
    ) -> None:
        check_weight("nats", nats)
        super().__init__(num_particles)
        self.nats = nats
        self.split = split or Layers()

    def penalty(self, terms: SiteTerms) -> Tensor:
        """Return the KL above the threshold, the same for each datum in nats, ``[B]``."""
        total = torch.zeros(())
        for name in terms.log_q:
            kl = over_data(terms, self.split(terms, name))
            least = torch.as_tensor(current(self.nats)).to(kl)
            total = total + weight_of(terms, name) * torch.where(kl > least, kl, least).sum()
        return total.expand(terms.log_w.shape[1])

    def refusal(self, terms: SiteTerms) -> str | None:
        """Say why the KL cannot be split into these parts; None if it can."""
        reason = super().refusal(terms)
        if reason is not None:
            return reason
        try:
            for name in terms.log_q:
                self.split(terms, name)
        except ValueError as error:
            return str(error)
        return None


def weight_of(terms: SiteTerms, name: str) -> Any:
    """Return what handlers weigh a site's KL with, besides the scale of the data."""
    return terms.scale_q[name]


def over_data(terms: SiteTerms, values: Tensor) -> Tensor:
    """Return the mean of ``[S, B, ...]`` over particles and data, which count their weight."""
    if not isinstance(terms.weight, Tensor) or terms.weight.dim() == 0:
        return values.mean((0, 1)) if terms.log_share is None else terms.average(values).mean(0)
    weights = terms.weight.reshape(-1, *[1] * (values.dim() - 2))
    total = terms.weight.sum().clamp(min=1e-30)
    if terms.log_share is not None:
        return (weights * terms.average(values)).sum(0) / total
    return (weights * values).sum((0, 1)) / (len(values) * total)


def weighted_kl(terms: SiteTerms) -> Tensor:
    """Return the KL over all sites in nats as handlers weigh it, ``[S, B]``."""
    kl = [weight_of(terms, name) * terms.kl(name) for name in terms.log_q]
    return sum(kl, torch.zeros(()))


def _unit_kl(terms: SiteTerms, name: str) -> Tensor:
    kl = terms.unit_kl(name)
    if kl is None:
        raise ValueError(
            f"free bits of units need a guide and a model that factorise over the units of site "
            f"{name!r}, such as diagonal Normals; use FreeBits(split=Layers())"
        )
    return kl
