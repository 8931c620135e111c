"""Enumeration from outside: which of a guide's sites are run through instead of sampled."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pyro_vae.inference.handlers import Handler

__all__ = ["Enumerated"]


class Enumerated(Handler):
    r"""Run through all values of discrete latents, or the components of mixtures.

    .. math:: E_q[f] = \sum_k q(k \mid x) \, E_q[f \mid k, x]

    Wrap the guide. Each particle of a datum then has a value of its own, and every objective that
    takes means over particles weighs them by q: value and gradient are exact in the discrete
    latent, equal to those of ``pyro.infer.TraceEnum_ELBO``. Of a mixture each component has a
    particle of its own, reparameterised, and the density is that of the whole mixture. A step costs
    as much as one with so many particles; several sites take the product of their numbers.

    The mark is Pyro's own, ``infer={"enumerate": "parallel"}``: a guide may set it itself, or wear
    ``pyro.infer.config_enumerate``. Evaluations draw samples in any case. Where a mask leaves a
    site out, as where a label is given, its particles count alike.

    Args:
        sites: Latents of the guide that are a Categorical, OneHotCategorical, Bernoulli or any
            other distribution with a list of values, small vectors of them (``.to_event``), or
            mixtures with ``mixture_distribution`` and ``component_distribution``.

    Raises:
        TypeError: If the sites are one string, or not all strings.
        ValueError: If there are none; before the first step, if one of them is not in the guide,
            has no list of values or more than memory holds, stands in a plate inside a datum, if
            the program does not take several particles at once, or if the objective does more with
            particles than take means.

    References:
        Semi-Supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling,
        2014)
        Automatic Differentiation Variational Inference with Mixtures (Morningstar, Vikram, Ham,
        Gallagher & Dillon, 2021)
    """

    def __init__(self, sites: Collection[str]) -> None:
        super().__init__(sites)

    def _pyro_sample(self, msg: Any) -> None:
        if self.is_for(msg):
            msg["infer"] = {**msg["infer"], "enumerate": "parallel"}
