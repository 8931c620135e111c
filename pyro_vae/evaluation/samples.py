"""Reconstructions, samples, interpolations and traversals in data space.

A picture is the mean of the likelihood, or a draw of it where ``stochastic`` or where it has no
mean. Functions of the model alone take ``x_like``: data whose rows tell shape, type and device.
A program that observes one site gives one tensor, one that observes several a dictionary of them
by site; each has the event shape of its site, and a plate inside the datum comes before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions.constraints import sphere
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.evaluation.batching import batches, check_counts, cycled, pairs_at_once
from pyro_vae.evaluation.latents import unit_activity
from pyro_vae.evaluation.programs import generates, takes_program
from pyro_vae.evaluation.substitution import NUM_DRAWS, site_rows, substituted
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import Layout
from pyro_vae.inference.terms import mean_of, rows_first, units_of

__all__ = [
    "Generated",
    "NoPlaneError",
    "codes",
    "decode",
    "generate",
    "generated",
    "interpolate",
    "manifold",
    "observed",
    "prior_samples",
    "reconstruct",
    "traverse",
]


class NoPlaneError(ValueError):
    """The prior has no plane of quantiles: no inverse distribution function of two units."""


# A tensor, or a dictionary of them by site; a caller of a program of one site may take it for one.
Generated = Tensor | Any


@takes_program
def observed(probe: Probe, x: Tensor, *fields: Tensor) -> Generated:
    """Return what the sites observe of the data, ``[N, *event_shape]``, as the program computes it.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.

    Raises:
        ValueError: If ``x`` is empty or the program breaks the convention.
    """
    args = (x, *fields)
    program, layout = probe.program, probe.layout
    found: dict[str, list[Tensor]] = {name: [] for name in layout.generated}
    with program.evaluating(seed=0):
        for batch in batches(args, pairs_at_once(program, layout, *args)):
            trace, _ = program.traces(*batch)
            for name, parts in found.items():
                parts.append(site_rows(trace.nodes[name]).cpu())
    return generated({name: torch.cat(parts) for name, parts in found.items()})


@takes_program
def reconstruct(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    stochastic: bool = False,
    seed: int = 0,
) -> Generated:
    """Return the data as the program sees them through its latents, ``[N, *event_shape]``.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.
        stochastic: Draw z from q and x from p(x | z). Otherwise each latent is its mean (its mode
            where it is discrete, an average of draws where it has neither), from site to site.
        seed: Of the draws; the random state outside is not touched.

    Raises:
        ValueError: If ``x`` is empty or the program breaks the convention.
    """
    args = (x, *fields)
    program, layout = probe.program, probe.layout
    with program.evaluating(seed=seed):
        values = codes(program, layout, args, stochastic=stochastic)
        return generated(generate(program, layout, values, args, stochastic=stochastic))


@generates
def prior_samples(
    probe: Probe,
    x_like: Tensor,
    num_samples: int,
    *fields: Tensor,
    stochastic: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
) -> Generated:
    """Return data of latents drawn from the prior, ``[num_samples, *event_shape]``.

    Args:
        probe: The program: ``vae``, or ``model`` alone.
        x_like: Data, ``[N, *event_shape]``: only shape, type and device count.
        num_samples: How many.
        fields: What else the model takes, ``[N, ...]`` each; repeated in turn.
        stochastic: Draw from p(x | z) instead of taking its mean.
        temperature: t, in [0, 1]: each latent's distance from its mean is t times that of a draw,
            from layer to layer; of a flow, that of its base. Below 1, samples are more typical
            than the model's and less varied.
        seed: Of the draws; the random state outside is not touched.

    Raises:
        ValueError: If a number is out of range, ``x_like`` is empty, the model breaks the
            convention, or at another temperature than 1 a latent has no mean, is discrete, or is a
            direction.
    """
    check_counts(num_samples=num_samples)
    if not 0 <= temperature <= 1:
        raise ValueError(f"temperature={temperature}: it lies between 0, all means, and 1")
    args = (x_like, *fields)
    program, layout = probe.program, probe.layout
    with program.evaluating(seed=seed):
        rows = cycled(args, num_samples)
        drawn = {}
        if temperature < 1:
            cooled = substituted(program.model, {}, layout, rows, temperature=temperature)
            drawn = {name: site_rows(cooled.nodes[name]) for name in layout.latents}
        return generated(
            generate(program, layout, drawn, rows, stochastic=stochastic, center=False)
        )


@generates
def decode(
    probe: Probe,
    values: Mapping[str, Tensor],
    x_like: Tensor,
    *fields: Tensor,
    stochastic: bool = False,
    seed: int = 0,
) -> Generated:
    """Return the data of given latents, ``[N, *event_shape]``.

    Args:
        probe: The program: ``vae``, or ``model`` alone.
        values: Of latent sites, ``[N, *event_shape]`` each. Sites that are not given are set to
            the mean of their prior given the others, or drawn from it where ``stochastic``.
        x_like: Data, ``[M, *event_shape]``: only shape, type and device count.
        fields: What else the model takes, ``[M, ...]`` each; repeated in turn.
        stochastic: Draw from p(x | z) instead of taking its mean.
        seed: Of the draws; the random state outside is not touched.

    Raises:
        ValueError: If the values are none of the model's latents, or have another shape.
    """
    args = (x_like, *fields)
    program, layout = probe.program, probe.layout
    unknown = [name for name in values if name not in layout.latents]
    if unknown or not values:
        wrong = f"the model has no latent site {unknown[0]!r}" if unknown else "no values are given"
        raise ValueError(f"{wrong}: its latent sites are {', '.join(map(repr, layout.latents))}")
    sizes = {name: len(value) for name, value in values.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the values have different numbers of rows: {sizes}")
    num_rows = next(iter(sizes.values()))
    check_counts(num_rows=num_rows)
    placed = {name: value.to(x_like.device) for name, value in values.items()}
    with program.evaluating(seed=seed):
        rows = cycled(args, num_rows)
        return generated(
            generate(program, layout, placed, rows, stochastic=stochastic, center=not stochastic)
        )


@takes_program
def interpolate(
    probe: Probe,
    x_start: Tensor,
    x_end: Tensor,
    *fields: Tensor,
    num_steps: int = 8,
    seed: int = 0,
) -> Generated:
    """Return the way between pairs of data, ``[num_pairs, num_steps, *event_shape]``.

    Every latent site goes on a line from the posterior mean of one to that of the other; the ends
    are the reconstructions.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x_start: Data, ``[num_pairs, *event_shape]``, on the device of the program.
        x_end: Likewise.
        fields: Of the pairs, what else the program takes, ``[num_pairs, ...]`` each.
        num_steps: The number of points on the line, both ends included.
        seed: Of the draws of what has no mean; the random state outside is not touched.

    Raises:
        ValueError: If the two have different shapes, ``num_steps`` is less than 1, ``x_start`` is
            empty, or the program breaks the convention.
    """
    check_counts(num_steps=num_steps)
    start, end = (x_start, *fields), (x_end, *fields)
    if x_start.shape != x_end.shape:
        raise ValueError(f"x_start has shape {tuple(x_start.shape)}, x_end {tuple(x_end.shape)}")
    program, layout = probe.program, probe.layout
    with program.evaluating(seed=seed):
        both = [codes(program, layout, args) for args in (start, end)]
        values = {name: _line(both[0][name], both[1][name], num_steps) for name in both[0]}
        rows = tuple(arg.repeat_interleave(num_steps, 0) for arg in start)
        path = generate(program, layout, values, rows)
    return generated(path, (len(x_start), num_steps))


@takes_program
def traverse(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    units: list[int] | None = None,
    num_units: int = 8,
    site: str | None = None,
    span: float = 3.0,
    num_steps: int = 8,
    seed: int = 0,
) -> Generated:
    """Return what each unit does to the first datum, ``[num_units, num_steps, *event_shape]``.

    One unit at a time goes from ``-span`` to ``span`` standard deviations of its prior around the
    prior's mean, but not beyond the bounds of its values; everything else stays at the posterior
    mean of ``x[0]``.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.
        units: Indices into the flattened latent; None: the ``num_units`` most active over ``x``,
            the most active first.
        num_units: How many, where ``units`` is None; fewer where the latent has fewer.
        site: The latent site; None: the first of the guide.
        span: In standard deviations of the prior.
        num_steps: The number of points from end to end.
        seed: Of the draws of what has no mean; the random state outside is not touched.

    Raises:
        ValueError: If there is no such site or unit, a count is too small, ``x`` is empty, or the
            program breaks the convention.
    """
    check_counts(num_steps=num_steps, num_units=num_units)
    args = (x, *fields)
    program, layout = probe.program, probe.layout
    site = layout.latents[0] if site is None else site
    if site not in layout.latents:
        known = ", ".join(map(repr, layout.latents))
        raise ValueError(f"there is no latent site {site!r}: the latent sites are {known}")
    if units is None:
        activity = unit_activity(probe, *args, seed=seed)[site].activity
        units = activity.argsort(descending=True, stable=True)[:num_units].tolist()
    with program.evaluating(seed=seed):
        first = tuple(arg[:1] for arg in args)
        code = codes(program, layout, first)
        prior = substituted(program.model, code, layout, first, center=True).nodes[site]["fn"]
        line = torch.linspace(-span, span, num_steps)
        moved = _moved(code[site], prior, _checked_units(units, code[site]), line)
        values = {name: part.expand(len(moved), *part.shape[1:]) for name, part in code.items()}
        rows = cycled(first, len(moved))
        path = generate(program, layout, {**values, site: moved}, rows)
    return generated(path, (len(units), num_steps))


@generates
def manifold(probe: Probe, x_like: Tensor, *fields: Tensor, num_steps: int = 20) -> Generated:
    """Return the plane of a two-dimensional latent, ``[num_steps, num_steps, *event_shape]``.

    The centres of a grid of equal squares on the unit square, mapped through the inverse
    distribution function of the prior: every picture stands for as much probability. The first
    unit rises with the second index, to the right; the second unit falls with the first, so that
    it rises upwards.

    Args:
        probe: The program, with one latent site of two independent units: ``vae``, or ``model``.
        x_like: Data, ``[N, *event_shape]``: only shape, type and device count.
        fields: What else the model takes, ``[N, ...]`` each; repeated in turn.
        num_steps: Pictures on each side.

    Raises:
        NoPlaneError: If the latent is not one site of two independent units whose prior has an
            inverse distribution function, as a normal has.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), appendix A
    """
    check_counts(num_steps=num_steps)
    args = (x_like, *fields)
    program, layout = probe.program, probe.layout
    with program.evaluating(seed=0):
        first = tuple(arg[:1] for arg in args)
        nodes = substituted(program.model, {}, layout, first, center=True).nodes
        quantiles = (torch.arange(num_steps, dtype=torch.float64) + 0.5) / num_steps
        grid = torch.cartesian_prod(quantiles.flip(0), quantiles).flip(1)
        values = _inverse_cdf({name: nodes[name] for name in layout.latents}, grid)
        rows = cycled(args, len(grid))
        return generated(generate(program, layout, values, rows), (num_steps, num_steps))


def codes(
    program: Program, layout: Layout, args: tuple[Tensor, ...], *, stochastic: bool = False
) -> dict[str, Tensor]:
    """Return a value of every latent site for each datum, ``[N, ...]``."""
    found: dict[str, list[Tensor]] = {name: [] for name in layout.latents}
    for batch in batches(args, pairs_at_once(program, layout, *args)):
        nodes = substituted(program.guide, {}, layout, batch, center=not stochastic).nodes
        for name, parts in found.items():
            parts.append(site_rows(nodes[name]))
    return {name: torch.cat(parts) for name, parts in found.items()}


def generate(
    program: Program,
    layout: Layout,
    values: Mapping[str, Tensor],
    args: tuple[Tensor, ...],
    *,
    stochastic: bool = False,
    center: bool = True,
) -> dict[str, Tensor]:
    """Return the data of latents ``[N, ...]`` by site; those not given are centred, or drawn."""
    names = list(values)
    parts: dict[str, list[Tensor]] = {name: [] for name in layout.generated}
    for batch in batches((*args, *values.values()), pairs_at_once(program, layout, *args)):
        given = dict(zip(names, batch[len(args) :], strict=True))
        rows = batch[: len(args)]
        nodes = substituted(
            program.model, given, layout, rows, center=center, stochastic=stochastic
        ).nodes
        for name, found in parts.items():
            found.append(site_rows(nodes[name]).cpu())
    return {name: torch.cat(found) for name, found in parts.items()}


def generated(by_site: Mapping[str, Tensor], rows: tuple[int, ...] = (-1,)) -> Generated:
    """Return the data of one site as they are, those of several by site; rows take a shape."""
    shaped = {name: part.unflatten(0, rows) for name, part in by_site.items()}
    return shaped if len(shaped) > 1 else next(iter(shaped.values()))


def _line(start: Tensor, end: Tensor, num_steps: int) -> Tensor:
    weight = torch.linspace(0, 1, num_steps)
    if not start.dtype.is_floating_point:
        weight = weight.round()  # there is nothing between two classes
    weight = weight.reshape(-1, *[1] * (start.dim() - 1)).to(start.device, start.dtype)
    return torch.cat([(1 - weight) * a + weight * b for a, b in zip(start, end, strict=True)])


def _checked_units(units: list[int], code: Tensor) -> list[int]:
    outside = [unit for unit in units if not 0 <= unit < code[0].numel()]
    if outside or not units:
        raise ValueError(
            f"units={units}: expected indices from 0 to {code[0].numel() - 1}, at least one"
        )
    return units


def _moved(code: Tensor, prior: Any, units: list[int], line: Tensor) -> Tensor:
    """Return copies of ``code``, ``[1, ...]``, each with one unit at one place of its line."""
    loc, scale = (rows_first(part, len(prior.event_shape)) for part in _location_scale(prior))
    places = loc.flatten() + line.to(code).unsqueeze(1) * scale.flatten()
    places = places.clamp(*_bounds(prior.support, loc))
    moved = code.reshape(1, -1).repeat(len(units), len(line), 1)
    for row, unit in enumerate(units):
        moved[row, :, unit] = places[:, unit]
    return moved.reshape(-1, *code.shape[1:])


def _bounds(support: Any, loc: Tensor) -> list[Tensor]:
    """Return the smallest and the largest value of each unit, infinite where there is none."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is sphere:
        bounds = [-1.0, 1.0]
    elif support in (constraints.boolean, constraints.simplex):
        bounds = [0.0, 1.0]
    else:
        low, high = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
        bounds = [-math.inf if low is None else low, math.inf if high is None else high]
    return [torch.as_tensor(bound).to(loc).expand_as(loc).flatten() for bound in bounds]


def _location_scale(prior: Any) -> tuple[Tensor, Tensor]:
    loc = mean_of(prior)
    try:
        scale = prior.stddev
    except (NotImplementedError, AttributeError):
        scale = None
    if loc is not None and scale is not None and bool(torch.isfinite(scale).all()):
        return loc, scale
    draws = prior.sample((NUM_DRAWS,))
    draws = draws if draws.dtype.is_floating_point else draws.to(torch.get_default_dtype())
    return draws.mean(0), draws.std(0)


def _inverse_cdf(sites: Mapping[str, Any], grid: Tensor) -> dict[str, Tensor]:
    """Return the latent at each point of the unit square, ``[len(grid), *event_shape]``."""
    name, site = next(iter(sites.items()))
    fn = site["fn"]
    units = units_of(fn)
    num_units = fn.event_shape.numel()
    if len(sites) > 1 or num_units != 2 or units is None or len(fn.batch_shape) > 1:
        found = ", ".join(f"{n!r} of {s['fn'].event_shape.numel()}" for n, s in sites.items())
        raise NoPlaneError(
            "a manifold needs one latent site of two units that are independent in the prior; "
            f"found the sites and units {found}"
        )
    expanded = units.expand((len(grid), *fn.event_shape))
    try:
        value = expanded.icdf(grid.to(site["value"]).unflatten(1, fn.event_shape))
    except NotImplementedError:
        family = type(units).__name__
        raise NoPlaneError(
            f"the prior of {name!r} is {family}, which has no inverse distribution function: "
            "a manifold needs one, such as a normal prior"
        ) from None
    return {name: value}
