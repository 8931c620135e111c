"""What a program's numbers depend on: parameters without a gradient, data that are not looked at.

An encoder that is detached by mistake, run under ``torch.no_grad``, rounded, or handed on through
``.item()`` never moves, whatever the objective. So what each operation computes is followed from
the parameters to the sites, beside autograd, and held against autograd.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import latent_sites, observed_sites

__all__ = ["cut_off", "ignores_data"]

_TRIALS = 4
# Operations that take of a tensor its shape and kind alone.
_ONLY_SHAPE = re.compile(r"new_\w+|\w+_like").fullmatch


def cut_off(program: Program, parameters: Mapping[str, Tensor], *args: Any) -> dict[str, str]:
    """Return the parameters that take part in a site without a gradient, and which site that is.

    A gradient that is exactly zero counts where other weights do not give another one, though they
    give other numbers: rounding has a gradient that is zero everywhere. ``p.detach()`` of a
    parameter itself is taken as meant, and so is ``requires_grad_(False)``. Call inside
    ``program.running()``, with gradients, and where nothing that moves is kept.

    Args:
        program: The model and the guide.
        parameters: Those that are trained, by name.
        args: What model and guide are called with; a few rows are enough.
    """
    sites, slopes = _followed(program, parameters, args)
    reached = {
        name: next((site for site, found in sites.items() if name in found), "")
        for name in parameters
    }
    none = {n: site for n, site in reached.items() if site and slopes[n] is None}
    zero = {n: site for n, site in reached.items() if site and _is_zero(slopes[n])}
    for name in list(zero):
        if not _stays_zero(program, parameters, name, args):
            del zero[name]
    return {name: site for name, site in reached.items() if name in none or name in zero}


def ignores_data(program: Program, *args: Any) -> bool:
    """Whether no latent of the guide is computed from any of the data, so that q is one for all.

    Call inside ``program.running()``.

    Args:
        program: The model and the guide.
        args: What model and guide are called with; a few rows are enough.
    """
    with torch.no_grad(), _Flow([], [arg for arg in args if isinstance(arg, Tensor)]) as flow:
        latents = _latents(program, args)
    if not latents or flow.of_python or any(map(flow.taken, latents)):
        return False
    # What leaves torch is not followed, such as copies by numpy.
    others = (tuple(arg.roll(1) if isinstance(arg, Tensor) else arg for arg in args), args)
    with torch.no_grad():
        one, other = (_latents(program, rows) for rows in others)
    return all(map(torch.equal, one, other))


def _latents(program: Program, args: tuple[Any, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    trace = poutine.trace(program.guide).get_trace(*args)
    return [site["value"] for _, site in latent_sites(trace)]


def _is_zero(slope: Tensor | None) -> bool:
    return slope is not None and not slope.is_sparse and not bool(slope.any())


def _stays_zero(
    program: Program, parameters: Mapping[str, Tensor], name: str, args: tuple[Any, ...]
) -> bool:
    """Whether numbers change with a parameter's value, but its gradient stays zero elsewhere."""
    moved = False
    for trial in range(_TRIALS):
        with _elsewhere(parameters, seed=trial):
            _, slopes = _followed(program, parameters, args)
            if not _is_zero(slopes[name]):
                return False
            before = _numbers(program, args)
            with torch.no_grad():
                parameters[name].add_(3 * torch.randn_like(parameters[name]))
            moved = moved or any(
                not torch.equal(a, b) for a, b in zip(before, _numbers(program, args), strict=True)
            )
    return moved


@contextmanager
def _elsewhere(parameters: Mapping[str, Tensor], *, seed: int) -> Iterator[None]:
    before = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        with torch.no_grad():
            torch.manual_seed(seed)
            for parameter in parameters.values():
                parameter.add_(0.3 * torch.randn_like(parameter))
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])


def _numbers(program: Program, args: tuple[Any, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return [number for _, number in _of_sites(*program.traces(*args))]


def _followed(
    program: Program, parameters: Mapping[str, Tensor], args: tuple[Any, ...]
) -> tuple[dict[str, set[str]], dict[str, Tensor | None]]:
    """Return the parameters that each site depends on, and the gradients of all numbers."""
    torch.manual_seed(0)
    with _Flow(list(parameters.values())) as flow:
        traces = program.traces(*args)
        flow.of_python = 0  # what was passed to Python has its effect in what was made since
        numbers = list(_of_sites(*traces))
    names = list(parameters)
    sites: dict[str, set[str]] = {}
    for site, number in numbers:
        taken = flow.taken(number)
        sites.setdefault(site, set()).update(n for i, n in enumerate(names) if taken >> i & 1)
    smooth = [number.sum() for _, number in numbers if number.requires_grad]
    slopes: tuple[Tensor | None, ...] = (None,) * len(names)
    if smooth:
        held = list(parameters.values())
        slopes = torch.autograd.grad(torch.stack(smooth).sum(), held, allow_unused=True)
    return sites, dict(zip(names, slopes, strict=True))


def _of_sites(model_trace: Trace, guide_trace: Trace) -> Iterator[tuple[str, Tensor]]:
    """Give the log-densities of all sites, and the values of the latents, as float64."""
    for trace in (guide_trace, model_trace):
        for name, site in (*latent_sites(trace), *observed_sites(trace)):
            yield name, site["fn"].log_prob(site["value"]).double()
            if trace is guide_trace and site["value"].is_floating_point():
                yield name, site["value"].double()


class _Flow(TorchDispatchMode):
    """Follow which parameters, or data, each tensor is computed from; one bit for each of them."""

    def __init__(self, parameters: list[Tensor], data: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self._parameters = {id(p): 1 << place for place, p in enumerate(parameters)}
        self._of = self._parameters | {id(x): 1 << place for place, x in enumerate(data)}
        self._of_memory: dict[int, int] = {}
        self.of_python = 0
        self._alive: list[Tensor] = []  # a number that names a tensor may not pass to another one

    def taken(self, tensor: Tensor) -> int:
        """Return the bits of the parameters that a tensor is computed from."""
        return self._of.get(id(tensor), 0) | self._of_memory.get(_memory(tensor), 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        bits = self.of_python
        for tensor in given:
            bits |= self.taken(tensor)
        if func is torch.ops.aten.detach.default and id(given[0]) in self._parameters:
            bits = self.of_python  # whoever detaches a parameter itself means it
        if _ONLY_SHAPE(func.overloadpacket.__name__):
            bits = self.of_python
        if not made and not func._schema.is_mutable:
            self.of_python |= bits
        for tensor in made:
            self._alive.append(tensor)
            self._of[id(tensor)] = self._of.get(id(tensor), 0) | bits
            place = _memory(tensor)
            if place and bits and id(tensor) not in self._parameters:
                self._of_memory[place] = self._of_memory.get(place, 0) | bits
        return out


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()  # shared with numpy, too
    except NotImplementedError:  # sparse tensors have none of their own
        return 0
