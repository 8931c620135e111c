"""Objectives: reductions of the table of site terms, as Pyro ELBO objects.

Each has a *value*, the bound that is reported, and a *surrogate*, whose gradient is followed. They
work in ``pyro.infer.SVI``, too. All particles are drawn at once where the program allows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyro_vae.inference.program import Layout, Program
from pyro_vae.inference.terms import SiteTerms, site_terms

__all__ = ["ELBO", "IWAE", "Objective"]


class Objective(PyroELBO):
    """A bound on log p(x) for each datum, from its table of site terms.

    A leaf defines ``value`` and, where another gradient is followed, ``surrogate``. Losses keep
    Pyro's convention: negative, summed over the data, scaled as a subsampled plate says.

    Args:
        num_particles: S, the number of samples of the latents for each datum.

    Raises:
        ValueError: If ``num_particles`` is less than 1.
    """

    def __init__(self, num_particles: int = 1) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles={num_particles}: at least one sample is needed")
        super().__init__(num_particles=num_particles)
        self.vectorize_particles = True
        self._layouts: dict[Any, Layout] = {}

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the bound of each datum in nats, ``[B]``."""
        raise NotImplementedError

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``, with all scales applied."""
        raise NotImplementedError

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> float:
        """Return the negative bound, summed over the data."""
        with torch.no_grad():
            program, layout = self._program(model, guide, args)
            terms = site_terms(program, layout, *args, num_particles=self.num_particles)
            return (-data_scale(terms) * self.value(terms).sum()).item()

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any
    ) -> Tensor:
        """Return a tensor with the loss's value and the surrogate's gradient."""
        program, layout = self._program(model, guide, args)
        terms = site_terms(program, layout, *args, num_particles=self.num_particles)
        loss = -data_scale(terms) * self.value(terms).detach().sum()
        surrogate = -self.surrogate(terms).sum()
        return loss + (surrogate - surrogate.detach())

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any
    ) -> float:
        """Return the loss and add the surrogate's gradient to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return Program(model, guide).traces(*args)

    def _program(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...]
    ) -> tuple[Program, Layout]:
        program = Program(model, guide)
        key = (model, guide)
        if key not in self._layouts:
            self._layouts[key] = program.check(*args)
        return program, self._layouts[key]


class ELBO(Objective):
    r"""The evidence lower bound, by Monte Carlo.

    .. math:: \frac1S \sum_s \log p(x, z_s) - \log q(z_s \mid x)

    Gradients go through reparameterised samples; other latents take the score function, weighted
    with the log-weight of their datum. Equal to ``pyro.infer.Trace_ELBO``.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        Black Box Variational Inference (Ranganath, Gerrish & Blei, 2014)
    """

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the mean log-weight of each datum in nats, ``[B]``."""
        return terms.log_w.mean(0)

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``."""
        log_p = [terms.scale_p[name] * log_p for name, log_p in terms.log_p.items()]
        log_q = {name: terms.scale_q[name] * log_q for name, log_q in terms.log_q.items()}
        pathwise = [log_q[name] for name in log_q if terms.pathwise[name]]
        scored = [log_q[name] for name in log_q if not terms.pathwise[name]]
        total = sum(log_p) - sum(pathwise, torch.zeros(()))
        if scored:
            weight = (sum(log_p) - sum(log_q.values())).detach()
            total = total + weight * sum(scored)
        return total.mean(0)


class IWAE(Objective):
    r"""The importance-weighted bound, which grows with S towards log p(x).

    .. math:: \log \frac1S \sum_s \frac{p(x, z_s)}{q(z_s \mid x)}

    The particles of each datum are weighed among themselves. Gradients go through
    reparameterised samples.

    Raises:
        ValueError: At the first step, if a latent is not reparameterised.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016)
    """

    def __init__(self, num_particles: int = 50) -> None:
        super().__init__(num_particles)

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the log of the mean weight of each datum in nats, ``[B]``."""
        return _log_mean_exp(terms.log_w)

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``."""
        for name, pathwise in terms.pathwise.items():
            if not pathwise:
                raise ValueError(
                    f"IWAE needs reparameterised latents, but samples of site {name!r} carry no "
                    "gradients: its guide would not be trained; use ELBO, or TraceGraph_ELBO"
                )
        # The plate's scale counts data, so it stays outside; relative weights of sites go inside.
        scale = data_scale(terms)
        log_p = sum(terms.scale_p[name] / scale * log_p for name, log_p in terms.log_p.items())
        log_q = sum(terms.scale_q[name] / scale * log_q for name, log_q in terms.log_q.items())
        return scale * _log_mean_exp(log_p - log_q)


def data_scale(terms: SiteTerms) -> Any:
    """Return how many data each datum of the batch stands for: the scale of the observed sites."""
    return next(scale for name, scale in terms.scale_p.items() if name not in terms.log_q)


def _log_mean_exp(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))
