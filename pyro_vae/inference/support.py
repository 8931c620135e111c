"""Data held against the support of the likelihood that is to score them."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.constraints import sphere
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.inference.program import Layout, Program
from pyro_vae.inference.terms import site_terms

__all__ = ["check_support"]

_CHUNK_ELEMENTS = 2**24
# Of bits, a single draw may be one of categories by chance.
_ROWS_WITH_LATENTS = 64


def check_support(program: Program, layout: Layout, *data: Tensor, first: int = 0) -> None:
    """Check that observations are finite and in their site's support, and latents in the prior's.

    Args:
        program: The model and the guide.
        layout: What ``program.check`` found.
        data: All observations, ``[N, *event_shape]``, and labels where the program takes them.
        first: The index of the first of them, for messages.

    Raises:
        ValueError: If a value lies outside; names the site, the value, its index, how many there
            are and what would fit. Or if a latent's guide has other values than its model, or a
            density has less precision than float32.
    """
    x, *rest = data
    _check_precision(program, layout, x[:2], *(r[:2] for r in rest))
    few = tuple(argument[:_ROWS_WITH_LATENTS] for argument in data)
    # Validation would stop at the encoder's NaN, before the data that caused it are named.
    with program.evaluating(seed=0), pyro.validation_enabled(False):
        guide_trace = poutine.trace(program.guide).get_trace(*few)
        replayed = poutine.replay(program.model, trace=guide_trace)
        site = poutine.trace(replayed).get_trace(*few).nodes
    name = "x" if "x" in layout.observed else layout.observed[0]
    _check_data(name, site[name]["fn"], x, first)
    for name in layout.latents:
        if name in site:
            _check_latent(name, site[name]["fn"], guide_trace.nodes[name])


def _check_precision(program: Program, layout: Layout, *few: Tensor) -> None:
    with program.evaluating(seed=0), pyro.validation_enabled(False):
        terms = site_terms(program, layout, *few)
    for name, log_density in [*terms.log_p.items(), *terms.log_q.items()]:
        if log_density.dtype in (torch.bfloat16, torch.float16):
            kind = str(log_density.dtype).removeprefix("torch.")
            raise ValueError(
                f"the log-density at site {name!r} is computed in {kind}, too coarse for a bound: "
                "hand float32 to its distribution, as in net(x).float()"
            )


def _check_data(name: str, fn: Any, x: Tensor, first: int) -> None:
    try:
        support = _of_one_datum(fn.support)
    except (AttributeError, NotImplementedError):
        return
    rows = max(1, _CHUNK_ELEMENTS // max(1, x[:1].numel()))
    for start in range(0, len(x), rows):
        chunk = x[start : start + rows]
        inside = support.check(chunk)
        if not bool(_usable(chunk, inside).all()):
            raise ValueError(_not_finite(name, fn, x, chunk, first + start))
        if not bool(inside.all()):
            raise ValueError(_message(name, fn, support, x, chunk, inside, first + start))


def _usable(chunk: Tensor, inside: Tensor) -> Tensor:
    """Return which values are finite, or missing where the support has room for that."""
    inside = inside.reshape(*inside.shape, *[1] * (chunk.dim() - inside.dim()))
    return chunk.isfinite() | (chunk.isnan() & inside)


def _check_latent(name: str, prior: Any, guide_site: Any) -> None:
    posterior, value = guide_site["fn"], guide_site["value"]
    if bool(value.isnan().any()):
        raise ValueError(
            f"the guide draws NaN at site {name!r}, at the weights that it starts with: its "
            "distribution is given numbers that are not finite; look at its parameters, and at "
            "divisions, roots and logarithms in its network"
        )
    try:
        same_kind = all(
            trait(prior.support) == trait(posterior.support) for trait in (_is_discrete, _surface)
        )
        inside = same_kind and bool(_inside(prior.support, guide_site["value"]).all())
    except (AttributeError, NotImplementedError):
        return
    if not inside:
        # A probability over a density is a number, but no bound of anything.
        raise ValueError(
            f"the guide draws {name!r} from a {_family(posterior)}, whose values a "
            f"{_family(prior)}, its distribution in the model, does not have: give both the same "
            f"values ({_fitting(prior, posterior)})"
        )


def _inside(support: Any, value: Tensor) -> Tensor:
    try:
        return support.check(value)
    except RuntimeError:  # a mixture's bounds are those of its components, one for each
        return _of_one_datum(support).check(value)


def _is_discrete(support: Any) -> bool:
    return bool(support.is_discrete)


def _surface(support: Any) -> Any:
    """Return what densities over one dimension less than there are numbers lie on, if they do."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support if support in (constraints.simplex, sphere) else None


def _fitting(prior: Any, posterior: Any) -> str:
    if any(_surface(fn.support) is sphere for fn in (prior, posterior)):
        return "--prior UniformSphere with --posterior VonMisesFisher"
    return "--prior StandardNormal with --posterior DiagonalNormal"


def _family(fn: Any) -> str:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    fn = getattr(fn, "complete", fn)  # of which values may be missing
    return type(fn).__name__.lstrip("_")


def _not_finite(name: str, fn: Any, x: Tensor, chunk: Tensor, start: int) -> str:
    first = chunk.isfinite().logical_not().nonzero()[0]
    index = (int(first[0]) + start, *(int(i) for i in first[1:]))
    count = int(x.isfinite().logical_not().sum())
    value = chunk[tuple(first)]
    mend = "repair or leave out these data"
    if bool(value.isnan()):
        by_number = _of_one_datum(fn.support).event_dim == 0
        family = f" --likelihood.family {_family(fn)}" if by_number else ""
        mend += (
            ", or, if NaN is a missing value, take its likelihood (--likelihood Incomplete"
            f"{family})"
        )
    return (
        f"the data are not all finite: site {name!r} is given {value.item():g} at index {index}, "
        f"and {count} such value(s) in all: {mend}"
    )


def _of_one_datum(support: Any) -> Any:
    """Drop event dimensions and the batch dimension of bounds: a check of single values."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    bounds = {
        name: bound[0]
        for name, bound in vars(support).items()
        if isinstance(bound, Tensor) and bound.dim() > 0
    }
    if not bounds:
        return support
    single = object.__new__(type(support))
    single.__dict__.update(vars(support), **bounds)
    return single


def _message(
    name: str, fn: Any, support: Any, x: Tensor, chunk: Tensor, inside: Tensor, start: int
) -> str:
    outside = ~inside
    first = outside.nonzero()[0]
    value = chunk[tuple(first)]
    shown = f"{value.item():g}" if value.dim() == 0 else "a row"
    index = (int(first[0]) + start, *(int(i) for i in first[1:]))
    support = getattr(support, "base_constraint", support)  # beside it, values may be missing
    if hasattr(support, "at"):  # a table, whose columns have supports of their own
        support, x = support.at(*index), x[..., index[-1]]
    seen = x[~x.isnan()] if x.is_floating_point() else x
    return (
        f"the data do not fit the likelihood: site {name!r} is {_family(fn)}, whose values are "
        f"{_described(support)}, but the value at index {index} is {shown} "
        f"(data range {seen.min().item():g} to {seen.max().item():g}); {_advice(support, seen)}"
    )


def _described(support: Any) -> str:
    if support is constraints.boolean:
        return "0 or 1"
    if support is constraints.nonnegative_integer:
        return "the integers 0, 1, 2, ..."
    bounds = [_bound(getattr(support, name, None)) for name in ("lower_bound", "upper_bound")]
    if isinstance(support, constraints.integer_interval):
        return f"the integers {bounds[0]} to {bounds[1]}"
    if type(support) is constraints.interval:
        return f"from {bounds[0]} to {bounds[1]}"
    return str(support)


def _bound(bound: Any) -> str:
    if bound is None:
        return "?"
    largest = bound.max().item() if isinstance(bound, Tensor) else bound
    return f"{largest:g}"


def _advice(support: Any, x: Tensor) -> str:
    """Return what would fit: other likelihoods for these values, or another view of the data."""
    if support.event_dim > 0:
        return "repair these rows, or choose a likelihood of single numbers"
    low, high = x.min().item(), x.max().item()
    whole = low >= 0 and bool((x == x.round()).all())
    if whole and isinstance(support, constraints.integer_interval):
        return f"raise the largest count to {high:g} or more"
    if whole:
        return _advice_for_counts(support, int(high))
    if low >= 0 and high <= 1:
        return _advice_for_grey(support, at_edge=low == 0 or high == 1)
    positive = ", or Gamma and LogNormal for positive ones" if low > 0 else ""
    return (
        "choose a likelihood with these values (--likelihood Normal, Laplace or StudentT fits any "
        f"real number{positive})"
    )


def _advice_for_counts(support: Any, largest: int) -> str:
    counted = (
        f"count them (--likelihood Binomial --likelihood.total_count {largest}; Poisson or "
        "NegativeBinomial without a largest value; Categorical or DiscretizedLogistic for levels)"
    )
    if support is constraints.boolean:
        return f"levels 0..{largest}: binarise them (--observation Binarize), or {counted}"
    if not getattr(support, "is_discrete", False):
        counted += ", or dequantise them (--observation Dequantize)"
    return f"the data are integers: {counted}"


def _advice_for_grey(support: Any, *, at_edge: bool) -> str:
    densities = "ContinuousBernoulli" if at_edge else "ContinuousBernoulli, Beta or LogitNormal"
    fits = f"a likelihood for values in [0, 1] or real ones (--likelihood {densities}, or Normal)"
    if support is constraints.boolean:
        return f"grey values: binarise them (--observation Binarize), or choose {fits}"
    if getattr(support, "is_discrete", False):
        return f"give the stored integers (--observation AsFloat), or choose {fits}"
    return f"choose {fits}"
