"""What a recorded program depends on besides tensors, watched for changes."""

from __future__ import annotations

import inspect
import operator
import random
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["Watch", "generators_state"]

_OUTSIDE = ("torch", "pyro", "builtins", "numpy")
_MAX_DEPTH = 3


class Watch:
    """The Python state of functions and modules, as it was when they were recorded.

    Watched by identity are the attributes of all modules, their parameters and buffers and
    whether they require gradients; the attributes of their classes; and the closures, defaults
    and globals of all functions in question. Lists, dicts and sets among them are watched by
    their elements. Values that live in tensors may change: a recording reads them anew.
    """

    def __init__(
        self, functions: Iterable[Callable[..., Any]], modules: Iterable[nn.Module]
    ) -> None:
        self._names: list[tuple[str, dict[Any, Any], tuple[Any, ...]]] = []
        self._cells: list[tuple[str, Any, Any]] = []
        self._containers: list[tuple[str, Any, Any]] = []
        self._gradients: list[tuple[str, nn.Parameter, bool]] = []
        self._seen: set[int] = set()
        for root in modules:
            self._watch_modules(root)
        for function in functions:
            self._watch_function(getattr(function, "__func__", function))

    def changed(self) -> str | None:
        """Return what differs from the time of recording; None if nothing does."""
        for where, table, values in self._names:
            if len(table) != len(values) or not all(map(operator.is_, table.values(), values)):
                return _first_difference(where, table, values)
        for where, cell, value in self._cells:
            if cell.cell_contents is not value:
                return where
        for where, container, copy in self._containers:
            if container != copy:
                return where
        for where, parameter, requires_grad in self._gradients:
            if parameter.requires_grad is not requires_grad:
                return f"{where}.requires_grad"
        return None

    def put_back(self) -> None:
        """Undo what a run has changed in the attributes of modules and in containers."""
        for _, table, values in self._names:
            if isinstance(table, dict) and len(table) == len(values):
                table.update(zip(table, values, strict=True))
        for _, container, copy in self._containers:
            if container != copy:
                container.clear()
                container.extend(copy) if isinstance(container, list) else container.update(copy)

    def _watch_modules(self, root: nn.Module) -> None:
        for name, module in root.named_modules():
            where = ".".join(filter(None, (type(root).__name__, name)))
            if id(module) in self._seen:
                continue
            self._watch_table(where, module.__dict__)
            for part in (module._parameters, module._buffers, module._modules):
                self._watch_table(where, part)
            for parameter_name, parameter in module.named_parameters(recurse=False):
                place = f"{where}.{parameter_name}"
                self._gradients.append((place, parameter, parameter.requires_grad))
            for owner in type(module).__mro__:
                self._watch_class(owner)

    def _watch_class(self, owner: type) -> None:
        if id(owner) in self._seen or owner.__module__.startswith(_OUTSIDE):
            return
        self._seen.add(id(owner))
        # A class's namespace is a proxy; its values are compared name by name.
        for name, value in vars(owner).items():
            if isinstance(value, (FunctionType, staticmethod, classmethod)):
                self._watch_function(getattr(value, "__func__", value))
            elif not name.startswith("__"):
                self._watch_table(f"{owner.__name__}.{name}", _ClassAttribute(owner, name))

    def _watch_table(self, where: str, table: Any) -> None:
        if id(table) in self._seen:
            return
        self._seen.add(id(table))
        values = tuple(table.values())
        self._names.append((where, table, values))
        for name, value in zip(table, values, strict=True):
            self._watch_value(f"{where}.{name}", value, 0)

    def _watch_value(self, where: str, value: Any, depth: int) -> None:
        if depth > _MAX_DEPTH or id(value) in self._seen:
            return
        if isinstance(value, (list, dict, set)) and not _is_modules_own(where):
            self._seen.add(id(value))
            if _is_plain(value):
                self._containers.append((where, value, type(value)(value)))
            elements = value.values() if isinstance(value, dict) else value
            for element in elements:
                self._watch_value(where, element, depth + 1)

    def _watch_function(self, function: Any) -> None:
        if not isinstance(function, FunctionType) or id(function) in self._seen:
            return
        self._seen.add(id(function))
        if function.__module__ and function.__module__.startswith(_OUTSIDE):
            return
        name = function.__qualname__
        for variable, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            value = cell.cell_contents
            self._cells.append((f"{variable} in {name}", cell, value))
            self._watch_referred(f"{variable} in {name}", value)
        for variable in _global_names(function.__code__) & function.__globals__.keys():
            value = function.__globals__[variable]
            if isinstance(value, ModuleType) or inspect.isclass(value):
                continue
            self._watch_table(f"{variable} in {name}", _Global(function.__globals__, variable))
            self._watch_referred(f"{variable} in {name}", value)

    def _watch_referred(self, where: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            self._watch_modules(value)
        elif isinstance(value, FunctionType):
            self._watch_function(value)
        else:
            self._watch_value(where, value, 0)


class _ClassAttribute:
    """One attribute of a class, read anew at each look."""

    def __init__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name

    def __len__(self) -> int:
        return int(self.name in vars(self.owner))

    def __iter__(self) -> Iterator[str]:
        yield from [self.name][: len(self)]

    def values(self) -> list[Any]:
        return [vars(self.owner)[name] for name in self]


class _Global(_ClassAttribute):
    """One global variable of a module, read anew at each look."""

    def __init__(self, table: dict[str, Any], name: str) -> None:
        self.table, self.name = table, name

    def __len__(self) -> int:
        return int(self.name in self.table)

    def values(self) -> list[Any]:
        return [self.table[name] for name in self]


def generators_state() -> tuple[Any, ...]:
    """Return the state of Python's and numpy's generators, whose draws no recording can repeat."""
    algorithm, keys, *rest = np.random.get_state()
    return (random.getstate(), algorithm, np.asarray(keys).tobytes(), tuple(rest))


def _global_names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_global_names, inner))


def _is_plain(container: Any) -> bool:
    elements = container.values() if isinstance(container, dict) else container
    return not any(isinstance(element, (Tensor, nn.Module, np.ndarray)) for element in elements)


def _is_modules_own(where: str) -> bool:
    # torch's hooks and tables, and Pyro's bookkeeping, which runs change.
    return where.rpartition(".")[2].startswith("_")


def _first_difference(where: str, table: Any, values: tuple[Any, ...]) -> str:
    for name, old in zip(table, values, strict=False):
        now = dict(zip(table, table.values(), strict=True))[name]
        if now is not old:
            return f"{where}.{name}"
    return where
