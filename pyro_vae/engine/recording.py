"""A step of inference as a flat graph of tensor operations, replayed without Pyro.

Effect handlers, distribution objects and their checks do the same at every step of a program of
static structure. So they run once, on tensors without data, and what they did to tensors is
recorded with autograd's backward pass in it; after that the operations alone are replayed. The
same operations in the same order give the same bits.
"""

from __future__ import annotations

import copy
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import trace_elbo, trace_mean_field_elbo
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.engine.watch import Watch, generators_state
from pyro_vae.inference.program import Program

__all__ = ["NotRecordable", "Recorder"]

_MAX_RECORDINGS = 8
_MAX_CHANGES = 3


class NotRecordable(Exception):
    """A program whose step cannot be replayed; the message says why and in which line."""


class Recorder:
    """Records a function of tensors once for each signature of its arguments, and replays it.

    Args:
        program: What ``function`` runs; its Python state is watched for changes.
        function: Returns the loss and a gradient (or None) for each parameter.
        compiled: Whether Inductor compiles the recording, too; its operations are then fused, and
            equal to the program's up to rounding and the order of random numbers.
    """

    def __init__(
        self,
        program: Program,
        function: Callable[..., tuple[Tensor | None, ...]],
        *,
        compiled: bool = False,
    ) -> None:
        self.program = program
        self.function = function
        self.compiled = compiled
        self._recordings: dict[Any, Callable[..., Any]] = {}
        self._watch: Watch | None = None
        self._num_changes = 0

    def __call__(self, *args: Tensor) -> tuple[Tensor | None, ...]:
        """Return what the function would.

        Raises:
            NotRecordable: If the step depends on more than its tensors.
        """
        signature = tuple((arg.shape, arg.dtype, arg.device, arg.stride()) for arg in args)
        if signature not in self._recordings:
            if len(self._recordings) >= _MAX_RECORDINGS:
                raise NotRecordable(
                    f"batches come in more than {_MAX_RECORDINGS} shapes, each of which would have "
                    "to be recorded"
                )
            self._recordings[signature] = self._record(args)
        with torch.no_grad():
            return self._recordings[signature](*args)

    def forget_if_changed(self) -> bool:
        """Drop the recordings if the program has changed since; say whether it has.

        Raises:
            NotRecordable: If it changes again and again.
        """
        changed = self._watch.changed() if self._watch else None
        if changed is None:
            return False
        self._num_changes += 1
        if self._num_changes > _MAX_CHANGES:
            raise NotRecordable(
                f"{changed} changes again and again: keep it in a tensor and change that in place"
            )
        self._recordings.clear()
        self._watch = None
        return True

    def _record(self, args: tuple[Tensor, ...]) -> Callable[..., Any]:
        watch = self._watch or Watch(
            (self.program.model, self.program.guide), self.program.reachable
        )
        generators = generators_state()
        with _put_back(self.program), _tensor_losses():
            graph = _traced(self.function, args)
        changed = watch.changed()
        if changed is not None:
            watch.put_back()
            raise NotRecordable(f"a run of the program changes {changed}")
        if generators_state() != generators:
            raise NotRecordable("the program draws from Python's or numpy's random numbers")
        self._watch = watch
        return _compiled(graph) if self.compiled else graph


def _compiled(graph: fx.GraphModule) -> Callable[..., Any]:
    """Compile a recording; where that fails, say so once and go on with the recording."""
    chosen = compiled = torch.compile(graph, fullgraph=True, dynamic=False)

    def run(*args: Tensor) -> Any:
        nonlocal chosen
        if chosen is graph:
            return graph(*args)
        try:
            return compiled(*args)
        except Exception as error:
            reason = _first_line(error)
            warnings.warn(f"not compiled, only recorded, since {reason}", stacklevel=5)
            chosen = graph
            return graph(*args)

    return run


def _traced(function: Callable[..., Any], args: tuple[Tensor, ...]) -> fx.GraphModule:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*args)
    except Exception as error:
        raise NotRecordable(_reason(error)) from error
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


@contextmanager
def _put_back(program: Program) -> Iterator[None]:
    """Leave buffers and the random state as they are: recording computes with single numbers."""
    buffers = [buffer for module in program.reachable for buffer in module.buffers()]
    before = [copy.deepcopy(buffer) for buffer in buffers]
    try:
        with torch.random.fork_rng(
            list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        ):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def _tensor_losses() -> Iterator[None]:
    """Keep the losses of Pyro's ELBOs tensors: they are summed as Python floats otherwise.

    A Python float is a float64, and so is what takes its place; the sums have the same bits.
    """
    modules = (trace_elbo, trace_mean_field_elbo)
    before = [(module, module.torch_item, module.warn_if_nan) for module in modules]
    for module in modules:
        module.torch_item = _as_float64
        module.warn_if_nan = _no_warning
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        for module, torch_item, warn_if_nan in before:
            module.torch_item, module.warn_if_nan = torch_item, warn_if_nan


def _as_float64(value: Any) -> Any:
    return value.detach().double() if isinstance(value, Tensor) else value


def _no_warning(value: Any, message: str = "") -> None:
    return None


def _reason(error: BaseException) -> str:
    said = _first_line(error)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        place = frame.filename
        if not any(part in place for part in ("/torch/", "/pyro/", "pyro_vae/inference", __file__)):
            return f"{place.rsplit('/', 1)[-1]}:{frame.lineno}: {frame.line} ({said})"
    return said


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
