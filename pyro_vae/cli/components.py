"""A class with its arguments as a value, which is stored in a file and built once it is needed."""

from __future__ import annotations

import enum
import inspect
import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from pyro_vae.cli.classes import (
    Argument,
    arguments_of,
    imported,
    inner_of,
    is_builder,
    num_supplied,
)
from pyro_vae.cli.user_files import public_path

__all__ = [
    "Component",
    "as_stored",
    "built",
    "check_given",
    "components_in",
    "default_of",
    "part_of_program",
]


@dataclass(frozen=True)
class Component:
    """A class by its import path, and the arguments that it is given."""

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the name of the class."""
        return self.path.rpartition(".")[2]

    def with_arguments(self, **arguments: Any) -> Component:
        """Return the same with further arguments."""
        return replace(self, arguments={**self.arguments, **arguments})

    def all_arguments(self) -> dict[str, Any]:
        """Return the arguments and, for the others, the defaults that a file can hold."""
        known = arguments_of(self.path)
        defaults = {name: default_of(argument) for name, argument in known.items()}
        return {**{k: v for k, v in defaults.items() if v is not None}, **self.arguments}


def part_of_program(program: Component | None, role: str, otherwise: str) -> Component | None:
    """Return the part that a program's ``assemble`` takes for a role unless given, or another.

    Args:
        program: The class of the program; None: not named.
        role: Such as "prior" or "decoder".
        otherwise: The import path of the part where the program says nothing; none if empty.
    """
    assemble = None if program is None else vars(imported(program.path)).get("assemble")
    taken = {} if assemble is None else inspect.signature(assemble.__func__).parameters
    default = taken[role].default if role in taken else None
    is_part = inspect.isclass(default) and issubclass(default, nn.Module)
    path = public_path(default) if is_part else otherwise
    return Component(path) if path else None


def as_stored(value: Any) -> Any:
    """Return a value as YAML holds it: a component as class_path and all its init_args."""
    if isinstance(value, Component):
        defaults = {key: argument.default for key, argument in arguments_of(value.path).items()}
        stored = {
            key: as_stored(each)
            for key, each in value.all_arguments().items()
            if each is not None or defaults.get(key) is not None
        }
        return {"class_path": value.path} | ({"init_args": stored} if stored else {})
    if isinstance(value, (list, tuple)):
        return [*map(as_stored, value)]
    if isinstance(value, enum.Enum):
        return value.name
    if callable(value):
        return public_path(value)
    return str(value) if isinstance(value, Path) else value


def built(option: str, hint: Any, value: Any) -> Any:
    """Return the object that a value stands for.

    A component is an instance of its class; where the type is a ``Callable``, a partial of the
    class, which waits for the shapes that it is called with.

    Raises:
        ValueError: If an argument is missing, is supplied in another way, or the class refuses it.
    """
    if isinstance(value, (list, tuple)):
        return type(value)(built(option, inner_of(hint), each) for each in value)
    if not isinstance(value, Component):
        return value
    known = arguments_of(value.path)
    supplied = [*inspect.signature(imported(value.path)).parameters][: num_supplied(hint)]
    check_given(option, known, {*value.arguments, *supplied})
    _refuse_supplied(option, known, value.arguments, supplied)
    arguments = {
        name: built(f"{option}.{name}", known[name].hint if name in known else Any, each)
        for name, each in value.arguments.items()
        if name not in supplied
    }
    made = partial(imported(value.path), **arguments)
    return made if is_builder(hint) else made()


def _refuse_supplied(
    option: str, known: Mapping[str, Argument], given: Mapping[str, Any], supplied: Collection[str]
) -> None:
    """Refuse values of arguments that are supplied by position; a file holds their defaults."""
    for name in given.keys() & {*supplied}:
        if name not in known or given[name] != known[name].default:
            raise ValueError(
                f"{option}.{name} {given[name]}: it is set by what takes {option}; leave it out"
            )


def check_given(option: str, known: Mapping[str, Argument], given: Collection[str]) -> None:
    """Check that all arguments are given that have no default.

    Raises:
        ValueError: Names those that are missing.
    """
    missing = [name for name, argument in known.items()
               if argument.default is inspect.Parameter.empty and name not in given]  # fmt: skip
    if missing:
        raise ValueError(f"{option}: give {' and '.join(f'{option}.{n}' for n in missing)} too")


def default_of(argument: Argument) -> Any:
    """Return an argument's default as a value that a file can hold; None if it is none."""
    default = argument.default
    if default is inspect.Parameter.empty:
        return None
    if inspect.isclass(default) and is_builder(argument.hint):
        return Component(public_path(default))
    if inspect.isclass(default) or isinstance(default, (bool, int, float, str, types.FunctionType)):
        return default
    plain = isinstance(default, (list, tuple)) and all(
        isinstance(each, (bool, int, float, str)) for each in default
    )
    return list(default) if plain else None


def components_in(value: Any) -> Iterator[Component]:
    """Yield a component, or those of a list, and all inside them."""
    if isinstance(value, Component):
        yield value
    inner = value.arguments.values() if isinstance(value, Component) else value
    if isinstance(value, (list, tuple, Component)):
        for each in inner:
            yield from components_in(each)
