"""Run a program with some latents set to values, or on data that it generates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.constraints import sphere
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.inference.sites import Layout
from pyro_vae.inference.terms import mean_of, rows_first

__all__ = ["NUM_DRAWS", "site_rows", "substituted"]

# Of a latent that has no mean of its own, and of a prior that has no variance.
NUM_DRAWS = 256


def substituted(
    function: Callable[..., Any],
    values: Mapping[str, Tensor],
    layout: Layout,
    args: tuple[Tensor, ...],
    *,
    center: bool = False,
    stochastic: bool = False,
    temperature: float = 1.0,
) -> Any:
    """Run a program with these latents and generated data; arguments as in ``_Substitute``."""
    handler = _Substitute(
        values, layout.generated, center=center, stochastic=stochastic, temperature=temperature
    )
    with handler:
        return poutine.trace(function).get_trace(*args)


def site_rows(site: Any) -> Tensor:
    """Return the values of a traced site, ``[N, ..., *event_shape]``."""
    return rows_first(site["value"], len(site["fn"].event_shape))


class _Substitute(Messenger):
    """Set latents to given values, and generate the data instead of observing them.

    Args:
        values: Of latent sites, ``[N, ...]``.
        observed: The observed sites to generate; what they observe is kept as ``infer["obs"]``.
        center: Set the other latents to their centres instead of drawing them.
        stochastic: Draw the data instead of taking their mean.
        temperature: What the distance of the latents that are drawn from their mean is scaled by.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        observed: tuple[str, ...],
        *,
        center: bool,
        stochastic: bool,
        temperature: float,
    ) -> None:
        super().__init__()
        self.values = values
        self.observed = observed
        self.center = center
        self.stochastic = stochastic
        self.temperature = temperature

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if poutine.util.site_is_subsample(msg):
            return
        if name in self.observed:
            msg["is_observed"] = False
            msg["infer"] = {**msg["infer"], "obs": msg["value"]}
            mean = None if self.stochastic else mean_of(fn)
            msg["value"] = fn.sample() if mean is None else mean
        elif not msg["is_observed"] and msg["value"] is None:
            if name in self.values:
                msg["value"] = _placed(name, self.values[name], fn)
            elif self.center:
                msg["value"] = _center(fn)
            elif self.temperature != 1:
                msg["value"] = _cooled(name, fn, self.temperature)


def _center(fn: Any) -> Tensor:
    mean = mean_of(fn)
    if mean is not None:
        return mean
    if fn.support.is_discrete:
        with suppress(NotImplementedError):
            return fn.mode
    return fn.sample((NUM_DRAWS,)).mean(0)


def _cooled(name: str, fn: Any, temperature: float) -> Tensor:
    if isinstance(fn, torch.distributions.Independent):
        return _cooled(name, fn.base_dist, temperature)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        value = _cooled(name, fn.base_dist, temperature)
        for transform in fn.transforms:
            value = transform(value)
        return value
    # The mean of directions is no direction, nor is what lies between.
    apart = fn.support.is_discrete or fn.support is sphere
    mean = None if apart else mean_of(fn)
    if mean is None:
        raise ValueError(
            f"temperature={temperature:g}: the distribution of site {name!r} is discrete, of "
            "directions, or has no mean to draw nearer to; sample at temperature 1"
        )
    return mean + temperature * (fn.sample() - mean)


def _placed(name: str, value: Tensor, fn: Any) -> Tensor:
    """Move the rows of ``[N, ...]`` to where the site has its data."""
    shape = fn.batch_shape + fn.event_shape
    batch_dim = len(fn.batch_shape) - 1
    rows_expected = (shape[batch_dim], *shape[:batch_dim], *fn.event_shape)
    if tuple(value.shape) != rows_expected:
        raise ValueError(
            f"the values of site {name!r} have shape {tuple(value.shape)} where the model has "
            f"{rows_expected}"
        )
    return value.movedim(0, batch_dim)
