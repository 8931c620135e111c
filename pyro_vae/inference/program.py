"""A Pyro model and guide as one object: its parameters, and its traces.

One program runs at a time: Pyro's handlers and settings, and torch's noise, are the process's.
Calls from other threads wait. So a call draws the numbers that it draws alone, and puts back what
it found, not what another one had set in the meantime.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyro_vae.fields import by_name, names_taken
from pyro_vae.inference.explaining import ProgramError, cause_of, reason_of
from pyro_vae.inference.parameters import (
    Owner,
    OwnNames,
    Start,
    bare,
    layers,
    root_of,
)

__all__ = ["EXCLUSIVE", "Program", "ProgramError", "exclusively", "unchanged_parameters"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

EXCLUSIVE = threading.RLock()


def exclusively(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let calls of a function wait until no other thread runs a program."""

    @functools.wraps(function)
    def waiting(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with EXCLUSIVE:
            return function(*args, **kwargs)

    return waiting


class Program:
    """A model and a guide, run so that no other program in the process is touched.

    PyroModules keep their own parameters. ``pyro.param`` and ``pyro.module`` statements in plain
    functions use Pyro's store, as always, but under a name of their own where another function
    already has that name: a parameter belongs to the model or the guide that declares it, so that
    two programs with one model share the model's.

    Args:
        model: Declares p(x, z); a function, a module, or a method of one.
        guide: Declares q(z | x), likewise.

    Attributes:
        fields: What both are called with, by name, once ``on`` has found it; x alone before.
        around: The modules that stand around model or guide, such as a noise: they belong to how
            the program is fitted, not to its weights.
    """

    fields: tuple[str, ...] = ("x",)

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
        for role, function in (("model", model), ("guide", guide)):
            if not callable(function):
                raise ProgramError(f"the {role} is {function!r}: expected a function or a module")
        self.model = model
        self.guide = guide
        self.modules = tuple(dict.fromkeys([*_modules(model), *_modules(guide)]))
        self.around = tuple(dict.fromkeys([*modules_around(model), *modules_around(guide)]))
        inside = [*self.modules, *_closure_modules(model), *_closure_modules(guide)]
        self.reachable = tuple(dict.fromkeys([*inside, *self.around]))

    def on(self, there: Collection[str]) -> Program:
        """Return the program on data with some fields: called with those that either takes.

        Args:
            there: The names of the fields that there are.

        Raises:
            ValueError: If an argument without a default names none of them.
        """
        names = names_taken({"model": self.model, "guide": self.guide}, there)
        found = Program(by_name(self.model, names), by_name(self.guide, names))
        found.fields = tuple(names)
        return found

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
            self.in_evaluation_mode(),
            torch.random.fork_rng(_cuda_devices()),
            torch.no_grad(),
            self.running(),
            unchanged_parameters(self.reachable),
        ):
            if seed is not None:
                torch.manual_seed(seed)
            yield

    @contextmanager
    def in_evaluation_mode(self) -> Iterator[None]:
        """Put all modules in evaluation mode, and back."""
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
            args: A batch: the data, and what else the program takes.

        Raises:
            ProgramError: If the program cannot be run, or a lazy module takes no part in it.
        """
        if not self.is_lazy:
            return
        rows = tuple(arg[:3] for arg in args)
        with (
            self.in_evaluation_mode(),
            torch.no_grad(),
            pyro.validation_enabled(False),
            self.running(),
            unchanged_parameters(self.reachable),
        ):
            self.first_traces(*rows)
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

    def first_traces(self, *rows: Tensor) -> tuple[Trace, Trace]:
        """Run as ``traces`` does, and say in words of ours what goes wrong.

        Args:
            rows: What model and guide are called with.

        Raises:
            ProgramError: In place of any error.
        """
        try:
            return self.traces(*rows)
        except Exception as error:  # the user's program, Pyro and torch may raise anything
            cause = cause_of(error)
            if isinstance(cause, ProgramError):
                raise cause from None
            shapes = ", ".join(str(tuple(row.shape)) for row in rows)
            reason = reason_of(error, self.reachable)
            raise ProgramError(
                f"the program cannot be run on a batch of shape {shapes}: {reason}"
            ) from error


def _modules(function: Any) -> Iterator[nn.Module]:
    root = root_of(function)
    if isinstance(root, nn.Module):
        yield root


def modules_around(function: Any) -> Iterator[nn.Module]:
    """Return the modules, such as a noise, that stand around a model or a guide."""
    for layer in layers(function):
        yield from getattr(layer, "modules_around", ())


def _closure_modules(function: Any) -> Iterator[nn.Module]:
    function = bare(function)
    if inspect.isfunction(function):
        variables = inspect.getclosurevars(function)
        for value in [*variables.nonlocals.values(), *variables.globals.values()]:
            yield from _modules(value)


def _cuda_devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


def prepare_local_parameters(root: nn.Module) -> None:
    """Let every PyroModule below ``root`` run with parameters of its own.

    Pyro creates the state that this takes only if the setting was on when the module was built.
    """
    for module in root.modules():
        if isinstance(module, PyroModule) and not hasattr(module._pyro_context, "param_state"):
            module._pyro_context.param_state = {"params": {}, "constraints": {}}


@contextmanager
def unchanged_parameters(roots: tuple[nn.Module, ...]) -> Iterator[None]:
    """Forget, on leaving, every parameter that was made within: in the store or below ``roots``."""
    store = pyro.get_param_store()
    state = store.get_state()
    tables = [table for root in roots for module in root.modules() for table in _tables(module)]
    before = [dict(table()) for table in tables]
    try:
        yield
    finally:
        store.clear()
        store.set_state(state)
        for table, names in zip(tables, before, strict=True):
            for name in set(table()) - set(names):
                del table()[name]


def _tables(module: nn.Module) -> Iterator[Callable[[], dict[str, Any]]]:
    """Give the tables in which a module keeps parameters, also those made at their first use."""
    yield lambda: module._parameters
    if isinstance(module, PyroModule):
        context = module._pyro_context
        yield lambda: module._pyro_params
        yield lambda: context.param_state["params"]
        yield lambda: context.param_state["constraints"]
