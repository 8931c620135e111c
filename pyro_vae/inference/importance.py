"""Importance-weighted bounds, and better gradients of them for the guide.

Particles are weighed within each datum. All of these need reparameterised latents; ``RWS``, ``TVO``
and ``VIMCO`` do without.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyro_vae.arguments import at_the_door
from pyro_vae.inference.detached import split_terms, through_samples
from pyro_vae.inference.objectives import IWAE, Bound, Objective, data_weight, log_mean_exp, weighed
from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import Layout
from pyro_vae.inference.strata import average
from pyro_vae.inference.terms import SiteTerms, site_terms

__all__ = ["CIWAE", "MIWAE", "PIWAE", "DReG", "InChunks", "Renyi"]


class Renyi(Bound):
    r"""The variational Renyi bound, from the ELBO (alpha towards 1) to IWAE (alpha = 0) and beyond.

    .. math:: \frac{1}{1-\alpha} \log \frac1S \sum_s
        \left(\frac{p(x, z_s)}{q(z_s \mid x)}\right)^{1-\alpha}

    A lower bound on log p(x) for alpha of 0 or more; the smaller alpha, the closer. A negative
    alpha gives no bound: that gradient is followed, but IWAE's bound is reported.

    Args:
        alpha: The order of the bound, any number but 1.
        num_particles: S, the number of samples of the latents for each datum.

    Raises:
        ValueError: If alpha is 1 or not finite; before the first step, if a latent is not
            reparameterised.

    References:
        Renyi Divergence Variational Inference (Li & Turner, 2016)
    """

    averages = True

    @at_the_door
    def __init__(self, alpha: float = 0.5, num_particles: int = 50) -> None:
        _check_alpha(alpha)
        super().__init__(num_particles)
        self.alpha = alpha

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the bound of each datum in nats, ``[B]``; IWAE's for a negative alpha."""
        return _power_mean(terms.log_w, max(self.alpha, 0.0), terms.log_share)

    def bound(self, log_w: Tensor, log_share: Tensor | None = None) -> Tensor:
        """Return what is followed for each datum in nats, ``[B]``."""
        return _power_mean(log_w, self.alpha, log_share)


class MIWAE(Bound):
    r"""The average of M importance-weighted bounds, of K = S / M particles each.

    .. math:: \frac1M \sum_m \log \frac1K \sum_k \frac{p(x, z_{mk})}{q(z_{mk} \mid x)}

    ELBO for as many groups as particles, IWAE for one.

    Args:
        num_particles: S, the number of samples of the latents for each datum.
        num_groups: M, which divides S.

    Raises:
        ValueError: If the groups do not divide the particles; before the first step, if a latent
            is not reparameterised.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018)
    """

    averages = True

    @at_the_door
    def __init__(self, num_particles: int = 64, num_groups: int = 8) -> None:
        _check_groups(num_particles, num_groups)
        super().__init__(num_particles)
        self.num_groups = num_groups

    def bound(self, log_w: Tensor, log_share: Tensor | None = None) -> Tensor:
        """Return the average of the groups' bounds of each datum in nats, ``[B]``."""
        if log_share is not None:  # all strata of a sample are in its group
            log_share = _in_groups(log_share, self.num_groups) + math.log(self.num_groups)
        return log_mean_exp(_in_groups(log_w, self.num_groups), log_share).mean(0)


class CIWAE(Bound):
    r"""A point between the ELBO (beta = 1) and the importance-weighted bound (beta = 0).

    .. math:: \frac\beta S \sum_s \log w_s + (1 - \beta) \log \frac1S \sum_s w_s,
        \qquad w_s = \frac{p(x, z_s)}{q(z_s \mid x)}

    Args:
        beta: The weight of the ELBO beside the IWAE bound, in [0, 1].
        num_particles: S, the number of samples of the latents for each datum.

    Raises:
        ValueError: If beta is not in [0, 1]; before the first step, if a latent is not
            reparameterised.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018)
    """

    averages = True

    @at_the_door
    def __init__(self, beta: float = 0.5, num_particles: int = 64) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"beta={beta}: the part of the ELBO lies between 0 and 1")
        super().__init__(num_particles)
        self.beta = beta

    def bound(self, log_w: Tensor, log_share: Tensor | None = None) -> Tensor:
        """Return the combination of both bounds for each datum in nats, ``[B]``."""
        of_weights = log_mean_exp(log_w, log_share)
        return self.beta * average(log_w, log_share) + (1 - self.beta) * of_weights


class PIWAE(Bound):
    r"""IWAE's bound for the model, MIWAE's for the guide, from the same particles.

    The model follows :math:`\log \frac1S \sum_s w_s`, which is reported, and the guide
    :math:`\frac1M \sum_m \log \frac1K \sum_k w_{mk}`, whose gradient has a better signal-to-noise
    ratio. What model and guide share gets each gradient on its own way.

    Args:
        num_particles: S, the number of samples of the latents for each datum.
        num_groups: M, which divides S.

    Raises:
        ValueError: If the groups do not divide the particles; before the first step, if a latent
            is not reparameterised.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018)
    """

    exact_instead = "IWAE"

    @at_the_door
    def __init__(self, num_particles: int = 64, num_groups: int = 8) -> None:
        _check_groups(num_particles, num_groups)
        super().__init__(num_particles)
        self.num_groups = num_groups

    def table(self, program: Program, layout: Layout, *args: Any) -> SiteTerms:
        """Run the program with its samples cut out of the graph."""
        return split_terms(program, layout, *args, num_particles=self.num_particles)

    def bound(self, log_w: Tensor, log_share: Tensor | None = None) -> Tensor:
        """Return the log of the mean weight of each datum in nats, ``[B]``."""
        return log_mean_exp(log_w, log_share)

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``."""
        log_p, log_q = weighed(terms)
        log_w = log_p - log_q
        of_model = log_w.detach().softmax(0)
        of_guide = _in_groups(log_w.detach(), self.num_groups).softmax(0) / self.num_groups
        ways = of_model * log_p + of_guide.reshape(of_model.shape) * (
            through_samples(terms, log_w) - log_q
        )
        return data_weight(terms) * ways.sum(0)


class DReG(Bound):
    r"""The importance-weighted bound with the doubly reparameterised gradient for the guide.

    .. math:: \nabla_\phi = \sum_s \bar w_s^2
        \frac{\partial \log w_s}{\partial z_s} \frac{\partial z_s}{\partial \phi}, \qquad
        \bar w_s = \frac{w_s}{\sum_r w_r}

    The expectation is that of IWAE's gradient, but the signal-to-noise ratio grows with S. The
    model follows IWAE's own. With ``alpha``, the same for the Renyi bound: the weights are those
    of :math:`w^{1-\alpha}`, and :math:`\bar w_s^2` becomes
    :math:`\alpha \bar w_s + (1 - \alpha) \bar w_s^2`. Reported is the bound, as by ``Renyi``.
    Where the guide draws one latent given another, all of them are reparameterised together.

    Args:
        num_particles: S, the number of samples of the latents for each datum.
        alpha: The order of the Renyi bound, any number but 1; 0 for IWAE.

    Raises:
        ValueError: If alpha is 1 or not finite; before the first step, if a latent is not
            reparameterised or has a weight of its own.

    References:
        Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker, Lawson, Gu
        & Maddison, 2019)
        Generalized Doubly Reparameterized Gradient Estimators (Bauer & Mnih, 2021)
    """

    exact_instead = "IWAE"

    @at_the_door
    def __init__(self, num_particles: int = 50, *, alpha: float = 0.0) -> None:
        _check_alpha(alpha)
        super().__init__(num_particles)
        self.alpha = alpha

    def refusal(self, terms: SiteTerms) -> str | None:
        """Say which latent carries no gradients or has a weight of its own, if one does."""
        return super().refusal(terms) or reweighed(self, terms)

    def table(self, program: Program, layout: Layout, *args: Any) -> SiteTerms:
        """Run the program with its samples cut out of the graph."""
        return split_terms(program, layout, *args, num_particles=self.num_particles)

    def bound(self, log_w: Tensor, log_share: Tensor | None = None) -> Tensor:
        """Return the bound of each datum in nats, ``[B]``; IWAE's for a negative alpha."""
        return _power_mean(log_w, max(self.alpha, 0.0), log_share)

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``."""
        log_p, log_q = weighed(terms)
        log_w = log_p - log_q
        weights = ((1 - self.alpha) * log_w.detach()).softmax(0)
        of_guide = self.alpha * weights + (1 - self.alpha) * weights**2
        ways = weights * log_p + of_guide * through_samples(terms, log_w)
        return data_weight(terms) * ways.sum(0)


class InChunks(Objective):
    """An objective whose particles are drawn a few at a time, for more than the memory holds.

    The gradient is that of all particles at once. What the backward pass needs of a chunk is not
    kept but computed anew from the same random numbers, which takes about a third more time; the
    memory grows with ``particles_at_once``, and with all particles only by their log-densities.
    Running averages of a program (batch normalisation) are updated by both runs. Steps are not
    recorded.

    Args:
        objective: One made of log-densities alone: ELBO, IWAE, Renyi, MIWAE, CIWAE, VIMCO.
        particles_at_once: The number of particles in a chunk.

    Raises:
        ValueError: If ``particles_at_once`` is less than 1.
        TypeError: If the objective takes more than the log-densities, as DReG does.
    """

    exact_instead = "the objective in it, with fewer particles or a smaller batch"
    example: ClassVar = {"objective": IWAE(4), "particles_at_once": 2}

    @at_the_door
    def __init__(self, objective: Objective, particles_at_once: int = 100) -> None:
        if particles_at_once < 1:
            raise ValueError(f"particles_at_once={particles_at_once}: at least one is needed")
        if type(objective).table is not Objective.table:
            raise TypeError(
                f"InChunks({type(objective).__name__}): this objective needs the samples of all "
                "particles, not their log-densities alone; use IWAE, or fewer particles"
            )
        super().__init__(objective.num_particles)
        self.objective = objective
        self.particles_at_once = particles_at_once

    def refusal(self, terms: SiteTerms) -> str | None:
        """Say what the objective says."""
        return self.objective.refusal(terms)

    def table(self, program: Program, layout: Layout, *args: Any) -> SiteTerms:
        """Run the program chunk by chunk."""
        first: SiteTerms | None = None

        def chunk(size: int) -> tuple[Tensor, ...]:
            nonlocal first
            terms = site_terms(program, layout, *args, num_particles=size)
            first = first or replace(terms, latents={}, values={})
            return (*terms.log_p.values(), *terms.log_q.values(), *terms.auxiliary.values())

        starts = range(0, self.num_particles, self.particles_at_once)
        sizes = [min(self.particles_at_once, self.num_particles - start) for start in starts]
        columns = [checkpoint(chunk, size, use_reentrant=False) for size in sizes]
        assert first is not None
        rows = iter([torch.cat(column) for column in zip(*columns, strict=True)])
        parts = ("log_p", "log_q", "auxiliary")
        whole: Any = {part: {n: next(rows) for n in getattr(first, part)} for part in parts}
        return replace(first, **whole)

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the objective's bound of each datum in nats, ``[B]``."""
        return self.objective.value(terms)

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``."""
        return self.objective.surrogate(terms)


def reweighed(objective: Objective, terms: SiteTerms) -> str | None:
    """Say which latent's log q a handler weighs: the score then is not that of the samples."""
    for name, scale in terms.scale_q.items():
        weights = torch.as_tensor(scale).flatten()
        weight = float(weights[(weights - 1).abs().argmax()])
        if abs(weight - 1) > 1e-6:
            return (
                f"{type(objective).__name__} takes log q as it is, but a handler weighs that of "
                f"site {name!r} with {weight:g}: its gradient would be biased; use IWAE or PIWAE "
                "with a KL weight"
            )
    return None


def _power_mean(log_w: Tensor, alpha: float, log_share: Tensor | None) -> Tensor:
    return log_mean_exp((1 - alpha) * log_w, log_share) / (1 - alpha)


def _in_groups(log_w: Tensor, num_groups: int) -> Tensor:
    """Give each group a column: ``[S, B]`` to ``[S / M, M, B]``."""
    return log_w.reshape(-1, num_groups, log_w.shape[-1])


def _check_alpha(alpha: float) -> None:
    if alpha == 1:
        raise ValueError("alpha=1: that Renyi bound is the ELBO; use ELBO")
    if not math.isfinite(alpha):
        raise ValueError(f"alpha={alpha}: the order is a finite number; 0 gives IWAE's bound")


def _check_groups(num_particles: int, num_groups: int) -> None:
    if num_groups < 1 or num_particles % num_groups:
        raise ValueError(
            f"num_groups={num_groups}: {num_particles} particles cannot be shared among so many "
            f"groups; choose a divisor of num_particles={num_particles}"
        )
