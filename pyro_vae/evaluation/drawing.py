"""Draw what a model generates by a rule, or let it have the likeliest categories as means."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger

from pyro_vae.distributions.drawing import DrawingRule, drawn_with
from pyro_vae.distributions.entries import likeliest

__all__ = ["Drawing", "Likeliest"]


class Drawing(Messenger):
    """Draw data at a temperature, greedily, or from a nucleus; no probability changes.

    ``Drawing(temperature=0.7)(vae.model)`` is a model that generates such data, for
    ``prior_samples``, ``decode``, ``reconstruct`` and for Pyro's ``Predictive`` alike. Latents are
    drawn as ever: sites of other names are left alone.

    Args:
        temperature: Below 1, data are more typical and less varied; 0 is greedy, symbol by symbol.
        nucleus: The probability of the likeliest symbols that are drawn from; 1: all of them.
        sites: The sites of the data.

    Raises:
        ValueError: If a number is out of range; on running, if a site is not drawn symbol by
            symbol.

    References:
        The Curious Case of Neural Text Degeneration (Holtzman, Buys, Du, Forbes & Choi, 2020)
    """

    def __init__(
        self,
        temperature: float = 1.0,
        nucleus: float = 1.0,
        *,
        sites: tuple[str, ...] = ("x",),
    ) -> None:
        super().__init__()
        self.rule = DrawingRule(temperature, nucleus)
        self.sites = sites

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a model, so that it generates data by the rule."""
        wrapper = super().__call__(fn)
        functools.update_wrapper(wrapper, fn, updated=())
        return wrapper

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites and not poutine.util.site_is_subsample(msg):
            msg["fn"] = drawn_with(msg["fn"], self.rule)


class Likeliest(Messenger):
    """Let columns of categories have the likeliest one as their mean; no probability changes.

    ``Likeliest()(vae.model)`` is a model whose typical rows of a table hold categories: a mean of
    their numbers, such as 1.07, is none.
    """

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a model."""
        wrapper = super().__call__(fn)
        functools.update_wrapper(wrapper, fn, updated=())
        return wrapper

    def _pyro_sample(self, msg: Any) -> None:
        if not poutine.util.site_is_subsample(msg):
            msg["fn"] = likeliest(msg["fn"])
