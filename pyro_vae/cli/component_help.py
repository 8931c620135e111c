"""The help of a component or of its arguments: ``--prior.help``, ``--objective.beta.help``."""

from __future__ import annotations

import inspect
import re
import textwrap
import typing
from collections.abc import Sequence
from typing import Any

from pyro_vae.cli.classes import (
    Argument,
    arguments_of,
    choices,
    imported,
    is_list,
    named,
    nested,
    results,
)
from pyro_vae.cli.components import Component
from pyro_vae.cli.names import ROLES, offered, summary
from pyro_vae.cli.values import argument_of

__all__ = ["help_of"]

_WIDTH = 96


def help_of(way: Sequence[str], name: str | None, config: Any) -> str:
    """Return the help of a component or of an argument of one.

    Args:
        way: Such as ``("prior",)`` or ``("objective", "beta")``.
        name: The class that the user asks for; None: the one that the options name.
        config: The values of the options.

    Raises:
        ValueError: There is no such option or class.
    """
    role, *inner = way
    option = "--" + ".".join(way)
    if role not in ROLES:
        raise ValueError(f"{option}.help: only components have help of their own, as --prior.help")
    value, hint, owner = getattr(config, role, None), None, None
    for place, argument in enumerate(inner):
        owner = value
        value, hint = argument_of("--" + ".".join(way[: place + 1]), owner, argument, ".help")
    if name:
        path = nested(option, name, hint) if inner else named(role, name, option)
        return _of_class(option, path)
    if isinstance(value, Component):
        return _of_class(option, value.path)
    if isinstance(owner, Component):
        return _of_argument(option, owner, inner[-1])
    return _lines(f"{option} NAME", offered(role))


def _of_class(option: str, path: str) -> str:
    part, known = imported(path), arguments_of(path)
    heading = f"{option} {path.rpartition('.')[2]}: {summary(part)}"
    if not known:
        return f"{heading}\nIt takes no arguments."
    entries = [_entry(f"{option}.{name}", part, name, known[name]) for name in known]
    return "\n".join([textwrap.fill(heading, _WIDTH), "", *entries])


def _of_argument(option: str, owner: Component, name: str) -> str:
    argument = arguments_of(owner.path)[name]
    shown = _entry(option, imported(owner.path), name, argument)
    classes = {known: imported(path) for known, path in choices(argument.hint).items()}
    if not classes:
        return shown
    return f"{shown}\n\n{_lines(f'{option} NAME, or NAME(ARGUMENTS)', classes)}"


def _lines(heading: str, classes: dict[str, type]) -> str:
    rows = [f"  {name:<28}{summary(part)}" for name, part in sorted(classes.items())]
    return "\n".join([heading, *rows])


def _entry(option: str, part: Any, name: str, argument: Argument) -> str:
    needed = argument.default is inspect.Parameter.empty
    default = "required" if needed else f"default: {_shown(argument.default)}"
    said = f"{_documented(part, name)} ({_kind(argument.hint)}; {default})"
    return textwrap.fill(
        said.strip(), _WIDTH, initial_indent=f"  {option}  ", subsequent_indent=" " * 6,
        break_on_hyphens=False,
    )  # fmt: skip


def _shown(default: Any) -> str:
    if inspect.isclass(default) or inspect.isfunction(default):
        return str(default.__name__)
    return "none" if default is None else str(default)


def _kind(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if is_list(hint):
        inner = next(iter(typing.get_args(hint)), Any)
        return "a list, as NAME,NAME" if [*results(inner)] else "numbers, as 3,4"
    found = [word for kind, word in names.items() if kind in (hint, *typing.get_args(hint))]
    return ", or ".join([*found, *(kind.__name__ for kind in results(hint))]) or "a value"


def _documented(part: type, name: str) -> str:
    """Return what the docstrings of a class and its bases say of an argument."""
    for parent in part.__mro__:
        found = re.search(
            rf"^\s*(?:Args|Attributes):\n(?:.*\n)*?(\s+){name}: ((?:.*\n?)(?:\1\s+\S.*\n?)*)",
            inspect.getdoc(parent) or "", re.MULTILINE,
        )  # fmt: skip
        if found:
            return " ".join(found[2].split()).replace("`", "")
    return ""
