"""Warn about constant or nearly constant columns before a density is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["constant_numbers"]

_FEWEST = 10  # rows, of which most may be the same by chance
_SHOWN = 5
_MAX_COLUMNS = 1_000
_COPY = 1e-9


def constant_numbers(name: str, fn: Any, x: Tensor) -> list[str]:
    """Say over which numbers a density rises without end, down to its smallest scale.

    These are numbers that are the same in all data or in most, and columns of a table that are
    copies of another, in whatever units. A scale that all numbers share stops them.

    Args:
        name: Of the site.
        fn: The site's distribution.
        x: Its values, ``[N, *event_shape]``; NaN is missing.

    Returns:
        One sentence for each kind, with the places of the numbers and what to do.
    """
    density = _is_density(fn, x)
    if len(x) < _FEWEST or not bool(density.any()) or _shares_its_scale(fn):
        return []
    same, share, usual = _repeated(x)
    constant, mostly = same & density, (share > 0.5) & ~same & density
    found = [
        _sentence(name, places, how, usual)
        for places, how in ((constant, "in all"), (mostly, "in most"))
        if bool(places.any())
    ]
    return [*found, *_copies(name, x, density & ~constant)] if x.dim() == 2 else found


def _is_density(fn: Any, x: Tensor) -> Tensor:
    """Return which numbers of an event have a density, ``event_shape``."""
    try:
        support = fn.support
    except (AttributeError, NotImplementedError):
        return torch.zeros(x.shape[1:], dtype=torch.bool, device=x.device)
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if not hasattr(support, "columns"):
        return torch.full(x.shape[1:], not support.is_discrete, device=x.device)
    found = torch.tensor([not column.is_discrete for column in support.columns], device=x.device)
    return found.expand(x.shape[1:])


def _shares_its_scale(fn: Any) -> bool:
    """Return whether all numbers of all data vary alike, whatever the latents say."""
    while hasattr(fn, "base_dist") or hasattr(fn, "complete"):
        fn = getattr(fn, "base_dist", None) or fn.complete
    try:
        variance = fn.variance
    except (AttributeError, NotImplementedError):
        return False
    first = variance.flatten()[0]
    return bool(torch.allclose(variance, first.expand_as(variance), rtol=1e-4, atol=0.0))


def _repeated(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which numbers are always one value, how often their median occurs, and it."""
    usual = x.nanmedian(0).values
    seen = x.isnan().logical_not().sum(0)
    share = (x == usual).sum(0) / seen.clamp(min=1)
    return (share == 1) & (seen > 1), share, usual


def _sentence(name: str, found: Tensor, how: str, usual: Tensor) -> str:
    places = found.nonzero()
    listed = ", ".join(
        f"{_place(place)} ({usual[tuple(place)].item():g})" for place in places[:_SHOWN]
    )
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    kind = "column" if found.dim() == 1 else "number"
    kind, verb = (kind, "is") if len(places) == 1 else (f"{kind}s", "are")
    return (
        f"site {name!r}: {kind} {listed}{more} of {found.numel()} {verb} the same {how} training "
        "data: a density there rises without end, to the smallest scale, and log p(x) with it; "
        "leave out what is constant, or give the likelihood one scale for all (SharedScale, or a "
        "number)"
    )


def _place(index: Tensor) -> str:
    place = tuple(int(i) for i in index)
    return str(place[0]) if len(place) == 1 else str(place)


def _copies(name: str, x: Tensor, density: Tensor) -> list[str]:
    columns = density.nonzero().squeeze(1)[:_MAX_COLUMNS]
    complete = columns[x[:, columns].isfinite().all(0)]
    wide = x[:, complete].to(x.dtype if x.device.type == "mps" else torch.float64)
    centred = wide - wide.mean(0)
    unit = centred / torch.linalg.vector_norm(centred, dim=0).clamp(min=1e-300)
    alike = ((unit.mT @ unit).abs() > 1 - _COPY).triu(1).nonzero()
    if len(alike) == 0:
        return []
    pairs = ", ".join(f"{complete[b].item()} of {complete[a].item()}" for a, b in alike[:_SHOWN])
    return [
        f"site {name!r}: some columns are copies of others, but for offset and factor ({pairs}): "
        "a density of both rises without end, to the smallest scale; leave the copies out"
    ]
