"""Advice about data that a likelihood cannot score."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor
from torch.distributions import constraints

from pyro_vae.wording import part

__all__ = ["Range", "advice", "described", "range_of"]


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
        return f"raise the largest count to {high:g} or more"
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
        return f"levels 0..{largest}: binarise them ({_binarize()}), or {counted}"
    if not getattr(support, "is_discrete", False):
        counted += f", or dequantise them ({part('observation', 'Dequantize')})"
    return f"the data are integers: {counted}"


def _advice_for_grey(support: Any, *, at_edge: bool) -> str:
    densities = "ContinuousBernoulli" if at_edge else "ContinuousBernoulli, Beta or LogitNormal"
    taken = part("likelihood", densities)
    fits = f"a likelihood for values in [0, 1] or real ones ({taken}, or Normal)"
    if support is constraints.boolean:
        return f"grey values: binarise them ({_binarize()}), or choose {fits}"
    if getattr(support, "is_discrete", False):
        return f"give the stored integers ({part('observation', 'AsFloat')}), or choose {fits}"
    return f"choose {fits}"


def _binarize() -> str:
    return part("observation", "Binarize")
