"""Check the arguments of public functions against their signatures.

A mistake is reported there, with the argument's name, what was given, what is expected and how to
mend it, rather than by the operation that fails on it later.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import numbers
import operator
import types
import typing
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["LARGEST_COUNT", "at_the_door", "built", "door_of", "shown"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_R = TypeVar("_R")

LARGEST_COUNT = 10**8
"""What is counted beyond this outlives whoever waits for it, or does not fit in memory."""

_COUNTS = ("num_", "max_", "batch_size", "epochs", "patience", "warm_up_epochs")


class ArgumentError(TypeError):
    """An argument of another kind than a signature says, or one that is missing or unknown."""


class _Unfit(Exception):
    """What an argument is expected to be, and how to make it so; ``args`` holds the two."""


def at_the_door(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Check a function's arguments against its annotations before it runs.

    Whole numbers and numbers of numpy become Python's, arrays and lists become tensors where one
    is expected. NaN is no number, True is no count, a class is no object of it, and something
    built is not what builds it.

    Raises:
        TypeError: If an argument is missing, unknown, or of another kind than expected.
        ValueError: If a number is NaN, or a count larger than anything can be.
    """
    bound = door_of(function, inspect.signature(function))

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        taken = bound(args, kwargs)
        return function(*taken.args, **taken.kwargs)

    return checked


def door_of(
    function: Callable[..., Any],
    signature: inspect.Signature,
    hints: dict[str, Any] | None = None,
) -> Callable[[tuple[Any, ...], dict[str, Any]], inspect.BoundArguments]:
    """Return what binds and checks arguments, as ``at_the_door`` does.

    Args:
        function: Whose they are.
        signature: As its callers see it.
        hints: Of parameters that have no annotation in the function.
    """
    own = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.cache
    def expected() -> dict[str, Any]:
        return {**typing.get_type_hints(function), **(hints or {})}

    def checked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        bound = _bound(own, signature, args, kwargs)
        for name, value in bound.arguments.items():
            hint, kind = expected().get(name, Any), signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(_taken(own, name, each, hint) for each in value)
            elif kind is not inspect.Parameter.VAR_KEYWORD and name not in ("self", "cls"):
                bound.arguments[name] = _taken(own, name, value, hint)
        return bound

    return checked


def built(name: str, builder: Callable[..., Any], kind: type[_T], *shapes: Any) -> _T:
    """Return what a builder makes of shapes, which has to be of a kind.

    Args:
        name: What the argument is called that is the builder.
        builder: Called with the shapes.
        kind: What it has to return.
        shapes: Of the event, or of an input and an output; or a number of features, or nothing.

    Raises:
        TypeError: If it is no builder, cannot be called so, or returns something else.
    """
    expected = _of_builder(kind, ([type(each) for each in shapes],))
    given = " and ".join(map(str, shapes)) or "nothing"
    _refuse_built(name, builder, expected)
    try:
        made = builder(*shapes)
    except ArgumentError:
        raise
    except (TypeError, AttributeError, RuntimeError, IndexError, KeyError) as error:
        raise TypeError(
            f"{name}={shown(builder)} cannot build a {kind.__name__} from {given} "
            f"({' '.join(str(error).split())}): expected {expected}"
        ) from error
    if not isinstance(made, kind):
        raise TypeError(
            f"{name}={shown(builder)} returns {shown(made)} for {given}: expected {expected}"
        )
    return made


def _refuse_built(name: str, builder: Any, expected: str) -> None:
    if isinstance(builder, nn.Module):
        raise TypeError(f"{name}={shown(builder)} is built already: expected {expected}")
    if not callable(builder):
        raise TypeError(f"{name}={shown(builder)}: expected {expected}")


def _of_builder(kind: type, signature: tuple[Any, ...] = ()) -> str:
    if kind is nn.Module and signature and signature[0] in ([], [int]):
        return (
            "what builds a layer, such as nn.ReLU"
            if not signature[0]
            else ("what builds a layer from a number of features, such as nn.BatchNorm1d")
        )
    if kind is nn.Module:
        return (
            "what builds a network from two shapes, such as MLP or lambda in_shape, out_shape: ..."
        )
    return (
        f"what builds a {kind.__name__} from a shape, such as its class or partial(..., scale=0.1)"
    )


def shown(value: Any) -> str:
    """Return a value on one short line."""
    if isinstance(value, Tensor) and value.dim():
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    if isinstance(value, functools.partial):
        called = next((arg for arg in value.args if isinstance(arg, type)), value.func)
        return f"partial({getattr(called, '__name__', type(called).__name__)}, ...)"
    if isinstance(value, nn.Module):
        return _a(type(value).__name__)
    try:
        said = " ".join(repr(value).split())
    except Exception:  # a repr of the caller's may raise anything
        said = ""
    if not said or said.startswith("<"):
        return _a(type(value).__name__)
    return said if len(said) <= 60 else said[:57] + "..."


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "AEIOUaeiou" else f"a {name}"


def _bound(
    own: str, signature: inspect.Signature, args: Any, kwargs: Any
) -> inspect.BoundArguments:
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        names = ", ".join(
            ("*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else "") + name
            for name, p in signature.parameters.items()
            if name not in ("self", "cls")
        )
        raise ArgumentError(f"{own}: {error}; it takes {names}") from None


def _taken(own: str, name: str, value: Any, hint: Any) -> Any:
    try:
        taken = _as(value, hint)
    except _Unfit as unfit:
        expected, mend = unfit.args
        mend = f"; {mend}" if mend else ""
        raise ArgumentError(f"{own}: {name}={shown(value)}: expected {expected}{mend}") from None
    if isinstance(taken, float) and math.isnan(taken):
        raise ValueError(f"{own}: {name}=nan: give a number")
    if isinstance(taken, int) and name.startswith(_COUNTS) and taken > LARGEST_COUNT:
        raise ValueError(
            f"{own}: {name}={taken}: more than {LARGEST_COUNT:,} would never end, or fit in "
            "memory; give fewer"
        )
    return taken


def _as(value: Any, hint: Any) -> Any:
    """Return a value as what a hint says, or raise what is expected."""
    if hint is Any or isinstance(hint, TypeVar):
        return value
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, typing.get_args(hint))
    if origin is typing.Literal:
        return _choice(value, typing.get_args(hint))
    if origin is collections.abc.Callable:
        return _function(value, typing.get_args(hint))
    if origin is not None:
        return _container(value, origin, typing.get_args(hint))
    convert = _PLAIN.get(hint)
    return _object(value, hint) if convert is None else convert(value)


def _one_of(value: Any, hints: tuple[Any, ...]) -> Any:
    if value is None and type(None) in hints:
        return None
    expected, mends = [], []
    for hint in hints:
        if hint is type(None):
            expected.append("None")
            continue
        try:
            return _as(value, hint)
        except _Unfit as unfit:
            expected.append(unfit.args[0])
            mends.append(unfit.args[1])
    raise _Unfit(" or ".join(dict.fromkeys(expected)), next(filter(None, mends), ""))


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    if value not in choices:
        raise _Unfit(f"one of {', '.join(map(repr, choices))}", "")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool | np.bool_):
        raise _Unfit("a whole number", "")
    try:
        return operator.index(value)
    except TypeError:
        whole = isinstance(value, float) and value.is_integer()
        raise _Unfit("a whole number", f"write {int(value)}" if whole else "") from None


def _real(value: Any) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise _Unfit("a number", "")
    return value if isinstance(value, int) else float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise _Unfit("True or False", "")
    return bool(value)


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ma.MaskedArray) and value.dtype.kind in "fiu":
        value = np.ma.filled(value.astype(np.float64), np.nan)
    if isinstance(value, np.ndarray | list | tuple) or hasattr(value, "__array__"):
        try:
            array = np.asarray(value)
            if array.dtype.kind in "biuf":
                return torch.tensor(array, dtype=_DTYPES.get(array.dtype.kind))
        except (TypeError, ValueError):
            pass
    raise _Unfit("a tensor or an array of numbers", "torch.as_tensor makes one of lists")


_DTYPES = {"u": torch.int64, "b": torch.bool}


def _function(value: Any, signature: tuple[Any, ...]) -> Any:
    made = signature[-1] if signature else Any
    kind = made if isinstance(made, type) else None
    builds = kind is not None and issubclass(kind, nn.Module)
    expected = _of_builder(kind, signature) if builds and kind is not None else "a function"
    if isinstance(value, type):
        if made is Any or kind is None:
            raise _Unfit("a function or an object", f"build one: {value.__name__}(...)")
        if not issubclass(value, kind):
            raise _Unfit(expected, f"build an object of it: {value.__name__}(...)")
        return value
    if made in (None, type(None)) and isinstance(value, nn.Module):
        raise _Unfit("a function that returns nothing", "")
    if builds and isinstance(value, nn.Module):
        raise _Unfit(expected, "this one is built already: give its class or a function")
    if isinstance(value, torch.optim.Optimizer):
        raise _Unfit(expected, "give what builds it: functools.partial(torch.optim.Adam, lr=1e-3)")
    if not callable(value):
        named = isinstance(value, str) and value.isidentifier()
        raise _Unfit(expected, "give the class or function, not its name" if named else "")
    return value


def _container(value: Any, origin: Any, inner: tuple[Any, ...]) -> Any:
    if origin is tuple:
        if isinstance(value, numbers.Integral):
            raise _Unfit("a tuple of whole numbers", f"write ({value},)")
        if not isinstance(value, tuple | list | torch.Size):
            raise _Unfit("a tuple such as (40,)", "")
        return tuple(_as(each, inner[0]) for each in value) if inner[1:] == (...,) else value
    if isinstance(value, str) or not isinstance(value, origin):
        alone = origin is collections.abc.Sequence and not isinstance(value, str)
        raise _Unfit(f"a {origin.__name__.lower()}", "put it in a list, [...]" if alone else "")
    if origin is collections.abc.Mapping and inner[1:] == (Tensor,):
        return {name: _as(each, Tensor) for name, each in value.items()}
    if isinstance(value, list | tuple) and len(inner) == 1:
        for each in value:
            _as(each, inner[0])
    return value


def _object(value: Any, kind: Any) -> Any:
    if not isinstance(kind, type) or isinstance(value, kind):
        return value
    name = kind.__name__ if kind.__module__.startswith("pyro_vae") else _full_name(kind)
    mend = ""
    if isinstance(value, type) and issubclass(value, kind):
        mend = f"write {value.__name__}(), an object of the class"
    elif isinstance(value, str):
        mend = f"give the object, such as {value}(), not its name" if value.isidentifier() else ""
    raise _Unfit(_a(name), mend)


def _full_name(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


_PLAIN: dict[Any, Callable[[Any], Any]] = {
    int: _whole, float: _real, bool: _flag, Tensor: _tensor,
}  # fmt: skip
