"""A step of inference as a flat graph of tensor operations, replayed without Pyro.

Effect handlers, distribution objects and their checks do the same at every step of a program of
static structure. So they run once, on tensors without data, and what they did to tensors is
recorded with autograd's backward pass in it; after that the operations alone are replayed. The
same operations in the same order give the same bits: the first replay is held against the program.
"""

from __future__ import annotations

import linecache
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import trace_elbo, trace_mean_field_elbo
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.budget import count_devices
from pyro_vae.inference.program import Program
from pyro_vae.recording.compiling import compiled, pays
from pyro_vae.recording.watch import Watch, is_users

__all__ = ["NotRecordable", "Recorder"]

_MAX_RECORDINGS = 8
_MAX_CHANGES = 3
_WORTHWHILE = 50  # replays that make up for a recording

_Outputs = tuple[Tensor | None, ...]


class NotRecordable(Exception):
    """A program whose step cannot be replayed; the message says why and in which line."""


class Recorder:
    """Records a function of tensors once for each signature of its arguments, and replays it.

    Args:
        program: What ``function`` runs; its Python state is watched for changes.
        function: Returns tensors, or None; it may change tensors that are watched in place.
        watched: What else ``function`` depends on, by name.
        engine: "recorded"; "compiled", where Inductor compiles the recording, too, whose numbers
            are then the program's up to rounding; or "auto", which compiles where that pays.
        num_calls: How many calls are to be expected, by which "auto" decides.
        rare: Says of arguments whether their like come so rarely that nothing is compiled for them.
    """

    def __init__(
        self,
        program: Program,
        function: Callable[..., _Outputs],
        *,
        watched: dict[str, Any] | None = None,
        engine: str = "recorded",
        num_calls: int = 0,
        rare: Callable[..., bool] | None = None,
    ) -> None:
        self.program = program
        self.function = function
        self.watched = watched or {}
        self.engine = engine
        self.num_calls = num_calls
        self.rare = rare or _never
        self._recordings: dict[Any, Callable[..., Any]] = {}
        self._watch: Watch | None = None
        self._num_changes = 0
        self._num_replays = 0

    def __call__(self, parameters: Mapping[str, Tensor] | None, *args: Tensor) -> _Outputs:
        """Return what the function would.

        Args:
            parameters: The tensors that the function may take gradients for; None: it takes none.
            args: The function's arguments.

        Raises:
            NotRecordable: If the function depends on more than its tensors.
        """
        signature = (_surroundings(), *map(_facts, args))
        with torch.no_grad():
            if signature not in self._recordings:
                if len(self._recordings) >= _MAX_RECORDINGS:
                    raise NotRecordable(
                        f"batches come in more than {_MAX_RECORDINGS} shapes, each of which would "
                        "have to be recorded"
                    )
                self._recordings[signature] = self._record(parameters, args)
            self._num_replays += 1
            return self._recordings[signature](*args)

    def forget(self) -> None:
        """Drop all recordings."""
        self._recordings.clear()
        self._watch = None
        self._num_replays = 0

    def forget_if_changed(self) -> bool:
        """Drop the recordings if the program has changed since; say whether it has.

        Raises:
            NotRecordable: If it changes again and again.
        """
        changed = self._watch.changed() if self._watch else None
        if changed is None:
            return False
        self._num_changes = 1 + (self._num_changes if self._num_replays < _WORTHWHILE else 0)
        if self._num_changes > _MAX_CHANGES:
            raise NotRecordable(
                f"{changed} changes again and again: keep it in a tensor and change that in place"
            )
        self.forget()
        return True

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the program and of all that is watched, as of the last recording."""
        return [] if self._watch is None else [tensor for _, tensor in self._watch.tensors]

    def graph(
        self, parameters: Mapping[str, Tensor] | None, args: tuple[Tensor, ...]
    ) -> fx.GraphModule:
        """Return the function's operations on such arguments, held against the function itself.

        Args:
            parameters: The tensors that the function may take gradients for; None: it takes none.
            args: The function's arguments.

        Raises:
            NotRecordable: If the function depends on more than its tensors.
        """
        watch = self._watch or self._watched()
        _check_tensors(watch)
        with _tensor_losses():
            with _aside(watch) as changed:
                graph = _traced(self.function, args)
                reason = changed()
            if reason is not None:
                line = _line_that(changes=watch, run=lambda: self.function(*args))
                raise NotRecordable(f"{line} ({reason})" if line else reason)
            if parameters is not None:
                _check_constants(graph, parameters, watch)
            _check_replay(graph, self.function, args, watch)
        self._watch = watch
        return graph

    def _record(
        self, parameters: Mapping[str, Tensor] | None, args: tuple[Tensor, ...]
    ) -> Callable[..., Any]:
        graph = self.graph(parameters, args)
        chosen = self.engine == "compiled" or (
            self.engine == "auto" and pays(graph, self.num_calls)
        )
        return compiled(graph, args) if chosen and not self.rare(*args) else graph

    def _watched(self) -> Watch:
        program = self.program
        modules = [(type(module).__name__, module) for module in program.reachable]
        roots = [("model", program.model), ("guide", program.guide), *self.watched.items()]
        return Watch([*modules, *roots])


def _never(*args: Tensor) -> bool:
    return False


def _traced(function: Callable[..., Any], args: tuple[Tensor, ...]) -> fx.GraphModule:
    def without_values(*args: Tensor) -> Any:
        with _NoValues(), _NoArrays():
            return function(*args)

    count_devices()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = make_fx(without_values, tracing_mode="fake", _allow_non_fake_inputs=True)(*args)
    except Exception as error:  # whatever cannot be recorded runs eagerly, and says why
        raise NotRecordable(_reason(error)) from error
    for node in reversed(graph.graph.nodes):
        if "profiler" in str(node.target):  # marks that an optimiser sets
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


class _NoValues(TorchDispatchMode):
    """Refuse operations that hand a tensor's value to Python: a replay could not take it back."""

    _OPERATIONS = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.is_nonzero.default,
        torch.ops.aten.equal.default,
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._OPERATIONS:
            raise NotRecordable("it asks for the value of a tensor")
        return func(*args, **(kwargs or {}))


class _NoArrays(TorchFunctionMode):
    """Refuse functions that do the same without an operation."""

    _NAMES = ("numpy", "tolist", "__array__", "__dlpack__", "__repr__")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._NAMES:
            raise NotRecordable("it asks for the values of a tensor")
        return func(*args, **(kwargs or {}))


def _check_tensors(watch: Watch) -> None:
    if watch.unwatchable is not None:
        raise NotRecordable(watch.unwatchable)
    for where, tensor in watch.tensors:
        if tensor._backward_hooks or tensor._post_accumulate_grad_hooks:
            raise NotRecordable(f"{where} has a hook, which would not be called")


def _check_constants(graph: fx.GraphModule, parameters: Mapping[str, Tensor], watch: Watch) -> None:
    known = {id(parameter) for parameter in parameters.values()}
    names = {id(tensor): where for where, tensor in watch.tensors}
    for node in graph.graph.nodes:
        value = getattr(graph, node.target) if node.op == "get_attr" else None
        if isinstance(value, Tensor) and value.requires_grad and id(value) not in known:
            where = names.get(id(value), "a tensor")
            raise NotRecordable(f"{where} takes part in the loss, but is not trained here")


def _check_replay(
    graph: fx.GraphModule, function: Callable[..., Any], args: tuple[Tensor, ...], watch: Watch
) -> None:
    """Hold the first replay against the program, under the same random numbers."""

    def replay(*args: Tensor) -> Any:
        try:
            return graph.forward(*args)  # `graph` itself would print the error as well
        except Exception as error:  # whatever cannot be replayed runs eagerly, and says why
            said = _first_line(error)
            raise NotRecordable(f"a replay of its operations fails ({said})") from error

    outcomes = []
    for run in (function, replay):
        with _aside(watch), torch.no_grad():
            found = run(*(arg.clone() for arg in args))
            outcomes.append((*found, *(tensor.detach().clone() for _, tensor in watch.tensors)))
    if not all(map(_agree, *outcomes)):
        raise NotRecordable("a replay of its operations does not give its numbers")


def _agree(found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None or expected is None:
        return found is expected
    if found.device.type == "cpu":
        return torch.allclose(found, expected, rtol=0.0, atol=0.0, equal_nan=True)
    # Sums on a GPU may be taken in any order.
    scale = float(expected.abs().nan_to_num().max())
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)


@contextmanager
def _aside(watch: Watch) -> Iterator[Callable[[], str | None]]:
    """Run the program and leave no trace: in its state, in the random state, in Pyro's store.

    Yields:
        A function that says what the run has changed; None if nothing.
    """
    store = pyro.get_param_store()
    before = set(store._params)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), watch.undoing() as changed:
        try:
            yield changed
        finally:
            for name in set(store._params) - before:
                del store[name]


def _line_that(*, changes: Watch, run: Callable[[], Any]) -> str:
    """Run the program line by line until it changes its state; give that line, or nothing."""
    line = last = ""
    outer = sys.gettrace()

    def follow(frame: Any, event: str, _: Any) -> Any:
        nonlocal line, last
        if not is_users(frame.f_globals.get("__name__")):
            return None
        if not line and last and changed() is not None:
            line = last
        last = _place(frame.f_code.co_filename, frame.f_lineno)
        return follow

    with _aside(changes) as changed:
        sys.settrace(follow)
        try:
            run()
        except Exception:  # the first run has said what fails; this one looks for the line
            return line
        finally:
            sys.settrace(outer)
    return line


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


def _facts(arg: Tensor) -> tuple[Any, ...]:
    return (arg.shape, arg.dtype, arg.device, arg.stride())


def _surroundings() -> tuple[Any, ...]:
    """Return what in torch's own state decides which operations a program runs."""
    autocast = [
        torch.get_autocast_dtype(kind)
        for kind in ("cpu", "cuda")
        if torch.is_autocast_enabled(kind)
    ]
    return (torch.get_default_dtype(), *autocast)


def _reason(error: BaseException) -> str:
    """Say what went wrong, and in which line of the user's."""
    said = _first_line(error)
    frames = traceback.walk_tb(error.__traceback__)
    places = [
        _place(frame.f_code.co_filename, number)
        for frame, number in frames
        if is_users(frame.f_globals.get("__name__"))
    ]
    return f"{places[-1]} ({said})" if places else said


def _place(filename: str, number: int) -> str:
    source = linecache.getline(filename, number).strip()
    return f"{filename.rsplit('/', 1)[-1]}:{number}: {source}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
