"""Learn a distribution in the units of its data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.components.networks import Standardize
from pyro_vae.components.networks.inputs import alike
from pyro_vae.distributions import kinds_of_units

__all__ = ["units_of"]


@torch.no_grad()
def units_of(distribution: Any, data: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return location and scale of data, ``event_shape`` each; None where they have fixed units.

    Real numbers have their mean and standard deviation, positive ones zero and their median, so
    that they stay positive; other columns of a table, such as counts, have zero and one.

    Args:
        distribution: Of the data.
        data: Observations, ``[N, *event_shape]``; NaN is missing.
    """
    kinds = kinds_of_units(distribution)
    if all(kind == "fixed" for kind in kinds):
        return None
    of_real = Standardize.of(data)
    real, positive = (
        torch.tensor([kind == wanted for kind in kinds], device=data.device)
        for wanted in ("real", "positive")
    )
    loc = torch.where(real, of_real.loc, 0.0)
    median = _median(data) if bool(positive.any()) else torch.ones_like(of_real.scale)
    scale = torch.where(real, of_real.scale, torch.where(positive, median, 1.0))
    shape = data.shape[1:]
    return loc.expand(shape), scale.expand(shape)


def _median(data: Tensor) -> Tensor:
    """Return the median of the positive numbers of each unit, or one where there are none."""
    own = next(axis for axis in range(data.dim()) if axis not in alike(data))
    seen = torch.where(data > 0, data, torch.nan).movedim(own, 0).flatten(1)
    found = seen.nanmedian(1).values.nan_to_num(1.0)
    return found.reshape(-1, *[1] * (data.dim() - 1 - own))
