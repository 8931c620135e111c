"""Check data against the support of the distributions that score them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution
from pyro.distributions.constraints import sphere
from torch import Tensor
from torch.distributions import constraints
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vae.inference.advice import Range, advice, described, range_of
from pyro_vae.inference.probe import Probe, Spread
from pyro_vae.inference.sites import (
    View,
    base_of,
    is_masked_out,
    line_of,
    observed_places,
    view_of,
)
from pyro_vae.memory import touched
from pyro_vae.wording import of_distributions, part

__all__ = ["Part", "check_support", "family_name", "observes_arguments"]

_CHUNK_ELEMENTS = 2**22


@dataclass(frozen=True)
class Part:
    """What rows are called in messages.

    Attributes:
        name: Of the part of a data set that they are from, such as "test".
        rows: Which rows of the user's array they are; None: of the part, counted from ``first``.
        first: The index of the first of them in the part.
    """

    name: str = ""
    rows: Any = None
    first: int = 0

    def number(self, row: int) -> int:
        """Return the number of a row in the user's array."""
        place = self.first + row
        return place if self.rows is None else int(self.rows[place])

    def described(self, row: int) -> str:
        """Return what a row is called, in brackets; nothing where it has no name."""
        if not self.name:
            return ""
        whose = f"the {self.name} data" if self.rows is None else f"the data, for {self.name}"
        return f" (row {self.number(row)} of {whose})"


def check_support(probe: Probe, *data: Tensor, part: Part | None = None) -> None:
    """Check that what every site observes is finite and in its support, and latents in the prior's.

    All rows are looked at. Where a site observes an argument of the program, or a part of one, and
    its distribution has the same values for all rows, the argument is held against it; otherwise
    the program is run on all rows. Masked places are not looked at, but by what no mask helps.

    Args:
        probe: Of the program, on these data or on others like them.
        data: All observations, ``[N, *event_shape]``, and what else the program takes.
        part: What the rows are called in messages; by their numbers unless given.

    Raises:
        ValueError: If a value lies outside; names the site, the value, its row, how many there
            are and what would fit. Or if a latent's guide has other values than its model, or a
            density has less precision than float32.
    """
    data = tuple(argument.contiguous() for argument in data)
    are_its_own = all(one is other for one, other in zip(data, probe.args, strict=True))
    spread = probe.spread if are_its_own else probe.spread_over(*data)
    for name in probe.layout.observed:
        _Observed(probe, name, spread, data).check(part or Part())
    _check_precision(probe)  # of densities, which are errors of torch where data do not fit
    for name in probe.layout.latents:
        if name in spread.model_trace.nodes:
            prior = spread.model_trace.nodes[name]["fn"]
            _check_latent(name, prior, spread.guide_trace.nodes[name])


def observes_arguments(probe: Probe) -> bool:
    """Say whether every site observes an argument or a part of it, under bounds that stay."""
    sites = (_Observed(probe, name, probe.spread, probe.args) for name in probe.layout.observed)
    return all(site.view is not None for site in sites)


def _check_precision(probe: Probe) -> None:
    terms = probe.terms
    for name, log_density in [*terms.log_p.items(), *terms.log_q.items()]:
        if log_density.dtype in (torch.bfloat16, torch.float16):
            kind = str(log_density.dtype).removeprefix("torch.")
            raise ValueError(
                f"the log-density at site {name!r} is computed in {kind}, too coarse for a bound: "
                "hand float32 to its distribution, as in net(x).float()"
            )


class _Observed:
    """An observed site over all rows.

    Args:
        probe: Of the program.
        name: Of the site.
        spread: A run on rows from first to last.
        data: All rows.
    """

    def __init__(self, probe: Probe, name: str, spread: Spread, data: tuple[Tensor, ...]) -> None:
        self.probe, self.name, self.few, self.data = probe, name, spread.rows, data
        self.site = site = spread.model_trace.nodes[name]
        self.dim = site["value"].dim() - 1 - len(site["fn"].event_shape)
        self.view = view_of(site, self.few) if _alike_for_all_rows(site) else None

    def check(self, part: Part) -> None:
        """Hold all rows against the support; a support that is not stated holds them all."""
        if _support(self.site["fn"]) is None or is_masked_out(self.site):
            return
        if self.view is None:
            for start, site in self._runs(0, len(self.data[0])):
                self._check_rows(start, site, part)
            return
        for start in self._suspects(self.view):
            for begin, site in self._runs(start, start + len(self.few[0])):
                self._check_rows(begin, site, part)

    def _suspects(self, view: View) -> Iterator[int]:
        """Yield where blocks begin that do not fit the distribution of the first rows."""
        whole, size = self.data[view.argument], len(self.few[0])
        for start in range(0, len(whole), size):
            rows = whole[start : start + size]
            if len(rows) < size:  # the distribution has a batch of so many
                rows = torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])
            site = {**self.site, "value": view.of(rows)}
            if bool(_not_finite(site).any()) or bool(_outside(site).any()):
                yield start
            touched(rows.nbytes)

    def _runs(self, begin: int, end: int) -> Iterator[tuple[int, Any]]:
        """Run the program on rows, a chunk at a time; yield where each begins, and its site."""
        step = max(1, _CHUNK_ELEMENTS // max(1, _width(self.probe, self.few)))
        for start in range(begin, min(end, len(self.data[0])), step):
            stop = min(start + step, end)
            with self.probe.looking():
                rows = tuple(arg[start:stop] for arg in self.data)
                model_trace, _ = self.probe.program.traces(*rows)
            yield start, model_trace.nodes[self.name]

    def _check_rows(self, start: int, site: Any, part: Part) -> None:
        """Refuse the first number, or row, that the distribution does not have."""
        for numbers, message in (
            (_not_finite(site), _of_not_finite),
            (_outside(site), _of_outside),
        ):
            if bool(numbers.any()):
                place = tuple(numbers.nonzero()[0].tolist())
                row = start + place[self.dim]
                index = (part.number(row), *place[: self.dim], *place[self.dim + 1 :])
                where = f"index {index}{part.described(row)}"
                with contextlib.nullcontext() if self.is_of_parts else of_distributions():
                    raise ValueError(message(self, site, place, where))

    @property
    def is_of_parts(self) -> bool:
        """Whether the program has parts, of which its likelihood may be another one."""
        modules = (each for root in self.probe.program.reachable for each in root.modules())
        return any(type(each).__module__.startswith("pyro_vae.components") for each in modules)

    @property
    def line(self) -> str:
        """Where the user's program has its distribution; nothing where a part has it."""
        return "" if self.is_of_parts else line_of(self.probe.model_trace.nodes[self.name])

    def num_outside(self) -> int:
        """Return how many numbers, or rows, the distribution does not have."""
        return sum(int(_outside(site).sum()) for _, site in self._runs(0, len(self.data[0])))

    def range(self, column: int | None = None) -> Range:
        """Return the range of all that the site observes, or of one column of a table."""
        if self.view is None:
            values = (site["value"] for _, site in self._runs(0, len(self.data[0])))
        else:
            values = (self.view.of(self.data[self.view.argument]) for _ in range(1))
        return range_of(value if column is None else value[..., column] for value in values)


def _width(probe: Probe, few: tuple[Tensor, ...]) -> int:
    """Return how many numbers for each row the largest tensor of a run has."""
    with probe.looking(), _Largest() as largest:
        probe.program.traces(*few)
    return largest.found // len(few[0])


class _Largest(TorchDispatchMode):
    """Note the number of elements of the largest tensor that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.found = max([self.found, *sizes])
        return out


# What a site refuses ---------------------------------------------------------------------------


def _support(fn: Any) -> Any:
    """Return the support of the numbers of a distribution, or of its rows; None if not stated."""
    try:
        support = fn.support
    except (AttributeError, NotImplementedError):
        return None
    return _of_numbers(support)


def _of_numbers(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _not_finite(site: Any) -> Tensor:
    """Return which numbers are infinite, or NaN where the support has no room for that."""
    value = site["value"]
    inside = _inside(_support(site["fn"]), value)
    inside = inside.reshape(*inside.shape, *[1] * (value.dim() - inside.dim()))
    return ~(value.isfinite() | (value.isnan() & inside))


def _outside(site: Any) -> Tensor:
    """Return which numbers, or rows, are outside the support, or have no finite density."""
    support, value = _support(site["fn"]), site["value"]
    outside = ~_inside(support, value)
    edge = _at_edge(support, value)
    return outside if edge is None else outside | (edge & _infinite(site))


def _infinite(site: Any) -> Tensor:
    """Return which observed numbers have a density that is zero or infinite."""
    fn, places = site["fn"], observed_places(site)
    while isinstance(fn, (torch.distributions.Independent, MaskedDistribution)):
        fn = fn.base_dist
    infinite = ~fn.log_prob(site["value"]).isfinite()
    return infinite if places is None else infinite & places


def _at_edge(support: Any, value: Tensor) -> Tensor | None:
    """Return which real numbers, or rows, are at a bound of their support; None if none can be."""
    support = getattr(support, "base_constraint", support)  # beside it, values may be missing
    if hasattr(support, "columns"):
        columns = zip(support.columns, value.unbind(-1), strict=True)
        found = [(_at_edge(column, number), number) for column, number in columns]
        return torch.stack([torch.zeros_like(x).bool() if e is None else e for e, x in found], -1)
    if support is constraints.simplex:
        return (value == 0).any(-1)
    if support.is_discrete or support.event_dim > 0:
        return None
    bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    at_bound = [value == bound for bound in bounds if bound is not None]
    return torch.stack(at_bound).any(0) if at_bound else None


def _alike_for_all_rows(site: Any) -> bool:
    """Say whether nothing is masked, and the support has the same bounds for every row."""
    if observed_places(site) is not None:
        return False
    dim = -1 - len(site["fn"].event_shape)
    # A bound that is one number for all rows has been expanded over them.
    return all(
        bound.dim() < -dim or bound.shape[dim] == 1 or bound.stride(dim) == 0
        for bound in _bounds(_support(site["fn"]))
    )


def _bounds(support: Any) -> Iterator[Tensor]:
    for held in vars(support).values() if support is not None else ():
        for bound in held if isinstance(held, (tuple, list)) else (held,):
            if isinstance(bound, Tensor):
                yield bound
            elif isinstance(bound, constraints.Constraint):
                yield from _bounds(bound)


def _inside(support: Any, value: Tensor) -> Tensor:
    support = _of_numbers(support)
    try:
        return support.check(value)
    except RuntimeError:  # a mixture's bounds are those of its components, one for each
        return _of_one_datum(support).check(value)


def _of_one_datum(support: Any) -> Any:
    """Drop the batch dimension of bounds: a check of single values."""
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


# How it is said --------------------------------------------------------------------------------


def _of_not_finite(observed: _Observed, site: Any, place: tuple[int, ...], where: str) -> str:
    value = site["value"][place].item()
    if not _is_seen(site, place):
        return _of_masked(observed.name, site, value, where)
    mend = "repair or leave out these data"
    if math.isnan(value):
        mend += f", or, if NaN is a missing value, {_of_missing(observed, site)}"
    return (
        f"the data are not all finite: site {observed.name!r}{observed.line} is given {value:g} at "
        f"{where}, and "
        f"{observed.range().num_not_finite} such value(s) in all: {mend}"
    )


def _of_missing(observed: _Observed, site: Any) -> str:
    if not observed.is_of_parts:
        return "mask it: .mask(~x.isnan()) of the distribution, and obs=x.nan_to_num()"
    by_number = _support(site["fn"]).event_dim == 0
    family = {"family": family_name(site["fn"])} if by_number else {}
    return f"take its likelihood ({part('likelihood', 'Incomplete', **family)})"


def _of_masked(name: str, site: Any, value: float, where: str) -> str:
    return (
        f"the mask of site {name!r} is laid over {value:g} at {where}, which no "
        f"{family_name(site['fn'])} has: it is scored before it is masked, and its gradient may be "
        "NaN; put a value that it has in the place of what is masked, as in "
        "obs=torch.where(mask, x, 1.0)"
    )


def _of_outside(observed: _Observed, site: Any, place: tuple[int, ...], where: str) -> str:
    name, family, value = observed.name, family_name(site["fn"]), site["value"][place]
    shown = f"{value.item():g}" if value.dim() == 0 else "a row"
    if value.dim() == 0 and not _is_seen(site, place):
        return _of_masked(name, site, value.item(), where)
    support = _support(site["fn"])
    support = getattr(support, "base_constraint", support)  # beside it, values may be missing
    seen = observed.range(place[-1] if hasattr(support, "at") else None)
    if hasattr(support, "at"):  # a table, whose columns have supports of their own
        support = support.at(*place)
    inside = bool(_inside(_support(site["fn"]), site["value"])[place])
    edge = ", where its density is not finite" if inside else ""
    return (
        f"the data do not fit the likelihood: site {name!r} is {family}{observed.line}, whose "
        f"values are {described(support)}, but the value at {where} is {shown}{edge} (data range "
        f"{seen.low:g} to {seen.high:g}; {observed.num_outside()} such); {advice(support, seen)}"
    )


def _is_seen(site: Any, place: tuple[int, ...]) -> bool:
    places = observed_places(site)
    return places is None or bool(places.expand(site["value"].shape)[place])


def family_name(fn: Any) -> str:
    """Return the name of the distribution of single numbers, or of rows, that another wraps."""
    while not _has_a_name(fn) and (hasattr(fn, "base_dist") or hasattr(fn, "complete")):
        fn = fn.base_dist if hasattr(fn, "base_dist") else fn.complete  # values may be missing
    return type(fn).__name__.lstrip("_")


def _has_a_name(fn: Any) -> bool:
    """Say whether a distribution that is made of another is known by its own name: a LogNormal."""
    kind = type(fn)
    of_a_library = kind.__module__.startswith(("torch.", "pyro."))
    transformed = isinstance(fn, torch.distributions.TransformedDistribution)
    return transformed and of_a_library and kind.__name__ != "TransformedDistribution"


# Latents ---------------------------------------------------------------------------------------


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
        ) or (isinstance(base_of(posterior), Delta) and _is_discrete(prior.support))
        inside = same_kind and bool(_inside(prior.support, guide_site["value"]).all())
    except (AttributeError, NotImplementedError):
        return
    if not inside:
        # A probability over a density is a number, but no bound of anything.
        raise ValueError(
            f"the guide draws {name!r} from a {family_name(posterior)}, whose values a "
            f"{family_name(prior)}, its distribution in the model, does not have: give both the "
            f"same values ({_fitting(prior, posterior)})"
        )


def _is_discrete(support: Any) -> bool:
    return bool(support.is_discrete)


def _surface(support: Any) -> Any:
    """Return what densities over one dimension less than there are numbers lie on, if they do."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support if support in (constraints.simplex, sphere) else None


def _fitting(prior: Any, posterior: Any) -> str:
    if any(_surface(fn.support) is sphere for fn in (prior, posterior)):
        return f"{part('prior', 'UniformSphere')} with {part('posterior', 'VonMisesFisher')}"
    if any(hasattr(fn.support, "codes") for fn in (prior, posterior)):
        return f"{part('prior', 'UniformCodes')} with {part('posterior', 'NearestCode')}"
    return f"{part('prior', 'StandardNormal')} with {part('posterior', 'DiagonalNormal')}"
