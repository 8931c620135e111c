"""Reweighted wake-sleep objectives, for latents of any kind.

Model and guide each follow a gradient at given values of the latents, weighed by how well these
explain the datum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.arguments import at_the_door
from pyro_vae.inference.detached import split_terms, through_samples
from pyro_vae.inference.importance import reweighed
from pyro_vae.inference.objectives import Bound, Objective, data_weight, log_mean_exp, weighed
from pyro_vae.inference.program import Program, ProgramError
from pyro_vae.inference.sites import Layout, dreamt
from pyro_vae.inference.terms import SiteTerms, log_densities

__all__ = ["RWS", "TVO", "RWSDReG"]


class RWS(Objective):
    r"""Reweighted wake-sleep: the model and the guide each follow an objective of their own.

    .. math:: \nabla_\theta = \sum_s \bar w_s \nabla \log p_\theta(x, z_s), \qquad
        \nabla_\phi = \lambda \sum_s \bar w_s \nabla \log q_\phi(z_s \mid x)
        + (1 - \lambda) \nabla \log q_\phi(\tilde z \mid \tilde x), \quad
        \tilde x, \tilde z \sim p_\theta

    with the importance weights :math:`\bar w_s` normalised over the particles of each datum. The
    first part of the guide's gradient (wake) fits it to the posterior of the data, the second
    (sleep) to that of data which the model dreams, one for each datum of the batch. The model
    follows IWAE's gradient, and reported is IWAE's bound,
    :math:`\log \frac1S \sum_s p(x, z_s) / q(z_s \mid x)`.

    Args:
        num_particles: S, the number of samples of the latents for each datum.
        insomnia: :math:`\lambda`, the part of the wake phase in the guide's gradient, in [0, 1].

    Raises:
        ValueError: If insomnia is not in [0, 1].
        ProgramError: Before the first step, for a sleep phase, if the model does not observe its
            argument itself, so that a dreamt one cannot take its place, or if the guide is a flow
            without an inverse.

    References:
        Reweighted Wake-Sleep (Bornschein & Bengio, 2015)
        Revisiting Reweighted Wake-Sleep for Models with Stochastic Control Flow
        (Le, Kosiorek, Siddharth, Teh & Wood, 2019)
    """

    synonyms = ("ReweightedWakeSleep",)
    exact_instead = "IWAE"
    weighs_particles = True

    @at_the_door
    def __init__(self, num_particles: int = 10, *, insomnia: float = 1.0) -> None:
        if not 0 <= insomnia <= 1:
            raise ValueError(f"insomnia={insomnia}: the part of the wake phase is between 0 and 1")
        super().__init__(num_particles)
        self.insomnia = insomnia

    def refusal(self, terms: SiteTerms) -> str | None:
        """Say which latent's log q has no gradient to train the guide by, if one's has none."""
        return _without_score(self, terms) or super().refusal(terms)

    def table(self, program: Program, layout: Layout, *args: Any) -> SiteTerms:
        """Run the program with its samples cut out of the graph, and dream if there is sleep."""
        terms = split_terms(program, layout, *args, num_particles=self.num_particles)
        if self.insomnia == 1:
            return terms
        return _Dreamt(**vars(terms), log_q_dreamt=_log_q_dreamt(program, layout, args))

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the log of the mean weight of each datum in nats, ``[B]``."""
        return log_mean_exp(terms.log_w)

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``."""
        log_p, log_q = weighed(terms)
        weights = (log_p - log_q).detach().softmax(0)
        # The guide's own log-density is no term of the bound, so no handler's weight belongs to it.
        total = (weights * (log_p + self.insomnia * _log_q(terms))).sum(0)
        if isinstance(terms, _Dreamt):
            total = total + (1 - self.insomnia) * terms.log_q_dreamt
        return data_weight(terms) * total


class RWSDReG(Bound):
    r"""Reweighted wake-sleep (wake phase) with the doubly reparameterised gradient for the guide.

    .. math:: \nabla_\phi = \sum_s (\bar w_s - \bar w_s^2)
        \frac{\partial \log w_s}{\partial z_s} \frac{\partial z_s}{\partial \phi}

    The expectation is that of ``RWS(insomnia=1)``, with a better signal-to-noise ratio; the model
    follows IWAE's gradient, and reported is IWAE's bound.

    Args:
        num_particles: S, the number of samples of the latents for each datum; 2 or more.

    Raises:
        ValueError: If there are fewer than 2 particles, whose gradient would be zero; before the
            first step, if a latent is not reparameterised or has a weight of its own.

    References:
        Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker, Lawson, Gu
        & Maddison, 2019)
    """

    exact_instead = "IWAE"

    @at_the_door
    def __init__(self, num_particles: int = 10) -> None:
        if num_particles < 2:
            raise ValueError(
                f"num_particles={num_particles}: with fewer than 2, RWSDReG has no gradient for "
                "the guide; take more, or ELBO"
            )
        super().__init__(num_particles)

    def refusal(self, terms: SiteTerms) -> str | None:
        """Say which latent carries no gradients or has a weight of its own, if one does."""
        return super().refusal(terms) or reweighed(self, terms)

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
        weights = log_w.detach().softmax(0)
        ways = weights * log_p + (weights - weights**2) * through_samples(terms, log_w)
        return data_weight(terms) * ways.sum(0)


class TVO(Objective):
    r"""The thermodynamic variational objective: a left Riemann sum of the path from q to p.

    .. math:: \sum_k (\beta_{k+1} - \beta_k)\, E_{\pi_{\beta_k}}[\log w], \qquad
        \pi_\beta \propto q(z \mid x)^{1-\beta}\, p(x, z)^\beta, \quad 0 = \beta_0 < \dots < 1

    Each expectation is taken over the S samples of q, with weights :math:`w^\beta` normalised for
    each datum. Reported is that sum: for any samples it lies between their ELBO and their IWAE
    bound, so its mean is a lower bound on log p(x). The gradient is the covariance estimator, with
    the factor S / (S - 1) of a sample covariance: unbiased for the ELBO's part; that of the other
    points has a bias of order 1 / S, as have the normalised weights themselves.

    Args:
        num_particles: S, the number of samples of the latents for each datum; 2 or more.
        points: The inner points :math:`\beta_1 < \beta_2 < \dots` of the path, between 0 and 1;
            none for the ELBO. One small point does best in the paper.

    Raises:
        ValueError: If there are fewer than 2 particles, or if the points do not increase from 0
            to 1.

    References:
        The Thermodynamic Variational Objective (Masrani, Le & Wood, 2019)
    """

    exact_instead = "IWAE"
    weighs_particles = True

    @at_the_door
    def __init__(self, num_particles: int = 10, *, points: Sequence[float] = (0.03,)) -> None:
        if num_particles < 2:
            raise ValueError(
                f"num_particles={num_particles}: the covariance of TVO's gradient takes at least 2"
            )
        path = [0.0, *points, 1.0]
        if any(not left < right for left, right in pairwise(path)):
            raise ValueError(
                f"points={tuple(points)}: the inner points of the path increase, from above 0 to "
                "below 1, such as points=(0.03, 0.3)"
            )
        super().__init__(num_particles)
        self.steps = tuple(pairwise(path))

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the Riemann sum of each datum in nats, ``[B]``."""
        log_w = terms.log_w
        parts = [(end - beta) * _mean_at(beta, log_w, log_w) for beta, end in self.steps]
        return torch.stack(parts).sum(0)

    def refusal(self, terms: SiteTerms) -> str | None:
        """Say which latent's log q has no gradient to train the guide by, if one's has none."""
        return _without_score(self, terms) or super().refusal(terms)

    def table(self, program: Program, layout: Layout, *args: Any) -> SiteTerms:
        """Run the program with its samples cut out of the graph."""
        return split_terms(program, layout, *args, num_particles=self.num_particles)

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``."""
        log_p, log_q = weighed(terms)
        log_w = log_p - log_q
        parts = [(end - beta) * _ascent(beta, log_w, _log_q(terms)) for beta, end in self.steps]
        return data_weight(terms) * torch.stack(parts).sum(0)


@dataclass(frozen=True, kw_only=True)
class _Dreamt(SiteTerms):
    log_q_dreamt: Tensor  # [B], at what the model has sampled


def _without_score(objective: Objective, terms: SiteTerms) -> str | None:
    for name, (site, *_) in terms.latents.items():
        fn = site.guide["fn"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        if getattr(fn, "is_certain", False):
            return (
                f"{type(objective).__name__} trains the guide by its log q, and that of site "
                f"{name!r}, a single value of probability one, has no gradient; use ELBO"
            )
    return None


def _log_q(terms: SiteTerms) -> Tensor:
    return torch.stack(list(terms.log_q.values())).sum(0)


def _ascent(beta: float, log_w: Tensor, log_q: Tensor) -> Tensor:
    r"""Give the gradient :math:`E[\nabla \log w] + Cov[\nabla \log \pi, \log w]`, ``[B]``."""
    fixed = log_w.detach()
    path = log_q + beta * log_w
    # Centring one factor of a covariance is enough.
    excess = (fixed - _mean_at(beta, fixed, fixed)) * len(fixed) / (len(fixed) - 1)
    return _mean_at(beta, fixed, log_w + excess * path)


def _mean_at(beta: float, log_w: Tensor, values: Tensor) -> Tensor:
    """Return the mean of ``[S, B]`` values under q, tilted by the weights to the power beta."""
    return ((beta * log_w).softmax(0) * values).sum(0)


def _log_q_dreamt(program: Program, layout: Layout, args: tuple[Any, ...]) -> Tensor:
    """Return log q of what the model samples, latents and data, ``[B]``."""
    with torch.no_grad():
        dream = poutine.trace(poutine.uncondition(program.model)).get_trace(*args)
    guide = poutine.replay(program.guide, trace=dream)
    sampled = dreamt(
        dream, layout, args, what="the sleep phase gives dreamt data to the guide",
        mend="use RWS(insomnia=1.0)",
    )  # fmt: skip
    trace = poutine.trace(guide).get_trace(*sampled)
    try:
        log_q = log_densities(trace, (1, len(args[0])), layout.max_plate_nesting)
    except (KeyError, NotImplementedError) as error:
        raise ProgramError(
            "the sleep phase scores latents that the guide has not drawn, which a flow without an "
            "inverse cannot do: use RWS(insomnia=1.0), or another flow"
        ) from error
    return torch.stack(list(log_q.values())).sum(0)[0]
