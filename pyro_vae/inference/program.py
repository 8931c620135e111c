"""A Pyro model and guide as one object: its parameters, its convention, and its traces.

The convention is all that fitting and evaluation rely on: a plate named "data" at dim -1 holds
one row per datum, at least one site in it is observed, and the guide has every latent site.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyro_vae.arguments import shown
from pyro_vae.inference.exclusive import EXCLUSIVE, exclusively
from pyro_vae.inference.explaining import ProgramError, cause_of, is_machinery, place, reason_of
from pyro_vae.inference.named import Named
from pyro_vae.inference.owners import Owner, Start, bare, root_of
from pyro_vae.inference.parameters import OwnNames, prepare_local_parameters, unchanged_parameters

__all__ = ["Layout", "Program", "ProgramError", "is_invertible"]


@dataclass(frozen=True)
class Layout:
    """What one run of a program showed.

    Attributes:
        latents: The latent sites, in the order of the guide.
        observed: The sites that observe data, in the order of the model.
        max_plate_nesting: The depth of the innermost plate, 1 where "data" is the only one.
        vectorizes: Whether an extra dimension of particles on the left leaves every
            log-density what it is one particle at a time.
        full_size: How many data the plate stands for, where a batch is a subsample of them;
            Pyro's losses are then sums over all of those. None: of the batch alone.
        sampled_plate: A plate inside a datum that takes some of its elements at random; None: none.
    """

    latents: tuple[str, ...]
    observed: tuple[str, ...]
    max_plate_nesting: int
    vectorizes: bool
    full_size: int | None = None
    sampled_plate: str | None = None

    def sampled_weights(self, what: str) -> str | None:
        """Say why a power of the density would not have the mean of all elements; None if it has.

        Args:
            what: What takes the density to a power, such as "IWAE".
        """
        if self.sampled_plate is None:
            return None
        return (
            f"the plate {self.sampled_plate!r} inside a datum takes some elements at random: "
            f"log p(x, z) then has the mean of all of them, but not p(x, z), of which {what} is "
            "made; take the plate whole (leave subsample_size out), or use ELBO"
        )


class Program:
    """A model and a guide, run so that no other program in the process is touched.

    PyroModules keep their own parameters. ``pyro.param`` and ``pyro.module`` statements in plain
    functions use Pyro's store, as always, but under a name of their own where another function
    already has that name: a parameter belongs to the model or the guide that declares it, so that
    two programs with one model share the model's.

    Args:
        model: Declares p(x, z); a function, a module, or a method of one.
        guide: Declares q(z | x), likewise.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
        for role, function in (("model", model), ("guide", guide)):
            if not callable(function):
                raise ProgramError(f"the {role} is {function!r}: expected a function or a module")
        self.model = model
        self.guide = guide
        self.modules = tuple(dict.fromkeys([*_modules(model), *_modules(guide)]))
        self.reachable = tuple(
            dict.fromkeys([*self.modules, *_closure_modules(model), *_closure_modules(guide)])
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the modules' trainable parameters by name, each once."""
        found: dict[int, tuple[str, nn.Parameter]] = {}
        for number, module in enumerate(self.modules):
            prefix = f"{number}." if len(self.modules) > 1 else ""
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    found.setdefault(id(parameter), (prefix + name, parameter))
        return dict(found.values())

    def unregistered_parameters(self) -> dict[str, nn.Parameter]:
        """Return trainable parameters of modules that plain functions merely refer to, by name."""
        return {
            f"{type(module).__name__}.{name}": parameter
            for module in self.reachable
            if module not in self.modules
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def stored_parameters(self) -> dict[str, Tensor]:
        """Return what model and guide have declared in Pyro's store, unconstrained, by its name."""
        owners = [Owner.of(Start(function).owner) for function in (self.model, self.guide)]
        return {name: p for owner in owners for name, p in owner.parameters().items()}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run Pyro statements of this program: parameters stay local to it, other threads wait."""
        for module in self.reachable:
            prepare_local_parameters(module)
        with (
            EXCLUSIVE,
            pyro.settings.context(module_local_params=True),
            OwnNames(self.model, self.guide),
        ):
            yield

    @contextmanager
    def evaluating(self, *, seed: int | None = None) -> Iterator[None]:
        """Run without gradients, in evaluation mode, and leave everything as it was.

        Random states, training modes, buffers and parameters are put back, also those that a
        first run creates.

        Args:
            seed: Seeds the random numbers inside; None goes on from the current state.
        """
        with (
            EXCLUSIVE,
            self._in_evaluation_mode(),
            torch.random.fork_rng(_cuda_devices()),
            torch.no_grad(),
            self.running(),
            unchanged_parameters(self.reachable),
        ):
            if seed is not None:
                torch.manual_seed(seed)
            yield

    @contextmanager
    def _in_evaluation_mode(self) -> Iterator[None]:
        was_training = [m for root in self.reachable for m in root.modules() if m.training]
        for module in self.reachable:
            module.eval()
        try:
            yield
        finally:
            for module in was_training:
                module.training = True

    def traces(
        self,
        *args: Any,
        num_particles: int | None = None,
        max_plate_nesting: int = 1,
        **kwargs: Any,
    ) -> tuple[Trace, Trace]:
        """Run the guide, then the model on its samples; call inside ``running``.

        Args:
            args: What model and guide are called with.
            num_particles: Adds a leading dimension of that many samples; None adds none.
            max_plate_nesting: The depth of the program's innermost plate.
            kwargs: Further arguments of model and guide.
        """
        with ExitStack() as stack:
            if num_particles is not None:
                dim = -1 - max_plate_nesting
                stack.enter_context(pyro.plate("particles", num_particles, dim=dim))
            guide_trace = poutine.trace(self.guide).get_trace(*args, **kwargs)
            replayed = poutine.replay(self.model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        return model_trace, guide_trace

    @exclusively
    def materialize(self, *args: Tensor) -> None:
        """Let lazy modules take their shapes from the first rows of a batch.

        Their numbers come from the global random state, as those of any module that is built do.

        Args:
            args: A batch: the data, and labels where the program takes them.

        Raises:
            ProgramError: If the program cannot be run, or a lazy module takes no part in it.
        """
        if not self.is_lazy:
            return
        rows = tuple(arg[:3] for arg in args)
        with (
            self._in_evaluation_mode(),
            torch.no_grad(),
            pyro.validation_enabled(False),
            self.running(),
            unchanged_parameters(self.reachable),
        ):
            self._first_traces(rows)
        for name in self._lazy():
            raise ProgramError(
                f"the lazy module that holds {name!r} has no part in model and guide, so that its "
                "shape is not known: remove it, or give it its shape"
            )

    @property
    def is_lazy(self) -> bool:
        """Whether a module has yet to take its shape from data."""
        return bool(self._lazy())

    def _lazy(self) -> list[str]:
        """Return the names of parameters and buffers without a shape."""
        return [
            name
            for root in self.reachable
            for name, tensor in [*root.named_parameters(), *root.named_buffers()]
            if nn.parameter.is_lazy(tensor)
        ]

    @exclusively
    def check(self, *args: Tensor) -> Layout:
        """Run the program once on a few rows and hold it against the convention.

        Args:
            args: A batch: the data, and labels where the program takes them.

        Raises:
            ProgramError: If the program breaks the convention; names the site and the line.
        """
        self.materialize(*args)
        rows = tuple(arg[:3] for arg in args)
        with self.evaluating(seed=0), pyro.validation_enabled(False):
            with _Lines(), Named(self.reachable):
                model_trace, guide_trace = self._first_traces(rows)
            observed = _data_sites(model_trace)
            _check_sites(model_trace, guide_trace)
            latents = tuple(name for name, _ in _latent_sites(guide_trace))
            for trace in (guide_trace, model_trace):
                _check_plates(trace, len(rows[0]))
            full_size = _full_size(model_trace, guide_trace)
            nesting = _plate_nesting(model_trace, guide_trace)
            vectorizes = self._vectorizes(rows, nesting)
        subsampled = full_size if full_size != len(rows[0]) else None
        sampled = _sampled_plate(model_trace, guide_trace)
        return Layout(latents, observed, nesting, vectorizes, subsampled, sampled)

    def _first_traces(self, rows: tuple[Tensor, ...]) -> tuple[Trace, Trace]:
        try:
            return self.traces(*rows)
        except Exception as error:
            told = cause_of(error)
            if isinstance(told, ProgramError):
                raise told from None
            shapes = ", ".join(str(tuple(row.shape)) for row in rows)
            reason = reason_of(error, self.reachable)
            raise ProgramError(
                f"the program cannot be run on a batch of shape {shapes}: {reason}"
            ) from error

    def _vectorizes(self, rows: tuple[Tensor, ...], nesting: int) -> bool:
        # Two particles at once, then each alone at the same values: the densities must agree.
        num_particles = 2
        try:
            together = self.traces(*rows, num_particles=num_particles, max_plate_nesting=nesting)
            for particle in range(num_particles):
                if not _agrees(self, rows, together, particle, nesting):
                    return False
        except (RuntimeError, ValueError, IndexError, TypeError):
            return False
        return True


class _Lines(Messenger):
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
    told = f"a {type(fn).__name__} of {len(fn)}" if isinstance(fn, tuple | list) else shown(fn)
    raise ProgramError(f"site {name!r}{line} is given {told} for its distribution: {mend}")


def _modules(function: Any) -> Iterator[nn.Module]:
    root = root_of(function)
    if isinstance(root, nn.Module):
        yield root


def _closure_modules(function: Any) -> Iterator[nn.Module]:
    function = bare(function)
    if inspect.isfunction(function):
        variables = inspect.getclosurevars(function)
        for value in [*variables.nonlocals.values(), *variables.globals.values()]:
            yield from _modules(value)


def _cuda_devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


def _latent_sites(trace: Trace) -> Iterator[tuple[str, Any]]:
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and not _is_subsample(site):
            yield name, site


def _observed_sites(trace: Trace) -> Iterator[tuple[str, Any]]:
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or not site["is_observed"] or _is_subsample(site):
            continue
        if not site["infer"].get("_deterministic"):  # a record of a value, of density one
            yield name, site


def _is_subsample(site: Any) -> bool:
    return bool(poutine.util.site_is_subsample(site))


def _check_sites(model_trace: Trace, guide_trace: Trace) -> None:
    in_model = dict(_latent_sites(model_trace))
    in_guide = dict(_latent_sites(guide_trace))
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
    observed = {name: site for name, site in _observed_sites(trace) if site["value"].numel()}
    if not observed:
        latents = ", ".join(f"{name!r}{line_of(site)}" for name, site in _latent_sites(trace))
        raise ProgramError(
            f"the model observes nothing (it samples {latents or 'nothing'}): give the data to "
            'their site, as in pyro.sample("x", ..., obs=x)'
        )
    if not any(_data_frame(site) for site in observed.values()):
        name, site = next(iter(observed.items()))
        raise ProgramError(_outside(name, site))
    return tuple(observed)


def _data_frame(site: Any) -> Any:
    frames = [f for f in site["cond_indep_stack"] if f.name == "data" and f.dim == -1]
    return frames[0] if frames else None


def _outside(name: str, site: Any) -> str:
    plates = ", ".join(repr(frame.name) for frame in site["cond_indep_stack"] if frame.vectorized)
    return (
        f'the site {name!r}{line_of(site)} is not in the plate "data" at dim -1'
        + (f" (its plates: {plates})" if plates else "")
        + ': every site belongs to a datum; write it inside `with pyro.plate("data", len(x)):`'
    )


def _check_plates(trace: Trace, num_rows: int) -> None:
    for name, site in [*_latent_sites(trace), *_observed_sites(trace)]:
        frame = _data_frame(site)
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
        if site["value"].shape != site["fn"].shape():
            raise ProgramError(
                f"the values at site {name!r}{line_of(site)} have shape "
                f"{tuple(site['value'].shape)}, those of its distribution "
                f"{tuple(site['fn'].shape())}: make the network's output fit the data"
            )


def _full_size(*traces: Trace) -> int:
    sites = [item for t in traces for item in (*_latent_sites(t), *_observed_sites(t))]
    (first, known), *others = sites
    full_size = _data_frame(known).full_size
    for name, site in others:
        if _data_frame(site).full_size != full_size:
            raise ProgramError(
                f'the plate "data" stands for {full_size} data at site {first!r}{line_of(known)}, '
                f"but for {_data_frame(site).full_size} at site {name!r}{line_of(site)}: write "
                'pyro.plate("data", len(x)) in model and guide'
            )
    return int(full_size)


def _sampled_plate(*traces: Trace) -> str | None:
    frames = (
        frame
        for trace in traces
        for _, site in (*_latent_sites(trace), *_observed_sites(trace))
        for frame in site["cond_indep_stack"]
        if frame is not _data_frame(site) and frame.full_size not in (None, frame.size)
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


def _agrees(
    program: Program,
    rows: tuple[Tensor, ...],
    together: tuple[Trace, Trace],
    particle: int,
    nesting: int,
) -> bool:
    model_trace, guide_trace = together
    alone = guide_trace.copy()
    for name, site in list(_latent_sites(alone)):
        value = site["value"]
        if value.dim() < nesting + 1 + len(site["fn"].event_shape):
            return False
        alone.nodes[name] = {**site, "value": value[particle]}
    for function, expected in ((program.guide, guide_trace), (program.model, model_trace)):
        trace = poutine.trace(poutine.replay(function, trace=alone)).get_trace(*rows)
        for name, site in [*_latent_sites(trace), *_observed_sites(trace)]:
            if function is program.guide and not is_invertible(site["fn"]):
                continue
            log_prob = expected.nodes[name]["fn"].log_prob(expected.nodes[name]["value"])
            if log_prob.dim() == nesting + 1:
                log_prob = log_prob[particle]
            single = site["fn"].log_prob(site["value"])
            if not torch.allclose(log_prob, single, rtol=1e-3, atol=1e-4):
                return False
    return True


def is_invertible(fn: Any) -> bool:
    """Whether a distribution can score values that it has not just drawn, and exactly so."""
    while not hasattr(fn, "transforms") and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    if any(
        getattr(transform, "autoregressive", False) for transform in getattr(fn, "transforms", ())
    ):
        return False
    try:
        fn.log_prob(fn.sample().clone())
    except (KeyError, NotImplementedError):  # without an inverse it knows the last sample alone
        return False
    return True


def line_of(site: Any) -> str:
    """Say where a site was declared, as ``" (file.py:12)"``, if ``check`` ran the program."""
    return str(site["infer"].get("line", ""))
