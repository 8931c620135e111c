"""Estimate the memory of a step from steps on a few rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pyro_vae import memory
from pyro_vae.budget import Budget, OverBudgetError
from pyro_vae.inference.program import Program
from pyro_vae.wording import warn

__all__ = ["check_step", "foresee"]

_FEW = 3
_LARGE_BYTES = 2**27
_MANY = 1000  # particles
_BESIDE = 4  # copies of the weights: gradients, two moments and the best
_BACK_AND_FORTH = 3  # times the multiplications of a run, for its gradients
_EACH_SECOND = 3e10  # multiplications of a core
_LONG_STEP, _LONGEST_STEP = 10.0, 3600.0  # seconds


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


def foresee(
    program: Program, rows: tuple[Tensor, ...], batch_size: int, num_particles: int = 1
) -> None:
    """Refuse a large program that a batch's step has no memory or time for, without running it.

    Its model and guide run on tensors without values. Programs of the user's own may keep those,
    and are left alone, as are small ones, which ``check_step`` runs in no time.

    Args:
        program: With its parameters.
        rows: Its arguments, a few rows.
        batch_size: How many rows the real steps have.
        num_particles: How many draws of the latents there are for each row.

    Raises:
        OverBudgetError: With the figures and what to make smaller.
    """
    parameters = program.parameters()
    weights = sum(p.nbytes for p in parameters.values())
    ours = all(type(root).__module__.startswith("pyro_vae.") for root in program.reachable)
    is_small = weights < _LARGE_BYTES and num_particles < _MANY
    if is_small or not ours or rows[0].device.type != "cpu":
        return
    many = max(2 * _FEW, batch_size)
    few, batch = (_without_values(program, rows, count) for count in (_FEW, many))
    if few is None or batch is None:
        return
    if (free := memory.available()) is not None:
        _refuse_particles(batch.peak, batch_size, num_particles, free)
        each = max(0, batch.peak - few.peak) / (many - _FEW)
        at_any_size = few.peak - each * _FEW + _BESIDE * weights
        _refuse_beyond(parameters, at_any_size, each, batch_size, (1 + _BESIDE) * weights, free)
    _look_at_time(batch.multiplications * num_particles, batch_size)


def _refuse_particles(peak: int, batch_size: int, num_particles: int, free: int) -> None:
    # Draws are not encoded anew, which is no more than half of the work.
    needed = peak * num_particles // 2
    if num_particles >= _MANY and needed > free:
        raise OverBudgetError(
            f"a step on {batch_size:,} data with {num_particles:,} particles each takes about "
            f"{memory.shown(needed)}, and {memory.shown(free)} are free; give fewer particles, or "
            "lower batch_size",
            (num_particles,),
        )


def _look_at_time(count: int, batch_size: int) -> None:
    """Refuse so many multiplications if they take hours; warn if they take long."""
    seconds = _BACK_AND_FORTH * count / (_EACH_SECOND * torch.get_num_threads())
    what = f"a step on {batch_size:,} data has {count:.1e} multiplications, about"
    if seconds > _LONGEST_STEP:
        raise OverBudgetError(
            f"{what} {seconds / 3600:,.1f} hours on this CPU; give fewer particles, pseudo-inputs "
            "or flows"
        )
    if seconds > _LONG_STEP:
        warn(
            f"{what} {seconds:,.0f} s on this CPU; fewer particles or pseudo-inputs, or smaller "
            "layers, make it shorter"
        )


def _without_values(program: Program, rows: tuple[Tensor, ...], count: int) -> Budget | None:
    """Return what a run on so many rows takes; None if it cannot be run without values."""
    counted = Budget(refusing=False)
    try:
        with (
            torch.random.fork_rng(devices=[]),
            program.running(),
            pyro.validation_enabled(False),
            FakeTensorMode(allow_non_fake_inputs=True),
            counted,
        ):
            for trace in program.traces(*(row[:1].expand(count, *row.shape[1:]) for row in rows)):
                trace.compute_log_prob()
    except Exception:  # it looks at values; whatever else is wrong is said when it is run
        return None
    return counted


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
    _refuse_beyond(
        parameters, all_ - each * many + beside, each, batch_size, weights + beside, free
    )


def _refuse_beyond(
    parameters: Mapping[str, Tensor],
    at_any_size: float,
    each: float,
    batch_size: int,
    of_weights: int,
    free: int,
) -> None:
    """Refuse a step that takes too much, as what takes most of it: the data, the weights or both.

    Args:
        parameters: The program's.
        at_any_size: Bytes that a step takes on however few rows.
        each: Bytes for each row.
        batch_size: How many rows the real steps have.
        of_weights: Bytes of the parameters, which are there already, and of what stands beside.
        free: Bytes.
    """
    needed = at_any_size + each * batch_size
    if needed <= free:
        return
    shape, where = _largest(parameters)
    fits = int((free - at_any_size) / each) if each > 0 else 0
    if fits >= 1:
        what = f"a step on {batch_size:,} data", f"lower batch_size, to {fits:,} or less"
        shape = (batch_size,)
    elif 2 * of_weights > needed:
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


def _largest(parameters: Mapping[str, Tensor]) -> tuple[tuple[int, ...], str]:
    name = max(parameters, key=lambda name: parameters[name].numel())
    return tuple(torch.Size(parameters[name].shape)), name
