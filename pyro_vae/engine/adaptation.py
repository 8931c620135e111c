"""Initialise a program from the training data: standardised inputs, outputs at the data's means.

By convention, and not by name: a module takes part that says whether it ``is_new``. One with
``adapt_inputs(x)`` is handed the data if it has been given them; one with ``adapt_outputs(x)`` if
the distribution that it returns is that of an observed site. Others are left as they are.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.inference.advice import constant_numbers
from pyro_vae.inference.probe import Probe
from pyro_vae.wording import warn

__all__ = ["adapt_to_data"]

_ROWS = 500


def adapt_to_data(probe: Probe, *rows: Tensor) -> None:
    """Initialise a program's modules from the data, and warn where these hardly vary.

    Nothing is changed where a single one of its modules has been initialised before, has been
    trained or been given weights, since these would mean something else afterwards.

    Args:
        probe: Of the program at its present weights, on data like these.
        rows: Training data that stand for all of them, ``[N, *event_shape]``, and what else the
            program takes.
    """
    spread = probe.spread
    nodes, calls = spread.model_trace.nodes, spread.calls
    sites = {name: nodes[name] for name in probe.layout.observed}
    makers = {name: _maker(site, calls.returned) for name, site in sites.items()}
    if all(module.is_new for module in calls.modules):
        for module in _reached(calls.given, spread.rows[0]):
            module.adapt_inputs(rows[0])
        for name, module in makers.items():
            if module is not None and _is_row_by_row(sites[name]):
                module.adapt_outputs(_values(probe, name, rows))
    for name, site in sites.items():
        if _is_row_by_row(site):
            for sentence in constant_numbers(name, site["fn"], _values(probe, name, rows)):
                warn(sentence)


def _maker(site: Any, returned: list[tuple[Any, Any]]) -> Any:
    """Return the module that returned a site's distribution; None if no such module did."""
    returned = [pair for pair in returned if hasattr(pair[0], "adapt_outputs")]
    fn = site["fn"]
    while fn is not None:
        for module, distribution in returned:
            if _are_one(fn, distribution, site["value"]):
                return module
        fn = getattr(fn, "base_dist", None)
    return None


def _are_one(fn: Any, distribution: Any, value: Tensor) -> bool:
    """Return whether two distributions score values alike: a plate hands out one of its own."""
    if tuple(fn.event_shape) != tuple(distribution.event_shape):
        return False
    try:
        with torch.no_grad(), pyro.validation_enabled(False):
            found, expected = fn.log_prob(value), distribution.log_prob(value)
    except (ValueError, RuntimeError, NotImplementedError):
        return False
    # Sums over strides of another kind may be rounded otherwise.
    return torch.allclose(found, expected.expand_as(found), rtol=1e-4, atol=1e-4, equal_nan=True)


def _reached(given: list[tuple[Any, Tensor]], x: Tensor) -> list[Any]:
    meeting = (pair for pair in given if not hasattr(pair[0], "adapt_outputs"))
    return list(dict.fromkeys(module for module, seen in meeting if _is_same(seen, x)))


def _is_same(seen: Any, x: Tensor) -> bool:
    """Return whether numbers are those of the data, in whatever shape."""
    return (
        isinstance(seen, Tensor)
        and seen.numel() == x.numel()
        and torch.equal(seen.reshape(-1).nan_to_num(), x.reshape(-1).to(seen).nan_to_num())
    )


def _is_row_by_row(site: Any) -> bool:
    return len(site["fn"].batch_shape) == 1


def _values(probe: Probe, name: str, rows: tuple[Tensor, ...]) -> Tensor:
    """Return what a site observes of all rows."""
    seen = probe.spread.model_trace.nodes[name]["value"]
    if _is_same(seen, probe.spread.rows[0]):
        return rows[0].reshape(-1, *seen.shape[1:])
    found = []
    for part in zip(*(argument.split(_ROWS) for argument in rows), strict=True):
        with probe.looking():
            model_trace, _ = probe.program.traces(*part)
        found.append(model_trace.nodes[name]["value"])
    return torch.cat(found)
