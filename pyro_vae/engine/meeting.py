"""Initialise a program from the training data: standardised inputs, outputs at the data's means.

By convention, and not by name: a module takes part that says whether it ``is_new``. One with
``meet_inputs(x)`` is handed the data if it has been given them; one with ``meet_data(x)`` if the
distribution that it returns is that of an observed site. All other modules are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.inference.program import Layout, Program
from pyro_vae.inference.spread import constant_numbers
from pyro_vae.wording import warn

__all__ = ["meet_data"]

_FEW = 64  # that one of these is the data by chance is out of the question
_ROWS = 500


def meet_data(program: Program, layout: Layout, *rows: Tensor) -> None:
    """Let a program's modules meet the data, and warn where these hardly vary.

    Nothing is met where a single one of its modules has met data before, has been trained or been
    given weights, since these would mean something else afterwards.

    Args:
        program: The model and the guide.
        layout: What ``program.check`` found.
        rows: Training data that stand for all of them, ``[N, *event_shape]``, and what else the
            program takes.
    """
    modules: list[Any] = [
        module
        for root in program.reachable
        for module in root.modules()
        if hasattr(module, "is_new")
    ]
    with _listening(modules) as (given, returned):
        sites = _observed(program, layout, tuple(argument[:_FEW] for argument in rows))
    makers = {name: _maker(site, returned) for name, site in sites.items()}
    if all(module.is_new for module in modules):
        for module in _reached(given, rows[0][:_FEW]):
            module.meet_inputs(rows[0])
        for name, module in makers.items():
            if module is not None and _is_row_by_row(sites[name]):
                module.meet_data(_values(program, layout, name, sites[name]["value"], rows))
    for name, site in sites.items():
        if _is_row_by_row(site):
            values = _values(program, layout, name, site["value"], rows)
            for sentence in constant_numbers(name, site["fn"], values):
                warn(sentence)


@contextmanager
def _listening(
    modules: list[Any],
) -> Iterator[tuple[list[tuple[Any, Tensor]], list[tuple[Any, Any]]]]:
    """Collect what modules are given and what they return."""
    given: list[tuple[Any, Tensor]] = []
    returned: list[tuple[Any, Any]] = []
    hooks = []
    for module in modules:
        if hasattr(module, "meet_data"):
            hook: Any = module.register_forward_hook(lambda m, _, out: returned.append((m, out)))
        else:
            hook = module.register_forward_pre_hook(lambda m, args: given.append((m, args[0])))
        hooks.append(hook)
    try:
        yield given, returned
    finally:
        for hook in hooks:
            hook.remove()


def _observed(program: Program, layout: Layout, rows: tuple[Tensor, ...]) -> dict[str, Any]:
    """Run the program and return its observed sites."""
    with program.evaluating(seed=0), pyro.validation_enabled(False):
        guide_trace = poutine.trace(program.guide).get_trace(*rows)
        replayed = poutine.replay(program.model, trace=guide_trace)
        nodes = poutine.trace(replayed).get_trace(*rows).nodes
    return {name: nodes[name] for name in layout.observed}


def _maker(site: Any, returned: list[tuple[Any, Any]]) -> Any:
    """Return the module that returned a site's distribution; None if none of those did."""
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
    return list(dict.fromkeys(module for module, seen in given if _is_same(seen, x)))


def _is_same(seen: Any, x: Tensor) -> bool:
    """Return whether numbers are those of the data, in whatever shape."""
    return (
        isinstance(seen, Tensor)
        and seen.numel() == x.numel()
        and torch.equal(seen.reshape(-1).nan_to_num(), x.reshape(-1).to(seen).nan_to_num())
    )


def _is_row_by_row(site: Any) -> bool:
    return len(site["fn"].batch_shape) == 1


def _values(
    program: Program, layout: Layout, name: str, few: Tensor, rows: tuple[Tensor, ...]
) -> Tensor:
    """Return what a site observes of all rows."""
    if _is_same(few, rows[0][:_FEW]):
        return rows[0].reshape(-1, *few.shape[1:])
    parts = zip(*(argument.split(_ROWS) for argument in rows), strict=True)
    return torch.cat([_observed(program, layout, part)[name]["value"] for part in parts])
