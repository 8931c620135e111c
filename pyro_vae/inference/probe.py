"""Look at a program once, on a few rows, and hold it against the convention.

A plate named "data" at dim -1 holds one row per datum, at least one site in it is observed, and the
guide has every latent site.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import shown
from pyro_vae.inference.auxiliary import AuxiliaryLosses
from pyro_vae.inference.explaining import ProgramError, is_machinery, place, reason_of
from pyro_vae.inference.handlers import Named
from pyro_vae.inference.program import EXCLUSIVE, Program
from pyro_vae.inference.sites import (
    Layout,
    Strata,
    data_frame,
    is_invertible,
    latent_sites,
    line_of,
    observed_sites,
    points_of,
)
from pyro_vae.inference.strata import strata_of
from pyro_vae.inference.terms import SiteTerms, terms_of
from pyro_vae.inference.weights import Weighing

__all__ = ["Calls", "Probe", "Spread"]


def layout_of(model_trace: Trace, guide_trace: Trace, num_rows: int) -> Layout:
    """Return what a run showed; whether it ``vectorizes`` takes others.

    Args:
        model_trace: Of the model, replayed on the guide's samples, run under ``Lines``.
        guide_trace: Of the guide, likewise.
        num_rows: That both were called with.

    Raises:
        ProgramError: If the program breaks the convention; names the site and the line.
    """
    observed = _data_sites(model_trace)
    _check_sites(model_trace, guide_trace)
    latents = tuple(name for name, _ in latent_sites(guide_trace))
    for trace in (guide_trace, model_trace):
        _check_plates(trace, num_rows)
    full_size = _full_size(model_trace, guide_trace)
    nesting = _plate_nesting(model_trace, guide_trace)
    subsampled = full_size if full_size != num_rows else None
    sampled = _sampled_plate(model_trace, guide_trace)
    strata = strata_of(guide_trace, _numbers_per_datum(model_trace, num_rows))
    points = points_of(model_trace, guide_trace)
    return Layout(latents, observed, nesting, False, subsampled, sampled, strata, points)


def _numbers_per_datum(model_trace: Trace, num_rows: int) -> int:
    sites = (*latent_sites(model_trace), *observed_sites(model_trace))
    return sum(site["value"].numel() for _, site in sites) // num_rows


class Lines(Messenger):
    """Note at every sample site which line of the program it stands in."""

    def _pyro_sample(self, msg: Any) -> None:
        frame = sys._getframe(1)
        while frame.f_back is not None and is_machinery(frame):
            frame = frame.f_back
        line = f" ({place(frame, frame.f_lineno)})"
        _check_distribution(msg["name"], msg["fn"], line)
        msg["infer"] = {**msg["infer"], "line": line}


def _check_distribution(name: str, fn: Any, line: str) -> None:
    if isinstance(fn, TorchDistributionMixin) or (callable(fn) and hasattr(fn, "log_prob")):
        return
    if isinstance(fn, torch.distributions.Distribution):
        mend = f"take that of pyro.distributions, dist.{type(fn).__name__}(...)"
    elif isinstance(fn, tuple | list):
        mend = "return dist.Normal(loc, scale).to_event(1), or one tensor from a network"
    else:
        mend = "return one, such as dist.Normal(loc, scale).to_event(1)"
    given = f"a {type(fn).__name__} of {len(fn)}" if isinstance(fn, tuple | list) else shown(fn)
    raise ProgramError(f"site {name!r}{line} is given {given} for its distribution: {mend}")


def _check_sites(model_trace: Trace, guide_trace: Trace) -> None:
    in_model = dict(latent_sites(model_trace))
    in_guide = dict(latent_sites(guide_trace))
    for name, site in in_model.items():
        if name not in in_guide:
            raise ProgramError(
                f"the guide has no site {name!r}, which the model samples{line_of(site)}: "
                f"add pyro.sample({name!r}, ...) to the guide"
            )
    for name, site in in_guide.items():
        if name not in in_model and not site["infer"].get("is_auxiliary"):
            raise ProgramError(
                f"the guide samples {name!r}{line_of(site)}, which the model does not have: "
                f"remove it from the guide or add pyro.sample({name!r}, ...) to the model"
            )


def _data_sites(trace: Trace) -> tuple[str, ...]:
    # `pyro.factor` observes nothing, at a site of no size.
    observed = {name: site for name, site in observed_sites(trace) if site["value"].numel()}
    if not observed:
        latents = ", ".join(f"{name!r}{line_of(site)}" for name, site in latent_sites(trace))
        raise ProgramError(
            f"the model observes nothing (it samples {latents or 'nothing'}): give the data to "
            'their site, as in pyro.sample("x", ..., obs=x)'
        )
    if not any(data_frame(site) for site in observed.values()):
        name, site = next(iter(observed.items()))
        raise ProgramError(_outside(name, site))
    return tuple(observed)


def _outside(name: str, site: Any) -> str:
    plates = ", ".join(repr(frame.name) for frame in site["cond_indep_stack"] if frame.vectorized)
    return (
        f'the site {name!r}{line_of(site)} is not in the plate "data" at dim -1'
        + (f" (its plates: {plates})" if plates else "")
        + ': every site belongs to a datum; write it inside `with pyro.plate("data", len(x)):`'
    )


def _check_plates(trace: Trace, num_rows: int) -> None:
    for name, site in [*latent_sites(trace), *observed_sites(trace)]:
        frame = data_frame(site)
        if frame is None:
            raise ProgramError(_outside(name, site))
        if frame.size != num_rows:
            raise ProgramError(
                f'the plate "data" of site {name!r}{line_of(site)} has size {frame.size} for a '
                f'batch of {num_rows}: batches differ in size, write pyro.plate("data", len(x))'
            )
        frames = {f.dim: f.size for f in site["cond_indep_stack"] if f.vectorized}
        expected = tuple(frames.get(dim, 1) for dim in range(min(frames), 0))
        shape = tuple(site["fn"].batch_shape)
        if shape != expected:
            extra = len(shape) - len(expected)
            fix = f".to_event({extra})" if extra > 0 else ".to_event(...)"
            raise ProgramError(
                f"the distribution at site {name!r}{line_of(site)} has batch shape {shape} where "
                f"its plates say {expected}: declare the dimensions of one datum with {fix}"
            )
        mask = site["mask"]
        if isinstance(mask, Tensor) and not _broadcasts(mask.shape, expected):
            raise ProgramError(
                f"the mask of site {name!r}{line_of(site)} has shape {tuple(mask.shape)} where its "
                f"plates say {expected}: give one value for each datum of the batch"
            )
        if site["value"].shape != site["fn"].shape():
            raise ProgramError(
                f"the values at site {name!r}{line_of(site)} have shape "
                f"{tuple(site['value'].shape)}, those of its distribution "
                f"{tuple(site['fn'].shape())}: make the network's output fit the data"
            )


def _broadcasts(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    pairs = zip(shape[::-1], expected[::-1], strict=False)
    return len(shape) <= len(expected) and all(size in (1, whole) for size, whole in pairs)


def _full_size(*traces: Trace) -> int:
    sites = [item for t in traces for item in (*latent_sites(t), *observed_sites(t))]
    (first, known), *others = sites
    full_size = data_frame(known).full_size
    for name, site in others:
        if data_frame(site).full_size != full_size:
            raise ProgramError(
                f'the plate "data" stands for {full_size} data at site {first!r}{line_of(known)}, '
                f"but for {data_frame(site).full_size} at site {name!r}{line_of(site)}: write "
                'pyro.plate("data", len(x)) in model and guide'
            )
    return int(full_size)


def _sampled_plate(*traces: Trace) -> str | None:
    frames = (
        frame
        for trace in traces
        for _, site in (*latent_sites(trace), *observed_sites(trace))
        for frame in site["cond_indep_stack"]
        if frame is not data_frame(site) and frame.full_size not in (None, frame.size)
    )
    return next((frame.name for frame in frames), None)


def _plate_nesting(*traces: Trace) -> int:
    dims = [
        -frame.dim
        for trace in traces
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return max(dims)


_FEW = 3
_SPREAD = 64
_PARTICLES = 2


class Probe:
    """A program run once on a few rows, and held against the convention.

    Nothing is changed by it: random states, buffers, modes and parameters are put back.

    Args:
        program: The model and the guide.
        args: What they are called with: data, and what else the program takes.

    Attributes:
        args: The same.
        rows: The few of them that were looked at.
        layout: What the run showed.
        model_trace: Of the model, without gradients.
        guide_trace: Of the guide.

    Raises:
        ProgramError: If the program cannot be run or breaks the convention; names the site and the
            line.
    """

    def __init__(self, program: Program, *args: Any) -> None:
        self.program, self.args = program, args
        self.rows = tuple(arg[:_FEW] for arg in args)
        with EXCLUSIVE:
            program.materialize(*args)
            with self.looking():
                with (
                    Weighing(), Lines(), Named(program.reachable), AuxiliaryLosses() as losses
                ):  # fmt: skip
                    self.model_trace, self.guide_trace = program.first_traces(*self.rows)
                layout = layout_of(self.model_trace, self.guide_trace, len(self.rows[0]))
                obstacle = _obstacle(program, self.rows, layout.max_plate_nesting)
        strata = layout.strata
        if obstacle is not None and strata.sites and strata.obstacle is None:
            strata = replace(strata, obstacle=_one_at_a_time(strata, obstacle))
        self.layout: Layout = replace(layout, vectorizes=obstacle is None, strata=strata)
        self._losses = losses.declared

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Run the program, or compute what its distributions say, and leave no trace of it."""
        with self.program.evaluating(seed=0), pyro.validation_enabled(False):
            yield

    @cached_property
    def terms(self) -> SiteTerms:
        """The table of site terms of these rows, with one particle."""
        shape = (1, len(self.rows[0]))
        with self.looking():
            return terms_of(self.model_trace, self.guide_trace, shape, self.layout, self._losses)

    @property
    def is_weighted(self) -> bool:
        """Whether handlers weigh some data or sites: Pyro's losses are then no bounds."""
        terms = self.terms
        weights = [terms.weight, *terms.scale_p.values(), *terms.scale_q.values()]
        return any(bool((torch.as_tensor(weight) != 1).any()) for weight in weights)

    @cached_property
    def spread(self) -> Spread:
        """The program on more rows, from first to last."""
        return self.spread_over(*self.args)

    def spread_over(self, *data: Tensor) -> Spread:
        """Run the program on some rows of all data: neighbours may be alike where others are not.

        Of bits, a single draw may be one of categories by chance, hence not a few.
        """
        count = min(len(data[0]), _SPREAD)
        index = torch.linspace(0, len(data[0]) - 1, count, device=data[0].device).long()
        rows = tuple(argument.contiguous().index_select(0, index) for argument in data)
        # Validation would stop at the encoder's NaN, before the data that caused it are named.
        with self.looking(), Calls(self.program) as calls:
            return Spread(rows, *self.program.traces(*rows), calls)


class Spread:
    """A run on rows from first to last.

    Attributes:
        rows: What the program was called with.
        model_trace: Of the model.
        guide_trace: Of the guide.
        calls: What modules were given, and what they returned.
    """

    def __init__(
        self, rows: tuple[Tensor, ...], model_trace: Trace, guide_trace: Trace, calls: Calls
    ) -> None:
        self.rows, self.calls = rows, calls
        self.model_trace, self.guide_trace = model_trace, guide_trace


class Calls:
    """Collects what modules that data can initialise are given, and what they return.

    Args:
        program: Whose modules are listened to, within a ``with`` block.

    Attributes:
        modules: Those that say whether they are new to data, ``is_new``.
        given: Each of them that was called, with its first argument.
        returned: Likewise, with what it returned.
    """

    def __init__(self, program: Program) -> None:
        self.modules: list[Any] = [
            module
            for root in program.reachable
            if root not in program.around  # no weights mean something else in other units
            for module in root.modules()
            if hasattr(module, "is_new")
        ]
        self.given: list[tuple[Any, Any]] = []
        self.returned: list[tuple[Any, Any]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Calls:
        """Begin to listen."""
        self._hooks = [module.register_forward_hook(self._note) for module in self.modules]
        return self

    def __exit__(self, *error: Any) -> None:
        """Listen no more."""
        for hook in self._hooks:
            hook.remove()

    def _note(self, module: Any, args: tuple[Any, ...], result: Any) -> None:
        self.given += [(module, arg) for arg in args[:1]]
        self.returned.append((module, result))


def _one_at_a_time(strata: Strata, obstacle: str) -> str:
    names = ", ".join(repr(stratum.name) for stratum in strata.sites)
    return (
        f"all values of {names} are run through at once, in a dimension of particles on the left, "
        f"which the program does not take: {obstacle}; count dimensions from the right there, as "
        "torch.cat(..., -1) and .flatten(-2) do"
    )


def _obstacle(program: Program, rows: tuple[Tensor, ...], nesting: int) -> str | None:
    """Say why several particles do not go at once; None if they do.

    Two at once, then each alone at the same values: the densities must agree.
    """
    try:
        with Lines():
            together = program.traces(*rows, num_particles=_PARTICLES, max_plate_nesting=nesting)
        found = (_differs(program, rows, together, each, nesting) for each in range(_PARTICLES))
        return next((obstacle for obstacle in found if obstacle is not None), None)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return reason_of(error, program.reachable)


def _differs(
    program: Program,
    rows: tuple[Tensor, ...],
    together: tuple[Trace, Trace],
    particle: int,
    nesting: int,
) -> str | None:
    model_trace, guide_trace = together
    alone = guide_trace.copy()
    for name, site in list(latent_sites(alone)):
        value = site["value"]
        if value.dim() < nesting + 1 + len(site["fn"].event_shape):
            return f"the values at site {name!r}{line_of(site)} are the same for all particles"
        alone.nodes[name] = {**site, "value": value[particle]}
    for function, expected in ((program.guide, guide_trace), (program.model, model_trace)):
        trace = poutine.trace(poutine.replay(function, trace=alone)).get_trace(*rows)
        for name, site in [*latent_sites(trace), *observed_sites(trace)]:
            if function is program.guide and not is_invertible(site["fn"]):
                continue
            log_prob = expected.nodes[name]["fn"].log_prob(expected.nodes[name]["value"])
            if log_prob.dim() == nesting + 1:
                log_prob = log_prob[particle]
            single = site["fn"].log_prob(site["value"])
            if not torch.allclose(log_prob, single, rtol=1e-3, atol=1e-4):
                place = line_of(expected.nodes[name])
                return f"the density at site {name!r}{place} is another one for several at once"
    return None
