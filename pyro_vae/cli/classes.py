"""Classes by name: what a person types for one, which arguments it takes, and what fits there."""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pyro.infer import ELBO
from torch import nn

import pyro_vae.components.networks
import pyro_vae.inference
import pyro_vae.inference.schedules
from pyro_vae.cli import user_files
from pyro_vae.cli.names import ROLES, hints, known_as, nearest, offered, plain, serves
from pyro_vae.components import Family, Noise
from pyro_vae.components.automatic import class_path, distribution_names
from pyro_vae.components.conditional import Shape
from pyro_vae.engine.observations import Observation
from pyro_vae.engine.turns import Turns
from pyro_vae.fields import KNOWN
from pyro_vae.inference import Schedule

__all__ = [
    "FUNCTIONS",
    "HINTS",
    "Argument",
    "arguments_of",
    "choices",
    "imported",
    "inner_of",
    "is_builder",
    "is_list",
    "kinds_of",
    "literals",
    "named",
    "nested",
    "num_supplied",
    "results",
    "takes",
]

_FAMILY = Callable[[Shape], Family]
_NETWORK = Callable[[Shape, Shape], nn.Module]
HINTS: dict[str, Any] = {
    "model": nn.Module, "prior": _FAMILY, "likelihood": _FAMILY, "posterior": _FAMILY,
    "network": _NETWORK, "encoder": _NETWORK, "decoder": _NETWORK, "objective": ELBO,
    "observation": Callable[[int | None], Observation], "schedule": Schedule, "turns": Turns,
    "corruption": Noise,
}  # fmt: skip
"""What each role takes: a class, or what builds one from shapes or levels."""

FUNCTIONS = (
    pyro_vae.components.networks.glorot,
    pyro_vae.components.networks.he,
    pyro_vae.components.networks.orthogonal,
)
"""Functions that an argument may be, which a stored configuration may name too."""

_FILLED_IN = {"event_shape", "latent_shape", "in_shape", "out_shape", "context_shape", "raw_shape"}
_FILLED_IN_OF_PROGRAMS = _FILLED_IN | {
    "prior", "likelihood", "posterior", "latent_shapes", "priors", "posteriors", "upward",
    "num_classes", "classes", "classifier", "features", *(f"{field}_shape" for field in KNOWN),
}  # fmt: skip
_SYNONYMS = {"swish": "silu"}
_MODULES = (
    pyro_vae.inference.schedules, pyro_vae.inference, pyro_vae.components,
    pyro_vae.components.networks, nn,
)  # fmt: skip


class Argument(NamedTuple):
    """An argument of a class: its type, and its default, or ``inspect.Parameter.empty``."""

    hint: Any
    default: Any


# Roles --------------------------------------------------------------------------------------------


def named(role: str, name: str, option: str = "") -> str:
    """Return the import path of a class named by class, import path, or ``file.py:Class``.

    Families may also be named after any of Pyro's distributions.

    Args:
        role: Such as "prior".
        name: As it is typed.
        option: What it is given for, for messages; the role's option unless given.

    Raises:
        ValueError: If there is no such class; suggests the nearest name.
        FileNotFoundError: If the file does not exist.
    """
    option = option or f"--{role}"
    if ".py" in name:
        return _of_user(role, name, option)
    classes = offered(role)
    others = distribution_names() if ROLES[role][1] is Family else ()
    meant = known_as(name, role, others)
    if meant in classes:
        return user_files.public_path(classes[meant])
    if meant is not None:
        return class_path(meant)
    if "." in name:
        return _of_user(role, name, option)
    package = ROLES[role][0]
    if name in package.__all__ and not serves(getattr(package, name), role):
        user_files.refuse_role(option, name, getattr(package, name), role)
    if hint := hints(role).get(plain(name)):
        raise ValueError(f"{option} {name}: {hint}")
    pyros = "any of Pyro's distributions, " if others else ""
    near = nearest(name, [*classes, *others]).strip()
    raise ValueError(
        f"{option} {name}: no such {role}{near and f' ({near})'}; choose from what pyro-vae "
        f"list shows, or give {pyros}an import path (my_package.My{role.title()}) or a file "
        f"(my_file.py:My{role.title()})"
    )


def _of_user(role: str, name: str, option: str) -> str:
    path, found = user_files.class_of(option, name)
    user_files.check_class(option, name, found, role)
    return path


def imported(path: str) -> Any:
    """Return what an import path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


# Arguments ----------------------------------------------------------------------------------------


@functools.cache
def arguments_of(path: str) -> dict[str, Argument]:
    """Return a class's arguments; those of its bases, too, where it hands on."""
    found: dict[str, Argument] = {}
    owner = imported(path)
    for parent in owner.__mro__:
        parameters = inspect.signature(parent).parameters.values()
        types_ = {}
        with contextlib.suppress(NameError, TypeError):
            types_ = typing.get_type_hints(parent.__init__)
        own = {
            p.name: Argument(types_.get(p.name, Any), p.default)
            for p in parameters
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in _unasked(owner)
        }
        found = own | found
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return found


def _unasked(owner: type) -> set[str]:
    """Return the arguments that the command line sets itself."""
    if issubclass(owner, Observation):
        return {"levels"}
    is_program = all(callable(getattr(owner, name, None)) for name in ("model", "guide"))
    return _FILLED_IN_OF_PROGRAMS if is_program else _FILLED_IN


def takes(path: str, argument: str) -> str:
    """Return which arguments a class takes, and which of them one looks like."""
    known = arguments_of(path)
    return f"{nearest(argument, known)}it takes {', '.join(known) if known else 'none'}"


# Types --------------------------------------------------------------------------------------------


def kinds_of(hint: Any) -> Iterator[Any]:
    """Yield the types of a union, one by one."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for kind in typing.get_args(hint):
            yield from kinds_of(kind)
    elif typing.get_origin(hint) is typing.Annotated:
        yield from kinds_of(typing.get_args(hint)[0])
    else:
        yield hint


def results(hint: Any) -> Iterator[type]:
    """Yield the classes among what an argument takes; of builders, what they return."""
    for kind in kinds_of(hint):
        origin = typing.get_origin(kind)
        if origin is collections.abc.Callable or origin is type:
            yield from results(typing.get_args(kind)[-1])
        elif origin is None and inspect.isclass(kind) and kind.__module__ not in _PLAIN:
            yield kind


_PLAIN = ("builtins", "pathlib", "types", "typing")


def is_builder(hint: Any) -> bool:
    """Whether an argument takes what builds an object, rather than the object."""
    return any(typing.get_origin(kind) is collections.abc.Callable for kind in kinds_of(hint))


def num_supplied(hint: Any) -> int:
    """Return how many arguments a builder is called with, at most."""
    taken = [typing.get_args(kind)[0] for kind in kinds_of(hint) if is_builder(kind)]
    return max((len(each) if isinstance(each, list) else sys.maxsize for each in taken), default=0)


def is_list(hint: Any) -> bool:
    """Whether an argument takes several values."""
    return any(map(_is_list, kinds_of(hint)))


def inner_of(hint: Any) -> Any:
    """Return the type of the items of a list."""
    return next((arg for kind in kinds_of(hint) if _is_list(kind)
                 for arg in typing.get_args(kind)), Any)  # fmt: skip


def _is_list(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    several = (collections.abc.Sequence, set)
    return inspect.isclass(origin) and issubclass(origin, several) and origin not in (str, bytes)


def literals(hint: Any) -> list[Any]:
    """Return the values that an argument is one of, if its type lists them."""
    return [value for kind in kinds_of(hint) if typing.get_origin(kind) is typing.Literal
            for value in typing.get_args(kind)]  # fmt: skip


def nested(option: str, name: str, hint: Any) -> str:
    """Return the import path of a class inside another, by what that takes there.

    Raises:
        ValueError: There is none of that name; suggests the nearest, or says which there are.
    """
    wanted = tuple(results(hint))
    name = name.removeprefix("nn.")
    known = choices(hint, name)
    if (found := known.get(name) or _alike(name, known)) is not None:
        return found
    others = distribution_names() if Family in wanted else ()
    if others:
        meant = known_as(name, option.removeprefix("--").partition(".")[0], others)
        if meant is not None:
            return known.get(meant) or class_path(meant)
    role = next((role for role, (_, base) in ROLES.items() if base in wanted), None)
    if "." in name and role is not None:
        return named(role, name, option)
    if "." in name and (wanted or is_builder(hint)):
        path, found_there = user_files.class_of(option, name)
        if wanted:
            user_files.check_derived(option, name, found_there, wanted)
        if wanted or inspect.isroutine(found_there):
            return path
    fitting = [found for found in sorted(known) if _takes_as_called(known[found], hint)]
    numbers = "a number, or " if {int, float} & {*kinds_of(hint)} else ""
    listed = f"expected {numbers}{', '.join(fitting[:30]) or 'a number'}"
    raise ValueError(
        f"{option} {name}: unknown; {nearest(name, [*fitting, *others]).strip() or listed}"
    )


def _alike(name: str, known: dict[str, str]) -> str | None:
    """Return the one class whose name is spelt otherwise, as ``relu`` and ``leaky_relu`` are."""
    sought = _SYNONYMS.get(plain(name), plain(name))
    found = {path for other, path in known.items() if sought in (plain(other), plain(path))}
    return found.pop() if len(found) == 1 else None


def _takes_as_called(path: str, hint: Any) -> bool:
    """Whether a class can be built from as much as an argument calls it with."""
    try:
        for kind in kinds_of(hint):
            if typing.get_origin(kind) is collections.abc.Callable:
                inspect.signature(imported(path)).bind(*typing.get_args(kind)[0])
    except TypeError:
        return False
    return True


def choices(hint: Any, *more: str) -> dict[str, str]:
    """Return the classes, or functions, that an argument takes, by name, with their import paths.

    Args:
        hint: The argument's type.
        more: Names to look for beside the public ones of the package.
    """
    wanted = tuple(results(hint))
    if not wanted:
        functions = FUNCTIONS if is_builder(hint) else ()
        return {f.__name__: user_files.public_path(f) for f in functions}
    exact = any(typing.get_origin(kind) is type for kind in kinds_of(hint))
    found: dict[str, str] = {}
    for module in _MODULES:
        public = nn.modules.__all__ if module is nn else getattr(module, "__all__", ())
        for name in (*more, *public):
            part = getattr(module, name, None)
            if inspect.isclass(part) and issubclass(part, wanted) and (exact or part not in wanted):
                found.setdefault(name, f"{module.__name__}.{name}")
    return found
