"""Data held against the support of the likelihood that is to score them."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.inference.program import Layout, Program
from pyro_vae.inference.terms import site_terms

__all__ = ["check_support"]

_CHUNK_ELEMENTS = 2**24


def check_support(program: Program, layout: Layout, *data: Tensor) -> None:
    """Check that observations are finite and in their site's support, and latents in the prior's.

    Args:
        program: The model and the guide.
        layout: What ``program.check`` found.
        data: All observations, ``[N, *event_shape]``, and labels where the program takes them.

    Raises:
        ValueError: If a value lies outside; names the site, the value, its index, how many there
            are and what would fit. Or if a latent's guide has other values than its model, or a
            density has less precision than float32.
    """
    x, *rest = data
    _check_precision(program, layout, x[:2], *(r[:2] for r in rest))
    # Validation would stop at the encoder's NaN, before the data that caused it are named.
    with program.evaluating(seed=0), pyro.validation_enabled(False):
        guide_trace = poutine.trace(program.guide).get_trace(x[:1], *(r[:1] for r in rest))
        replayed = poutine.replay(program.model, trace=guide_trace)
        site = poutine.trace(replayed).get_trace(x[:1], *(r[:1] for r in rest)).nodes
    _check_data(layout.observed, site[layout.observed]["fn"], x)
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


def _check_data(name: str, fn: Any, x: Tensor) -> None:
    try:
        support = _of_one_datum(fn.support)
    except (AttributeError, NotImplementedError):
        return
    rows = max(1, _CHUNK_ELEMENTS // max(1, x[:1].numel()))
    for start in range(0, len(x), rows):
        chunk = x[start : start + rows]
        if not bool(chunk.isfinite().all()):
            raise ValueError(_not_finite(name, x, chunk, start))
        inside = support.check(chunk)
        if not bool(inside.all()):
            raise ValueError(_message(name, fn, support, x, chunk, inside, start))


def _check_latent(name: str, prior: Any, guide_site: Any) -> None:
    posterior = guide_site["fn"]
    try:
        same_kind = all(
            trait(prior.support) == trait(posterior.support)
            for trait in (_is_discrete, _is_simplex)
        )
        inside = same_kind and bool(prior.support.check(guide_site["value"]).all())
    except (AttributeError, NotImplementedError):
        return
    if not inside:
        # A probability over a density is a number, but no bound of anything.
        raise ValueError(
            f"the guide draws {name!r} from a {_family(posterior)}, whose values a "
            f"{_family(prior)}, its distribution in the model, does not have: give both the same "
            "values (--prior StandardNormal with --posterior DiagonalNormal)"
        )


def _is_discrete(support: Any) -> bool:
    return bool(support.is_discrete)


def _is_simplex(support: Any) -> bool:
    # Its densities are over one dimension less than it has numbers.
    return support is constraints.simplex


def _family(fn: Any) -> str:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__.lstrip("_")


def _not_finite(name: str, x: Tensor, chunk: Tensor, start: int) -> str:
    first = chunk.isfinite().logical_not().nonzero()[0]
    index = (int(first[0]) + start, *(int(i) for i in first[1:]))
    count = int(x.isfinite().logical_not().sum())
    return (
        f"the data are not all finite: site {name!r} is given {chunk[tuple(first)].item():g} at "
        f"index {index}, and {count} such value(s) in all: repair or leave out these data"
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
    return (
        f"the data do not fit the likelihood: site {name!r} is {_family(fn)}, whose values are "
        f"{_described(support)}, but the value at index {index} is {shown} "
        f"(data range {x.min().item():g} to {x.max().item():g}); {_advice(support, x)}"
    )


def _described(support: Any) -> str:
    if support is constraints.boolean:
        return "0 or 1"
    bounds = [_bound(getattr(support, name, None)) for name in ("lower_bound", "upper_bound")]
    if isinstance(support, constraints.integer_interval):
        return f"the integers {bounds[0]} to {bounds[1]}"
    if isinstance(support, constraints.interval):
        return f"from {bounds[0]} to {bounds[1]}"
    return str(support)


def _bound(bound: Any) -> str:
    if bound is None:
        return "?"
    largest = bound.max().item() if isinstance(bound, Tensor) else bound
    return f"{largest:g}"


def _advice(support: Any, x: Tensor) -> str:
    grey = bool((x >= 0).all()) and bool((x <= 1).all())
    integers = bool((x == x.round()).all()) and bool((x >= 0).all())
    if support is constraints.boolean and grey:
        return (
            "grey values: binarise them (--observation Binarize), or choose a likelihood for real "
            "values (--likelihood Normal)"
        )
    if support is constraints.boolean and integers:
        count = int(x.max().item())
        return (
            f"levels 0..{count}: binarise them (--observation Binarize), or count them "
            f"(--likelihood Binomial --likelihood.total_count {count})"
        )
    if isinstance(support, constraints.integer_interval) and integers:
        return f"raise the largest count to {int(x.max().item())} or more"
    if isinstance(support, constraints.integer_interval) and grey:
        return "give the stored integers (--observation AsFloat), or use --likelihood Normal"
    return "choose a likelihood with these values (--likelihood Normal fits any real number)"
