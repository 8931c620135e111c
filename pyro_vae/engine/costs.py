"""Estimate the memory of a step from steps on a few rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae import memory
from pyro_vae.budget import Budget, OverBudgetError

__all__ = ["check_step"]

_FEW = 3


def check_step(
    parameters: Callable[[], dict[str, Tensor]],
    optimizer: Callable[[], Any],
    step: Callable[[int], object],
    batch_size: int,
) -> int:
    """Run a step's gradients on a few rows, and refuse a batch that memory cannot hold.

    Beside what the step itself takes, at its peak, stand the moments of an optimiser such as
    Adam's and a copy of the best weights. What grows with the rows is separated from what does
    not by two more runs, where the first leaves any doubt.

    Args:
        parameters: The program's, once the step has met them.
        optimizer: That steps them.
        step: Computes the gradients on so many rows.
        batch_size: How many rows the real steps have.

    Returns:
        The number of multiplications of the largest product of a real step.

    Raises:
        OverBudgetError: With the figures and what to make smaller.
    """
    with Budget() as few:
        step(_FEW)
    weights = sum(p.nbytes for p in parameters().values())
    beside = weights * (3 if "betas" in getattr(optimizer(), "defaults", {}) else 1)
    free = memory.available()
    if free is not None and few.allocated / _FEW * max(_FEW, batch_size) + beside > free:
        _look_closer(parameters(), step, batch_size, few.allocated, weights, beside, free)
    return few.largest_product * batch_size // _FEW


def _look_closer(
    parameters: dict[str, Tensor],
    step: Callable[[int], object],
    batch_size: int,
    allocated: int,
    weights: int,
    beside: int,
    free: int,
) -> None:
    # As many as surely fit: on few rows the peak is where the weights' gradients are, on many not.
    many = min(max(2 * _FEW, int(free * _FEW / (2 * allocated))), max(batch_size, 2 * _FEW))
    half, all_ = _peak(step, many // 2), _peak(step, many)
    each = max(0, all_ - half) / (many - many // 2)
    at_any_size = all_ - each * many + beside
    if (needed := at_any_size + each * batch_size) <= free:
        return
    shape, where = _largest(parameters)
    fits = int((free - at_any_size) / each) if each > 0 else 0
    if fits >= 1:
        what = f"a step on {batch_size:,} data", f"lower batch_size, to {fits:,} or less"
        shape = (batch_size,)
    elif 2 * (weights + beside) > needed:
        count = sum(p.numel() for p in parameters.values())
        what = f"training {count:,} parameters", f"make the largest smaller, {where} of {shape}"
    else:
        what = "a step on a single datum", "give fewer particles, pseudo-inputs or flows"
        shape = ()
    raise OverBudgetError(
        f"{what[0]} takes about {memory.shown(int(needed))} with gradients and the optimiser's "
        f"state, and {memory.shown(free)} are free; {what[1]}",
        shape,
    )


def _peak(step: Callable[[int], object], num_rows: int) -> int:
    with Budget() as budget:
        step(num_rows)
    return budget.peak


def _largest(parameters: dict[str, Tensor]) -> tuple[tuple[int, ...], str]:
    name = max(parameters, key=lambda name: parameters[name].numel())
    return tuple(torch.Size(parameters[name].shape)), name
