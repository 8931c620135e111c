"""Data whose density depends on which others stand in their batch, in evaluation mode as well.

A mean over the wrong dimension, or batch normalisation without running averages, makes of the bound
of a datum a number that another batch size changes.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.inference.probe import Lines
from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import is_invertible, latent_sites, line_of, observed_sites

__all__ = ["mixed_rows"]

_ROWS = 3
_SAME = {"rtol": 1e-3, "atol": 1e-4}


def mixed_rows(program: Program, *args: Tensor) -> str | None:
    """Say at which site the density of a datum depends on the others of its batch; None if at none.

    The first row is scored beside others, and beside copies of itself: same latents, same noise.

    Args:
        program: The model and the guide.
        args: A batch of a few data, and what else the program takes.
    """
    rows = tuple(arg[:_ROWS] for arg in args)
    copies = tuple(row[:1].expand_as(row).contiguous() for row in rows)
    if len(rows[0]) < _ROWS or all(
        torch.equal(row, copy) for row, copy in zip(rows, copies, strict=True)
    ):
        return None
    with program.evaluating(seed=0), pyro.validation_enabled(False):
        try:
            return _found(program, rows, copies)
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError):
            return None  # a guide that cannot be run on given latents


def _found(program: Program, rows: tuple[Tensor, ...], copies: tuple[Tensor, ...]) -> str | None:
    _, guide = program.traces(*rows)
    for function in (program.guide, program.model):
        beside_others, again = (_replayed(function, guide, rows) for _ in range(2))
        beside_copies = _replayed(function, _with_copies(guide), copies)
        for name, site in (*latent_sites(beside_others), *observed_sites(beside_others)):
            if function is program.guide and not is_invertible(site["fn"]):
                continue
            if not _same_first(site, again.nodes[name]):
                return None  # it differs from call to call, whatever the batch
            if not _same_first(site, beside_copies.nodes[name]):
                return (
                    f"the density at site {name!r}{line_of(site)} of a datum depends on the others "
                    "of its batch, so that bounds change with the batch size: look for a reduction "
                    "over the rows, such as .mean(0), and for batch normalisation without running "
                    "averages"
                )
    return None


def _replayed(function: Any, guide: Trace, args: tuple[Tensor, ...]) -> Trace:
    torch.manual_seed(0)
    with Lines():
        return poutine.trace(poutine.replay(function, trace=guide)).get_trace(*args)


def _with_copies(guide: Trace) -> Trace:
    """Return a trace in which every latent has the value of the first datum for all data."""
    found = guide.copy()
    for name, site in list(latent_sites(found)):
        dim = site["value"].dim() - 1 - len(site["fn"].event_shape)
        first = site["value"].narrow(dim, 0, 1)
        found.nodes[name] = {**site, "value": first.expand_as(site["value"]).contiguous()}
    return found


def _same_first(site: Any, other: Any) -> bool:
    # New tensors: a flow that has drawn a value knows its density without an inverse.
    one, two = (each["fn"].log_prob(each["value"].clone()) for each in (site, other))
    return one.dim() == 0 or torch.allclose(one[..., 0], two[..., 0], equal_nan=True, **_SAME)
