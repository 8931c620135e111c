"""Read what a person types, or a file of options holds, as a value of the type that is asked for.

A word is read as Python's literals and names of classes; nothing in it is ever evaluated.
"""

from __future__ import annotations

import enum
import inspect
import math
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_vae.cli.calls import Call, as_call, as_yaml, split_words
from pyro_vae.cli.classes import (
    arguments_of,
    choices,
    imported,
    inner_of,
    is_list,
    kinds_of,
    literals,
    named,
    nested,
    results,
    takes,
)
from pyro_vae.cli.components import Component, default_of
from pyro_vae.cli.user_files import functions_path, load_file

__all__ = ["argument_of", "component", "merged", "read", "with_argument"]

_CONSTANTS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NUMBER = re.compile(
    r"\s*[-+]?(?:[0-9][0-9_]*)?\.?[0-9][0-9_]*\.?(?:[eE][-+]?[0-9]+)?\s*", re.ASCII
)
_ODD_NUMBER = re.compile(
    r"[-+]?(?:0[xXoObB]\w*|0[0-9_]+|[0-9]+(?::[0-9.]+)+|[0-9_.eE]*[^\x00-\x7f][\w.]*)"
)

# Components ---------------------------------------------------------------------------------------


def component(option: str, role: str, given: Any) -> Component:
    """Return what is named for a role: a word, a call, or class_path and init_args.

    Raises:
        ValueError: It is no class of this role, or takes no such argument; suggests the nearest.
    """
    call = as_call(option, given)
    if role == "model" and call.name.endswith(".py"):
        load_file(Path(call.name))
        return Component(functions_path(), {"file": call.name})
    return _with_arguments(option, given, named(role, call.name, option), call)


def with_argument(option: str, value: Any, names: Sequence[str], given: Any) -> Component:
    """Return a component with one argument, of its own or of one inside it, set.

    Args:
        option: What the component is given for, such as ``--objective``.
        value: The component.
        names: The way to the argument, such as ``("beta", "schedule", "start")``.
        given: As it is typed, or a file holds it.

    Raises:
        ValueError: If there is no component, it takes no such argument, or not this value.
    """
    name, *inner = names
    old, hint = argument_of(option, value, name)
    if inner:
        new: Any = with_argument(f"{option}.{name}", old, inner, given)
    else:
        new = merged(old, read(f"{option}.{name}", hint, given))
    return value.with_arguments(**{name: new})


def argument_of(option: str, value: Any, name: str, end: str = "") -> tuple[Any, Any]:
    """Return the value of an argument of a component, or its default, and its type.

    Args:
        option: What the component is given for.
        value: The component.
        name: Of the argument.
        end: What is asked of it, for messages.

    Raises:
        ValueError: If there is no component, or it takes no such argument.
    """
    if not isinstance(value, Component):
        raise ValueError(f"{option}.{name}{end}: name a class that takes it, such as {option} NAME")
    argument = arguments_of(value.path).get(name)
    if argument is None:
        said = f"{value.name} takes no such argument; {takes(value.path, name)}"
        raise ValueError(f"{option}.{name}{end}: {said}")
    return value.arguments.get(name, default_of(argument)), argument.hint


def merged(old: Any, new: Any) -> Any:
    """Return a value in the place of another; the same class keeps the arguments that it has."""
    both = isinstance(old, Component) and isinstance(new, Component)
    if not both or imported(old.path) is not imported(new.path):
        return new
    return old.with_arguments(**new.arguments)


def _with_arguments(option: str, given: Any, path: str, call: Call) -> Component:
    known, name = arguments_of(path), path.rpartition(".")[2]
    shown = f"{option} {given}" if isinstance(given, str) else f"{option} {call.name}"
    if len(call.by_place) > len(known):
        raise ValueError(f"{shown}: too many arguments; {takes(path, '')}")
    values = dict(zip(known, call.by_place, strict=False))
    for argument, value in call.by_name.items():
        if argument not in known:
            said = f"{name} has no argument {argument!r}; {takes(path, argument)}"
            raise ValueError(f"{shown}: {said}")
        if argument in values:
            raise ValueError(f"{shown}: {name} is given {argument!r} twice; give it once")
        values[argument] = value
    return Component(
        path, {key: read(f"{option}.{key}", known[key].hint, each) for key, each in values.items()}
    )


# Values of a type ---------------------------------------------------------------------------------


def read(option: str, hint: Any, given: Any) -> Any:
    """Return a value of a type.

    Args:
        option: What it is given for, for messages.
        hint: The type, as an argument is annotated; or a function that reads a value.
        given: The word that was typed, or the value that a file holds.

    Raises:
        ValueError: If it is no such value; names the option, the value, and what would do.
    """
    if inspect.isfunction(hint):
        return hint(given)
    kinds = [*kinds_of(hint)]
    if _is_nothing(given, kinds):
        given = None
    if given is None and {type(None), Any} & {*kinds}:
        return None
    if isinstance(given, Component):
        return given
    if is_list(hint) and _are_several(given, kinds):
        return _list(option, hint, given)
    if bool in kinds and (truth := _truth(given)) is not None:
        return truth
    if {int, float} & {*kinds} and (number := _number(option, kinds, given)) is not None:
        return number
    if str in kinds and isinstance(given, str):
        return given
    return _of_kinds(option, hint, kinds, given)


def _is_nothing(given: Any, kinds: list[Any]) -> bool:
    """Whether a word stands for no value; a text may be the word "none"."""
    word = given.strip().lower() if isinstance(given, str) else ""
    return word in ("null", "none") if str not in kinds else word == "null" and type(None) in kinds


def _of_kinds(option: str, hint: Any, kinds: list[Any], given: Any) -> Any:
    """Return a value that is none of Python's plain ones."""
    if values := literals(hint):
        return _choice(option, values, given)
    for kind in kinds:
        if inspect.isclass(kind) and issubclass(kind, enum.Enum):
            return kind[_choice(option, [*kind.__members__], given)]
    if Path in kinds:
        if not isinstance(given, (str, Path)):
            raise ValueError(f"{option}: expected the name of a file or folder")
        return Path(given)
    if choices(hint) or [*results(hint)]:
        return _class(option, hint, given)
    if isinstance(given, Call) or {*kinds} <= {int, float, bool, str, type(None)}:
        shown = given.name if isinstance(given, Call) else given
        raise ValueError(f"{option} {shown}: expected {_what(kinds)}")
    return _plain(given)


def _class(option: str, hint: Any, given: Any) -> Any:
    """Return a component; a class itself, or a function, where one is due."""
    call = as_call(option, given)
    path = nested(option, call.name, hint)
    if not inspect.isclass(imported(path)):
        return imported(path)
    if any(typing.get_origin(kind) is type for kind in kinds_of(hint)):
        return imported(path)
    return _with_arguments(option, given, path, call)


def _number(option: str, kinds: list[Any], given: Any) -> int | float | None:
    """Return a number of a kind that is asked for; None if it is none."""
    found = _parsed(option, kinds, given) if isinstance(given, str) else given
    if not isinstance(found, (int, float)) or isinstance(found, bool):
        return None
    if int in kinds and (isinstance(found, int) or (float not in kinds and found.is_integer())):
        return int(found)
    return float(found) if float in kinds else None


def _parsed(option: str, kinds: list[Any], word: str) -> int | float | None:
    if _ODD_NUMBER.fullmatch(word.strip()):
        raise ValueError(f"{option} {word}: write numbers in plain decimal digits, such as 16")
    if "," in word and all(map(_is_number, word.split(","))):
        raise ValueError(f"{option} {word}: {_without_comma(word, whole=float not in kinds)}")
    if not _is_number(word) or not math.isfinite(float(word)):
        return None
    return int(word) if word.strip(" +-").replace("_", "").isdecimal() else float(word)


def _is_number(word: Any) -> bool:
    return isinstance(word, str) and _NUMBER.fullmatch(word) is not None


def _without_comma(word: str, *, whole: bool) -> str:
    """Say how a number is written that is given with commas."""
    joined, pointed = word.replace(",", ""), word.replace(",", ".")
    grouped = re.fullmatch(r"[-+]?[1-9][0-9]{0,2}(,[0-9]{3})+", word.strip()) is not None
    ways = [joined] if grouped else []
    ways += [pointed] if not whole and word.count(",") == 1 and "." not in word else []
    kind = "whole number" if whole else "number"
    return f"expected one {kind}" + (f", without a comma: {' or '.join(ways)}" if ways else "")


def _truth(given: Any) -> bool | None:
    word = given.strip().lower() if isinstance(given, str) else ""
    return given if isinstance(given, bool) else _CONSTANTS.get(word)


def _choice(option: str, values: list[Any], given: Any) -> Any:
    for value in values:
        if given in (value, str(value)):
            return value
    raise ValueError(f"{option} {given}: choose from {', '.join(map(repr, values))}")


def _plain(given: Any) -> Any:
    """Return what a word is of itself: a number, YAML, or text."""
    if not isinstance(given, str):
        return given
    if "," in given and all(map(_is_number, given.split(","))):
        return [*map(_plain, given.split(","))]
    if _is_number(given) and not _ODD_NUMBER.fullmatch(given.strip()):
        number = float(given)
        return int(number) if number.is_integer() and "." not in given else number
    return as_yaml(given)


def _what(kinds: list[Any]) -> str:
    words = {float: "a finite number", int: "a whole number", bool: "true or false"}
    if float in kinds:
        kinds = [kind for kind in kinds if kind is not int]
    return " or ".join(words[kind] for kind in kinds if kind in words) or "text"


# Lists --------------------------------------------------------------------------------------------


def _are_several(given: Any, kinds: list[Any]) -> bool:
    """Whether a value is a list, where one number would do, too."""
    if given is None or isinstance(given, (dict, Call)):
        return given is None
    alone = {int, float, str} & {*kinds}
    return not alone or isinstance(given, (list, tuple)) or "," in str(given)


def _list(option: str, hint: Any, given: Any) -> Any:
    inner = inner_of(hint)
    items = given if isinstance(given, (list, tuple)) else split_words(str(given))
    empty = given is None or (isinstance(given, str) and not given.strip())
    if {*kinds_of(inner)} <= {int, float}:
        odd = any(isinstance(item, str) and _ODD_NUMBER.fullmatch(item) for item in items)
        numbers = all(_is_number(str(item)) for item in items) and not empty
        if not numbers and not odd:
            example = "300,300" if float not in kinds_of(inner) else "0.1,0.2"
            raise ValueError(f"{option} {given}: expected numbers, such as {example}")
    values = [read(option, inner, item) for item in items]
    return tuple(values) if tuple in [*map(typing.get_origin, kinds_of(hint))] else values
