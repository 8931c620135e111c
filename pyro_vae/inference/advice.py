"""Advice about data: what would fit where a likelihood cannot score them, and constant columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.wording import part

__all__ = ["Range", "advice", "constant_numbers", "described", "range_of"]


class Range(NamedTuple):
    """What numbers there are at a site, missing ones apart.

    Attributes:
        low: The smallest.
        high: The largest.
        whole: Whether all are integers.
        num_not_finite: How many are NaN or infinite.
    """

    low: float
    high: float
    whole: bool
    num_not_finite: int


def range_of(blocks: Iterable[Tensor]) -> Range:
    """Return the range of all numbers of some tensors, which are looked at one by one."""
    low, high, whole, num_bad = float("inf"), -float("inf"), True, 0
    for block in blocks:
        finite = block.isfinite()
        num_bad += int(finite.numel() - finite.sum())
        seen = block if bool(finite.all()) else block[~block.isnan()]
        if seen.numel():
            low, high = min(low, seen.min().item()), max(high, seen.max().item())
            whole = whole and bool((seen == seen.round()).all()) if _is_float(seen) else whole
    return Range(low, high, whole, num_bad)


def _is_float(x: Tensor) -> bool:
    return x.dtype.is_floating_point


def described(support: Any) -> str:
    """Return which values a support has."""
    if support is constraints.boolean:
        return "0 or 1"
    if support is constraints.nonnegative_integer:
        return "the integers 0, 1, 2, ..."
    bounds = [_bound(getattr(support, name, None)) for name in ("lower_bound", "upper_bound")]
    if isinstance(support, constraints.integer_interval):
        return f"the integers {bounds[0]} to {bounds[1]}"
    if type(support) is constraints.interval:
        return f"from {bounds[0]} to {bounds[1]}"
    if type(support) is constraints.greater_than_eq:
        return f"{bounds[0]} and more"
    if type(support) is constraints.greater_than:
        return f"above {bounds[0]}"
    if support is constraints.simplex:
        return "rows of positive numbers that sum to 1"
    return str(support)


def _bound(bound: Any) -> str:
    if bound is None:
        return "?"
    largest = bound.max().item() if isinstance(bound, Tensor) else bound
    return f"{largest:g}"


def advice(support: Any, seen: Range) -> str:
    """Return what would fit: other likelihoods for these values, or another view of the data."""
    if support.event_dim > 0:
        mend = "repair these rows, or choose a likelihood of single numbers, such as Normal"
        if support is constraints.simplex and seen.low >= 0 and seen.high <= 1:
            mend = f"move rows with zeros inside, as in (x + 0.001) / (1 + 0.001 * D); else {mend}"
        return mend
    low, high = seen.low, seen.high
    whole = low >= 0 and seen.whole
    if whole and isinstance(support, constraints.integer_interval):
        return f"raise its largest value to {high:g} ({high + 1:g} levels) or more"
    if whole:
        return _advice_for_counts(support, int(high))
    if low >= 0 and high <= 1:
        return _advice_for_grey(support, at_edge=low == 0 or high == 1)
    positive = ", or Gamma and LogNormal for positive ones" if low > 0 else ""
    positive = ", or Exponential for those from 0 on" if low == 0 else positive
    normal = part("likelihood", "Normal")
    return (
        f"choose a likelihood with these values ({normal}, Laplace or StudentT fits any real "
        f"number{positive})"
    )


def _advice_for_counts(support: Any, largest: int) -> str:
    binomial = part("likelihood", "Binomial", total_count=largest)
    counted = (
        f"count them ({binomial}; Poisson or NegativeBinomial without a largest value; "
        "Categorical or DiscretizedLogistic for levels)"
    )
    if support is constraints.boolean:
        return (
            f"levels 0..{largest}: binarise them ({_of_levels('Binarize', largest)}), or {counted}"
        )
    if not getattr(support, "is_discrete", False):
        counted += f", or dequantise them ({_of_levels('Dequantize', largest)})"
    return f"the data are integers: {counted}"


def _advice_for_grey(support: Any, *, at_edge: bool) -> str:
    densities = "ContinuousBernoulli" if at_edge else "ContinuousBernoulli, Beta or LogitNormal"
    taken = part("likelihood", densities)
    fits = f"a likelihood for values in [0, 1] or real ones ({taken}, or Normal)"
    if support is constraints.boolean:
        return f"grey values: binarise them ({_of_levels('Binarize', 1)}), or choose {fits}"
    if getattr(support, "is_discrete", False):
        return f"give the stored integers ({part('observation', 'AsFloat')}), or choose {fits}"
    return f"choose {fits}"


def _of_levels(observation: str, largest: int) -> str:
    return part("observation", observation, levels=largest)


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
