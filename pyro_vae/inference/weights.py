"""Weights that handlers set: of a whole datum, or of the log-density of some sites.

A scale around all sites of model and guide is a weight of the data: it multiplies the bound. One
around some sites weighs their log-densities within it. What subsampled plates scale is neither.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine import runtime
from pyro.poutine.messenger import Messenger
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import Tensor

__all__ = ["DataWeights", "SiteWeights", "Weighing", "num_stood_for", "site_weights", "weighted"]

_AROUND = "scales around it"


class DataWeights(ScaleMessenger):
    """Weigh each datum; unlike ``pyro.poutine.scale``, with zeros as well.

    Args:
        weights: ``[B]``, not negative.
    """

    def __init__(self, weights: Tensor) -> None:
        Messenger.__init__(self)
        self.scale = weights


def weighted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a model or a guide take the weights of its data, ``[B]``, as a last argument."""

    @functools.wraps(function, updated=())
    def with_weights(*args: Any, **kwargs: Any) -> Any:
        *data, weights = args
        with DataWeights(weights):
            return function(*data, **kwargs)

    return with_weights


class Weighing(Messenger):
    """Note at every site which scales stand around it; to be entered first of all."""

    def _pyro_sample(self, msg: Any) -> None:
        around = [h for h in runtime._PYRO_STACK if isinstance(h, ScaleMessenger)]
        msg["infer"] = {**msg["infer"], _AROUND: around}


def num_stood_for(site: Any) -> tuple[float, float]:
    """Return how many data each datum stands for, and how many elements each one inside a datum."""
    data = inner = 1.0
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None and frame.full_size != frame.size:
            if frame.name == "data" and frame.dim == -1:
                data = frame.full_size / frame.size
            else:
                inner *= frame.full_size / frame.size
    return data, inner


@dataclass(frozen=True)
class SiteWeights:
    """What handlers weigh a program's sites with.

    Attributes:
        of_data: The weight of each datum, a number or ``[B]``.
        of_model: What each site of the model is weighed with besides, a number or ``[B]``.
        of_guide: Likewise, of the guide.
    """

    of_data: Any
    of_model: dict[str, Any]
    of_guide: dict[str, Any]


def site_weights(model: Mapping[str, Any], guide: Mapping[str, Any], num_data: int) -> SiteWeights:
    """Part the scales of a program's sites into that of the data and those of the sites.

    Args:
        model: The traced sites of the model, by name.
        guide: Those of the guide's latents.
        num_data: B, the number of data.

    Raises:
        ValueError: If a weight is neither a number nor one for each datum.
    """
    of_model = {name: _weight(name, site, num_data) for name, site in model.items()}
    of_guide = {name: _weight(name, site, num_data) for name, site in guide.items()}
    of_data = _common([*model.values()], [*guide.values()])
    if of_data is None:
        of_data = _of_all([*of_model.values(), *of_guide.values()])
    if isinstance(of_data, float) and of_data == 1:
        return SiteWeights(1.0, of_model, of_guide)
    if isinstance(of_data, Tensor):
        of_data = of_data.reshape(-1) if of_data.dim() > 1 else of_data
    left = [
        {name: _without(weight, of_data) for name, weight in weights.items()}
        for weights in (of_model, of_guide)
    ]
    return SiteWeights(of_data, *left)


def _weight(name: str, site: Any, num_data: int) -> Any:
    """Return what handlers scale a site with, without what subsampled plates do."""
    scale = site["scale"]
    if isinstance(scale, Tensor):
        if scale.numel() > 1 and tuple(scale.shape) != (*[1] * (scale.dim() - 1), num_data):
            raise ValueError(
                f"the scale of site {name!r} has shape {tuple(scale.shape)} for a batch of "
                f"{num_data} data: give a number, or one weight for each datum, [{num_data}]"
            )
        scale = scale.reshape(-1) if scale.numel() > 1 else scale.reshape(())
    factor = math.prod(num_stood_for(site))
    return scale if factor == 1 else scale / factor


def _common(model: list[Any], guide: list[Any]) -> Any:
    """Return the product of the scales around all sites of both; None if one has none of these."""
    scales = []
    for sites in (model, guide):
        around = [site["infer"].get(_AROUND, []) for site in sites]
        shared = [h for h in around[0] if all(any(h is o for o in other) for other in around)]
        if not shared:
            return None
        scales.append(math.prod([handler.scale for handler in shared], start=1.0))
    if not any(isinstance(scale, Tensor) for scale in scales) and scales[0] != scales[1]:
        return None
    return scales[0]


def _of_all(weights: list[Any]) -> Any:
    """Return the weight of all sites where it is one number, or the very same tensor; else 1."""
    first = weights[0]
    if all(weight is first for weight in weights):
        return first
    numbers = all(isinstance(weight, (int, float)) for weight in weights)
    return float(first) if numbers and all(weight == first for weight in weights) else 1.0


def _without(weight: Any, of_data: Any) -> Any:
    if not isinstance(weight, Tensor) and not isinstance(of_data, Tensor):
        return weight / of_data
    weight = torch.as_tensor(weight)
    # A datum of weight 0 counts nothing, whatever its sites weigh.
    return torch.where(torch.as_tensor(of_data) == 0, torch.ones_like(weight), weight / of_data)
