"""Watch the Python state that a recorded program depends on for changes."""

from __future__ import annotations

import argparse
import operator
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from types import CodeType, FunctionType, MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

__all__ = ["Watch", "is_users"]

_LIBRARIES = frozenset({"torch", "pyro", "numpy", *sys.stdlib_module_names})
_STATEFUL = (Distribution, Transform, SimpleNamespace, argparse.Namespace)  # though of libraries
_CONSTANTS = (
    *(bool, int, float, complex, str, bytes, type(None), type(...), range, slice),
    *(torch.dtype, torch.device, torch.Size, np.generic),
)
_SOURCES = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_OF_TORCH = frozenset(vars(PyroModule()))
_TABLES = (
    *(name for name, value in vars(nn.Module()).items() if isinstance(value, dict)),
    *("_pyro_params", "_pyro_samples"),
)
# Where methods, partials and decorated functions keep what they call.
_WRAPPED = ("__self__", "__func__", "__wrapped__", "func", "args", "keywords", "fget")
_MISSING = object()
_MAX_VALUES = 50_000
_MAX_ARRAY = 1_000

_facts = operator.attrgetter(
    *("requires_grad", "dtype", "shape", "device"),
    *("_backward_hooks", "_post_accumulate_grad_hooks"),
)
_strides = operator.methodcaller("stride")
_read = operator.methodcaller("read")


class Watch:
    """The Python state that functions and modules refer to, as it is now.

    Followed are attributes, elements of containers, closures, defaults, globals and attributes of
    classes, through all objects and functions but those of libraries. They are compared by
    identity, so that a look is cheap. Of tensors only dtype, shape and the like are watched: a
    recording reads their values anew.

    Args:
        roots: Names and what to start from: functions, modules or any other objects.

    Attributes:
        tensors: Where which tensors were met.
        unwatchable: What there is that can be neither compared nor put back; None if nothing.
    """

    def __init__(self, roots: Iterable[tuple[str, Any]]) -> None:
        self.tensors: list[tuple[str, Tensor]] = []
        self.unwatchable: str | None = None
        self._tables: list[_Table] = []
        self._spots: list[_Spot] = []
        self._arrays: list[tuple[str, np.ndarray]] = []
        self._sources: list[tuple[str, Any]] = [("Python's", random), ("numpy's", np.random)]
        self._seen: dict[int, Any] = {}
        self._todo = list(roots)[::-1]
        while self._todo and self.unwatchable is None:
            where, value = self._todo.pop()
            if not isinstance(value, _CONSTANTS) and id(value) not in self._seen:
                self._seen[id(value)] = value
                self._visit(where, value)
        self._views = [view for table in self._tables for view in table.views()]
        self._take()

    def changed(self) -> str | None:
        """Return what differs from the time of recording; None if nothing does."""
        tensors = [tensor for _, tensor in self.tensors]
        if (
            list(map(len, self._views)) == self._lengths
            and all(map(operator.is_, chain.from_iterable(self._views), self._values))
            and all(map(operator.is_, map(_read, self._spots), self._contents))
            and list(map(_facts, tensors)) == self._facts
            and list(map(_strides, tensors)) == self._strides
            and [array.tobytes() for _, array in self._arrays] == self._bytes
        ):
            return None
        where = self._difference()
        if where is None:
            self._take()  # other objects that say the same
        return where

    @contextmanager
    def undoing(self) -> Iterator[Callable[[], str | None]]:
        """Put all that is watched, values of tensors and random states back on leaving.

        Yields:
            A function that says what a run of the program has changed; None if nothing.
        """
        values = [(tensor, tensor.detach().clone(), _layout(tensor)) for _, tensor in self.tensors]
        states = [(where, source, _state(source)) for where, source in self._sources]

        def found() -> str | None:
            for where, source, state in states:
                if not _equal(_state(source), state):
                    return f"a run of the program draws {where} random numbers"
            changed = self._difference()
            return changed and f"a run of the program changes {changed}"

        try:
            yield found
        finally:
            self._put_back()
            for _, source, state in states:
                _set_state(source, state)
            with torch.no_grad():
                for tensor, value, layout in values:
                    if _layout(tensor) != layout:
                        tensor.data = value
                    elif not _equal(tensor, value):
                        tensor.copy_(value)

    def _take(self) -> None:
        tensors = [tensor for _, tensor in self.tensors]
        self._copies = [table.copy() for table in self._tables]
        self._lengths = list(map(len, self._views))
        self._values = list(chain.from_iterable(self._views))
        self._contents = list(map(_read, self._spots))
        self._facts = list(map(_facts, tensors))
        self._strides = list(map(_strides, tensors))
        self._bytes = [array.tobytes() for _, array in self._arrays]

    def _difference(self) -> str | None:
        for table, copy in zip(self._tables, self._copies, strict=True):
            where = table.difference(copy)
            if where is not None:
                return where
        for spot, old in zip(self._spots, self._contents, strict=True):
            if not _same(spot.read(), old):
                return spot.where
        seen = zip(self.tensors, self._facts, self._strides, strict=True)
        for (where, tensor), facts, strides in seen:
            if _facts(tensor) != facts or _strides(tensor) != strides:
                return f"the shape, dtype, hooks or requires_grad of {where}"
        for (where, array), old_bytes in zip(self._arrays, self._bytes, strict=True):
            if array.tobytes() != old_bytes:
                return where
        return None

    def _put_back(self) -> None:
        for table, copy in zip(self._tables, self._copies, strict=True):
            table.put_back(copy)
        for spot, old in zip(self._spots, self._contents, strict=True):
            if spot.read() is not old:
                spot.write(old)
        for (_, tensor), (requires_grad, *_) in zip(self.tensors, self._facts, strict=True):
            if tensor.requires_grad is not requires_grad:
                tensor.requires_grad_(requires_grad)
        for (_, array), old_bytes in zip(self._arrays, self._bytes, strict=True):
            if array.tobytes() != old_bytes:
                array[...] = np.frombuffer(old_bytes, array.dtype).reshape(array.shape)

    def _visit(self, where: str, value: Any) -> None:
        if isinstance(value, Tensor):
            self.tensors.append((where, value))
        elif isinstance(value, nn.Module):
            self._visit_module(where, value)
        elif isinstance(value, FunctionType):
            self._visit_function(where, value)
        elif isinstance(value, type):
            self._visit_class(value)
        elif isinstance(value, (list, dict, set, deque, tuple, frozenset)):
            self._visit_container(where, value)
        elif isinstance(value, np.ndarray):
            self._visit_array(where, value)
        elif isinstance(value, _SOURCES):
            self._sources.append((f"{where}'s", value))
        elif isinstance(value, Iterator):
            self.unwatchable = f"{where} is an iterator, of which one run takes from the next"
        elif not isinstance(value, ModuleType):
            self._visit_object(where, value)
        if max(len(self._seen), len(self._todo)) > _MAX_VALUES:
            self.unwatchable = f"{where} is among more than {_MAX_VALUES} objects to be watched"

    def _visit_module(self, where: str, module: nn.Module) -> None:
        self._tables.append(_Table(where, vars(module), module))
        for name in _TABLES:
            table = vars(module).get(name)
            if isinstance(table, dict):
                self._tables.append(_Table(where, table, module))
                self._follow(where, table)
        self._follow(where, {n: v for n, v in vars(module).items() if n not in _OF_TORCH}, module)
        self._todo.append((type(module).__name__, type(module)))

    def _visit_object(self, where: str, value: Any) -> None:
        if _package(type(value).__module__) in _LIBRARIES:
            parts = [getattr(value, name) for name in _WRAPPED if hasattr(value, name)]
            self._todo.extend((where, part) for part in parts)
            if not isinstance(value, _STATEFUL):
                return
        if isinstance(getattr(value, "__dict__", None), dict):
            self._tables.append(_Table(where, vars(value), value))
            self._follow(where, vars(value), value)
        for owner in type(value).__mro__:
            for slot in _slots(owner):
                self._visit_spot(_Attribute(f"{where}.{slot}", value, slot))
        self._todo.append((type(value).__name__, type(value)))

    def _visit_class(self, owner: type) -> None:
        if not is_users(owner.__module__):
            return
        self._tables.append(_Table(owner.__name__, vars(owner), owner))
        names = {n: v for n, v in vars(owner).items() if not n.startswith("__") or callable(v)}
        self._follow(owner.__name__, names)
        self._todo.extend((base.__name__, base) for base in owner.__bases__)

    def _visit_container(self, where: str, value: Any) -> None:
        if not isinstance(value, (tuple, frozenset)):
            self._tables.append(_Table(where, value))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        self._todo.extend((f"{where}[{name!r}]", element) for name, element in items)

    def _visit_array(self, where: str, array: np.ndarray) -> None:
        if array.size > _MAX_ARRAY or array.dtype.hasobject:
            self.unwatchable = f"{where} is a large numpy array: keep it in a tensor"
        self._arrays.append((where, array))

    def _visit_function(self, where: str, function: FunctionType) -> None:
        if not is_users(function.__module__):
            return
        name = function.__qualname__
        for part in ("__code__", "__defaults__", "__kwdefaults__"):
            self._visit_spot(_Attribute(f"{name}.{part}", function, part))
        for variable, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            self._visit_spot(_Cell(f"{variable} in {name}", cell))
        self._visit_globals(name, _names(function.__code__), function.__globals__)

    def _visit_globals(self, place: str, names: set[str], table: dict[str, Any]) -> None:
        for name in names & table.keys():
            value = table[name]
            if not isinstance(value, ModuleType):
                self._visit_spot(_Global(f"{name} in {place}", table, name))
            elif is_users(value.__name__):
                self._visit_globals(name, names - {name}, vars(value))

    def _visit_spot(self, spot: _Spot) -> None:
        self._spots.append(spot)
        self._todo.append((spot.where, spot.read()))

    def _follow(self, where: str, table: Mapping[str, Any], owner: Any = None) -> None:
        for name, value in table.items():
            if not _is_cache(owner, name):
                self._todo.append((f"{where}.{name}", value))


class _Table:
    """Attributes of an object, a module or a class, or the elements of a container."""

    def __init__(self, where: str, content: Any, owner: Any = None) -> None:
        self.where, self.content, self.owner = where, content, owner

    def views(self) -> Iterable[Any]:
        """Give what shows the elements at any later time, as they are then."""
        if not isinstance(self.content, (dict, MappingProxyType)):
            return [self.content]
        values = self.content.values()
        return [values] if self.owner is not None else [values, self.content.keys()]

    def copy(self) -> Any:
        """Give the elements as they are now."""
        if isinstance(self.content, (dict, MappingProxyType)):
            return dict(self.content)
        return set(self.content) if isinstance(self.content, set) else list(self.content)

    def difference(self, old: Any) -> str | None:
        """Say which element is another one than in the copy ``old``."""
        now = self.copy()
        if isinstance(now, dict):
            for name in {**old, **now}:
                same = _same(now.get(name, _MISSING), old.get(name, _MISSING))
                if not same and not _is_cache(self.owner, name):
                    return f"{self.where}.{name}" if self.owner else f"{self.where}[{name!r}]"
            return None if list(now) == list(old) else self.where
        same = len(now) == len(old) and all(map(_same, now, old))
        return None if same else self.where

    def put_back(self, old: Any) -> None:
        """Make the elements those of the copy ``old`` again."""
        now = self.copy()
        if len(now) == len(old) and all(map(operator.is_, _elements(now), _elements(old))):
            return
        if isinstance(self.content, MappingProxyType):
            for name in now.keys() - old.keys():
                delattr(self.owner, name)
            for name, value in old.items():
                if now.get(name, _MISSING) is not value:
                    setattr(self.owner, name, value)
            return
        self.content.clear()
        fill = self.content.extend if isinstance(now, list) else self.content.update
        fill(old)


class _Spot:
    """One place that holds a value."""

    def __init__(self, where: str, owner: Any, name: str = "") -> None:
        self.where, self.owner, self.name = where, owner, name

    def read(self) -> Any:
        """Return what is there now."""
        raise NotImplementedError

    def write(self, value: Any) -> None:
        """Put a value there."""
        raise NotImplementedError


class _Attribute(_Spot):
    def read(self) -> Any:
        return getattr(self.owner, self.name, _MISSING)

    def write(self, value: Any) -> None:
        if value is _MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, value)


class _Global(_Spot):
    def read(self) -> Any:
        return self.owner.get(self.name, _MISSING)

    def write(self, value: Any) -> None:
        self.owner[self.name] = value


class _Cell(_Spot):
    def read(self) -> Any:
        try:
            return self.owner.cell_contents
        except ValueError:
            return _MISSING

    def write(self, value: Any) -> None:
        if value is _MISSING:
            del self.owner.cell_contents
        else:
            self.owner.cell_contents = value


def is_users(module: str | None) -> bool:
    """Whether code of a module is the user's own: not torch's, Pyro's, numpy's, Python's or ours.

    Args:
        module: The module's name.
    """
    return _package(module) not in {*_LIBRARIES, "pyro_vae"}


def _package(module: str | None) -> str:
    return (module or "builtins").partition(".")[0]


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.dtype, tensor.device, tensor.shape, tensor.stride())


def _slots(owner: type) -> list[str]:
    slots = vars(owner).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _is_cache(owner: Any, name: str) -> bool:
    # What a transform keeps from one call for the next.
    return isinstance(owner, Transform) and (name.startswith("_cache") or name == "_inv")


def _same(now: Any, old: Any) -> bool:
    """Whether two values say the same: one object, or constants that print alike."""
    if now is old:
        return True
    if type(now) is not type(old):
        return False
    if isinstance(now, tuple) and len(now) == len(old):
        return all(map(_same, now, old))
    return isinstance(now, _CONSTANTS) and repr(now) == repr(old)


def _elements(copy: Any) -> Iterable[Any]:
    return chain.from_iterable(copy.items()) if isinstance(copy, dict) else copy


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return all(_equal(a[name], b[name]) for name in a)
    if isinstance(a, (tuple, list)):
        return all(map(_equal, a, b))
    return bool(a == b)


def _state(source: Any) -> Any:
    if isinstance(source, np.random.Generator):
        return source.bit_generator.state
    if source is np.random or isinstance(source, np.random.RandomState):
        return source.get_state()
    return source.get_state() if isinstance(source, torch.Generator) else source.getstate()


def _set_state(source: Any, state: Any) -> None:
    if isinstance(source, np.random.Generator):
        source.bit_generator.state = state
    elif source is np.random or isinstance(source, (np.random.RandomState, torch.Generator)):
        source.set_state(state)
    else:
        source.setstate(state)
