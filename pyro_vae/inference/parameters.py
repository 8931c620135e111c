"""The parameters of a program, kept apart in Pyro's one store and in its modules.

A parameter belongs to the functions whose bodies enclose all statements of the run that declares
it: the model itself, and what stands around it (a lambda, a decorator). A helper that a model calls
for a part of its work owns nothing.
"""

from __future__ import annotations

import functools
import inspect
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, ClassVar

import pyro
import torch
from pyro.poutine.messenger import Messenger, _context_wrap
from torch import Tensor, nn

__all__ = [
    "OwnNames",
    "Owner",
    "bare",
    "layers",
    "root_of",
]

_MAX_FUNCTIONS = 500
_MACHINERY = frozenset({"torch", "pyro", "contextlib", "functools"})
_MISSING = object()


def root_of(function: Any) -> Any:
    """Return what a program is without handlers, decorators and partial application.

    That of a method is its object: a model and a guide that are methods of one declare alike.
    """
    found = bare(function)
    held = getattr(found, "__self__", None)
    return found if held is None else held


def bare(function: Any) -> Any:
    """Return a function, or a method of an object, without its wrappings."""
    return [*layers(function)][-1]


def layers(function: Any) -> Iterator[Any]:
    """Give a function, what that wraps, and so on, down to one that wraps nothing."""
    yield function
    while True:
        if isinstance(function, functools.partial):
            function = called(function)
        elif getattr(function, "__self__", None) is None and hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            return
        yield function


def called(function: functools.partial[Any]) -> Any:
    """Return what a partial calls; where it is a program inside a handler, that program."""
    if hasattr(function, "__wrapped__"):
        return function.__wrapped__
    return function.args[1] if function.func is _context_wrap else function.func


class Owner:
    """What a function or an object declares, for as long as it lives; ``of`` gives its record."""

    _records: ClassVar[dict[int, tuple[Any, Owner]]] = {}
    _owned: ClassVar[weakref.WeakValueDictionary[int, Tensor]] = weakref.WeakValueDictionary()

    def __init__(self) -> None:
        self._declared: dict[str, dict[str, weakref.ref[Tensor]]] = {}

    @classmethod
    def of(cls, value: Any) -> Owner:
        """Return the record of a function or an object."""
        reference, record = cls._records.get(id(value), (None, None))
        if record is None or reference is None or reference() is not value:
            record = cls()
            cls._records[id(value)] = (_reference(value, cls._records, id(value)), record)
        return record

    @classmethod
    def has(cls, parameter: Tensor) -> bool:
        """Whether any function declared a parameter, be it alive or not."""
        return cls._owned.get(id(parameter)) is parameter

    def find(self, name: str, initial: Any = None) -> str | None:
        """Return under which name Pyro's store holds what a statement means; None if it does not.

        Args:
            name: As the statement has it.
            initial: The value that it gives; one of another shape is another parameter.
        """
        store = pyro.get_param_store()._params
        for own, reference in self._declared.get(name, {}).items():
            held = store.get(own)
            replaced = held is not None and not self.has(held)  # by the user, by hand
            if held is not None and (held is reference() or replaced) and fits(own, initial):
                return own
        return None

    def add(self, name: str, own: str) -> None:
        """Note that it declares what the store holds under the name ``own``, if it still does."""
        held = pyro.get_param_store()._params.get(own)
        if held is None:
            return
        self._owned[id(held)] = held
        self._declared.setdefault(name, {})[own] = weakref.ref(held)

    def parameters(self) -> dict[str, Tensor]:
        """Return what the store holds of its parameters, by the store's names."""
        store = pyro.get_param_store()._params
        owns = [own for name in self._declared for own in self._declared[name]]
        return {own: store[own] for own in owns if own in store and self._is_mine(own)}

    def _is_mine(self, own: str) -> bool:
        held = pyro.get_param_store()._params.get(own)
        references = (owns[own] for owns in self._declared.values() if own in owns)
        return held is not None and any(held is reference() for reference in references)


def _reference(value: Any, records: dict[Any, Any], key: Any) -> Any:
    """Return what gives a value for as long as it lives; then its record is forgotten."""

    def forget(_: Any) -> None:
        records.pop(key, None)

    try:
        return weakref.ref(value, forget)
    except TypeError:  # objects with slots have no weak references
        return lambda: value


_IN_MODULE = "$$$"  # stands between the names of a pyro.module and of its parameter


def fits(own: str, initial: Any) -> bool:
    """Whether what the store holds under a name can be meant by a statement's initial value.

    A module's parameter is that very one, and any other has the shape.
    """
    store = pyro.get_param_store()
    if own not in store or not isinstance(initial, Tensor):
        return True
    if _IN_MODULE in own and isinstance(initial, nn.Parameter):
        return store._params[own] is initial
    with torch.no_grad():
        return bool(store[own].shape == initial.shape)


class Start:
    """Where the run of a model or a guide starts, whatever it is wrapped in.

    Args:
        function: The model or the guide.

    Attributes:
        root: The function without its wrappings; of a method its object.
    """

    _innermost: ClassVar[dict[tuple[int, Any], Any]] = {}

    def __init__(self, function: Any) -> None:
        self.root = root_of(function)
        self._function = function
        self._codes = tuple(_codes_of(function, self.root))
        self._key = (id(self.root), self._codes)

    @property
    def owner(self) -> Any:
        """What declares its parameters, as of the last run: the innermost that encloses it all."""
        found = self._innermost.get(self._key, lambda: None)()
        return self.root if found is None else found

    @property
    def settled(self) -> bool:
        """Whether its statements stand in its own body, not in one that it wraps."""
        return self._key in self._innermost and self._innermost[self._key]() is self.root

    def ran(self, innermost: Any) -> None:
        """Note which function enclosed a whole run, and had nothing else inside that did."""
        self._innermost[self._key] = _reference(innermost, self._innermost, self._key)

    def owner_at(self, frame: Any) -> Any:
        """Return the function or object that runs in a frame, if it can own parameters."""
        code = frame.f_code
        if self.starts(frame):
            return self.root
        if code.co_argcount and code.co_varnames[0] in ("self", "cls"):
            return None if _is_machinery(frame) else frame.f_locals.get(code.co_varnames[0])
        reachable = (reference() for reference in _reachable(self._function).get(code, ()))
        matching = [f for f in reachable if f is not None and _runs(f, frame)]
        # Functions made by one factory cannot be distinguished if nothing in them differs.
        return matching[0] if len(matching) == 1 else None

    def starts(self, frame: Any) -> bool:
        """Whether a frame is the outermost of the run."""
        code = frame.f_code
        if code not in self._codes:
            return False
        if isinstance(self.root, FunctionType):
            return True
        return bool(frame.f_locals.get(code.co_varnames[0]) is self.root)


def _codes_of(function: Any, root: Any) -> Iterator[CodeType]:
    bodies = [root if isinstance(root, FunctionType) else getattr(bare(function), "__func__", None)]
    if bodies == [None]:
        bodies = [getattr(type(root), name, None) for name in ("forward", "__call__")]
    for body in bodies:
        code = getattr(inspect.unwrap(body) if callable(body) else None, "__code__", None)
        if code is not None and (isinstance(root, FunctionType) or code.co_argcount):
            yield code


def running(starts: Sequence[Start]) -> tuple[Start | None, list[Any]]:
    """Return which of several runs this statement is in, and all that encloses it, from the inside.

    None and nothing if no start is found among the frames that are running.
    """
    found: list[Any] = []
    frame: Any = sys._getframe(1)
    while frame is not None:
        for start in starts:
            if start.starts(frame):
                return start, [*found, start.root]
        owners = (start.owner_at(frame) for start in starts)
        owner = next((owner for owner in owners if owner is not None), None)
        if owner is not None:
            found.append(owner)
        frame = frame.f_back
    return None, []


def _is_machinery(frame: Any) -> bool:
    package, *rest = frame.f_globals.get("__name__", "").split(".")
    return package in _MACHINERY or (package == "pyro_vae" and rest[:1] != ["models"])


def _runs(function: FunctionType, frame: Any) -> bool:
    if function.__globals__ is not frame.f_globals:
        return False
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return all(frame.f_locals.get(name, _MISSING) is _content(cell) for name, cell in cells)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


_Functions = dict[CodeType, list[weakref.ref[FunctionType]]]
_TABLES: dict[int, tuple[Any, _Functions]] = {}


def _reachable(given: Any) -> _Functions:
    """Return the functions that a model or a guide may call, by their code; looked for once."""
    reference, table = _TABLES.get(id(given), (None, None))
    if table is None or reference is None or reference() is not given:
        table = {}
        for function in _functions(given):
            table.setdefault(function.__code__, []).append(weakref.ref(function))
        _TABLES[id(given)] = (_reference(given, _TABLES, id(given)), table)
    return table


def _functions(given: Any) -> Iterator[FunctionType]:
    todo, seen = deque([given]), {id(given): given}
    while todo and len(seen) < _MAX_FUNCTIONS:
        value = todo.popleft()
        if isinstance(value, FunctionType):
            yield value
        for other in _referred(value):
            if id(other) not in seen:
                seen[id(other)] = other
                todo.append(other)


def _referred(value: Any) -> list[Any]:
    """Return what a function, partial, method, container or object of a user's refers to."""
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, (list, tuple)):
        return [*value][:_MAX_FUNCTIONS]
    if isinstance(value, dict):
        return [*value.values()][:_MAX_FUNCTIONS]
    if isinstance(value, FunctionType):
        return [*_closed_over(value), *_named(value)]
    if isinstance(value, (nn.Module, Tensor, type, ModuleType)):
        return []  # methods are known by their object
    return [*getattr(value, "__dict__", {}).values()]


def _closed_over(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        yield _content(cell)
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield getattr(function, "__wrapped__", None)


def _named(function: FunctionType) -> Iterator[Any]:
    """Give the globals that a function names, and what it names of modules of the user's."""
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType):
            if value.__name__.partition(".")[0] not in {*_MACHINERY, *sys.stdlib_module_names}:
                yield from (vars(value).get(other) for other in names)
        else:
            yield value


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


class OwnNames(Messenger):
    """Give each program its own parameters in Pyro's store, whatever names others have taken.

    A name belongs to the function that declares it (see ``owners``), as long as the store holds
    that very parameter, and within a program to model and guide alike. A module's parameter is
    never exchanged for another one.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
        super().__init__()
        self._starts = (Start(model), Start(guide))
        self._enclosing: dict[Start, list[Any]] = {}
        self._declared: list[tuple[Start | None, str, str]] = []
        self._settled = all(start.settled for start in self._starts)

    def _pyro_sample(self, msg: Any) -> None:
        if not self._settled:
            self._look()

    def _pyro_param(self, msg: Any) -> None:
        if not _in_store(msg) or "stated" in msg:
            return
        name, *rest = msg["args"]
        initial = rest[0] if rest else None
        own = self._known(name, initial) or self._found(name, initial)
        own = own or _new_name(name, initial)
        msg["stated"], msg["name"], msg["args"] = name, own, (own, *rest)

    def _pyro_post_param(self, msg: Any) -> None:
        if not _in_store(msg):
            return
        owned = Owner.has(pyro.get_param_store()._params[msg["name"]])
        if not owned or self._known(msg["stated"]) != msg["name"]:
            start, _ = self._look()
            self._declared.append((start, msg["stated"], msg["name"]))
            if self._settled or start is None:
                self._register()

    def __exit__(self, *error: Any) -> None:
        """Note to whom new parameters belong, now that all statements of a run were seen."""
        super().__exit__(*error)
        self._register()
        if error[0] is None:
            for start, owners in self._enclosing.items():
                start.ran(owners[0])

    def _known(self, name: str, initial: Any = None) -> str | None:
        """Return what a name stands for, where that is settled whoever of the two states it."""
        if not self._settled:
            return None
        known = {Owner.of(start.root).find(name, initial) for start in self._starts} - {None}
        return known.pop() if len(known) == 1 else None

    def _found(self, name: str, initial: Any) -> str | None:
        """Return the name of what the running function has declared, or else its partner."""
        running, owners = self._look()
        partners = [start.owner for start in self._starts if start is not running]
        found = (Owner.of(owner).find(name, initial) for owner in [*owners, *partners])
        new = (own for _, stated, own in self._declared if stated == name and fits(own, initial))
        return next((own for own in chain(found, new) if own is not None), None)

    def _look(self) -> tuple[Start | None, list[Any]]:
        """Return which of the two runs, and what encloses all of its statements so far."""
        start, owners = running(self._starts)
        if start is not None:
            before = self._enclosing.get(start, owners)
            owners = [owner for owner in owners if any(owner is other for other in before)]
            self._enclosing[start] = owners
        return start, owners

    def _register(self) -> None:
        for start, stated, own in self._declared:
            unknown = [each.root for each in self._starts]
            for owner in unknown if start is None else self._enclosing[start][:1]:
                Owner.of(owner).add(stated, own)
        self._declared.clear()


def _new_name(name: str, initial: Any) -> str:
    own, number = name, 1
    while _taken(own, initial):
        number += 1
        own = f"{name}#{number}"
    return own


def _taken(name: str, initial: Any) -> bool:
    held = pyro.get_param_store()._params.get(name)
    if held is None:
        return False
    return Owner.has(held) or not fits(name, initial)


def _in_store(msg: Any) -> bool:
    # A PyroModule's own parameter makes a statement too, but never reaches the store.
    return bool(msg["fn"] == pyro.get_param_store().get_param)
