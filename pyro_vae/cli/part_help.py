"""The help of a part, or of one of its arguments: ``--prior.help``, ``--objective.beta.help``."""

from __future__ import annotations

import inspect
import re
import textwrap
import typing
from typing import Any

from pyro_vae.cli import calls, parts
from pyro_vae.cli.lists import annotation_of, class_given
from pyro_vae.cli.names import PARTS, offered, summary

__all__ = ["asked", "told"]

_WIDTH = 96


def asked(arguments: list[str]) -> tuple[str, str | None] | None:
    """Return the option whose ``.help`` a command line asks for, and the name given to it."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, _, name = word.partition("=")
        if option.startswith("--") and option.endswith(".help"):
            name = name or ("" if following.startswith("--") else following)
            return option.removesuffix(".help"), name or None
    return None


def told(option: str, name: str | None, arguments: list[str]) -> str:
    """Return what there is to say of a part or an argument of one.

    Args:
        option: Such as ``--prior`` or ``--objective.beta``.
        name: The part that the user asks for; None: the one that the command line takes.
        arguments: The command line.

    Raises:
        ValueError: There is no such option or part.
    """
    role, *inner = option.removeprefix("--").split(".")
    if role not in PARTS:
        raise ValueError(f"{option}.help: only parts have help of their own, such as --prior.help")
    if not inner:
        path = parts.named(role, name) if name else class_given(option, arguments)
        if path is None:
            return _lines(f"{option} NAME", dict(offered(role)))
        return _of_class(option, path)
    annotation = _annotation(option, arguments)
    if name:
        return _of_class(option, calls.nested(option, name, annotation))
    if (path := class_given(option, arguments)) is not None:
        return _of_class(option, path)
    return _of_argument(option, annotation, arguments)


def _annotation(option: str, arguments: list[str]) -> Any:
    owner, _, argument = option.rpartition(".")
    path = class_given(owner, arguments)
    if path is None:
        raise ValueError(f"{option}.help: name a part that takes it, such as {owner} NAME")
    calls.check_arguments(f"{option}.help", path.rpartition(".")[2], path, [argument])
    return annotation_of(option, arguments)


def _of_class(option: str, path: str) -> str:
    part = calls.imported(path)
    known = calls.arguments_of(path)
    heading = f"{option} {path.rpartition('.')[2]}: {summary(part)}"
    if not known:
        return f"{heading}\nIt takes no arguments."
    entries = [_entry(f"{option}.{name}", part, name, kind) for name, kind in known.items()]
    return "\n".join([textwrap.fill(heading, _WIDTH), "", *entries])


def _of_argument(option: str, annotation: Any, arguments: list[str]) -> str:
    owner, _, name = option.rpartition(".")
    path = class_given(owner, arguments)
    assert path is not None
    shown = _entry(option, calls.imported(path), name, annotation)
    classes = {known: calls.imported(path) for known, path in calls.choices(annotation).items()}
    if not classes:
        return shown
    return f"{shown}\n\n{_lines(f'{option} NAME, or NAME(ARGUMENTS)', classes)}"


def _lines(heading: str, classes: dict[str, type]) -> str:
    rows = [f"  {name:<28}{summary(part)}" for name, part in sorted(classes.items())]
    return "\n".join([heading, *rows])


def _entry(option: str, part: Any, name: str, annotation: Any) -> str:
    said = " ".join(filter(None, [_documented(part, name), f"({_kind(annotation)}"]))
    default = _default(part, name)
    said += (
        ", needed)" if default is inspect.Parameter.empty else f"; {_said(default)} unless given)"
    )
    return textwrap.fill(
        said, _WIDTH, initial_indent=f"  {option}  ", subsequent_indent=" " * 6,
        break_on_hyphens=False,
    )  # fmt: skip


def _default(part: type, name: str) -> Any:
    for parent in part.__mro__:
        found = inspect.signature(parent).parameters.get(name)
        if found is not None:
            return found.default
    return inspect.Parameter.empty


def _said(default: Any) -> str:
    if inspect.isclass(default) or inspect.isfunction(default):
        return str(default.__name__)
    return "nothing" if default is None else str(default)


def _kind(annotation: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if calls.is_list(annotation):
        inner = next(iter(typing.get_args(annotation)), Any)
        return "a list, as NAME,NAME" if [*calls.results(inner)] else "numbers, as 3,4"
    arguments = (annotation, *typing.get_args(annotation))
    found = [word for kind, word in names.items() if kind in arguments]
    classes = [kind.__name__ for kind in calls.results(annotation) if kind is not Any]
    return ", or ".join([*found, *classes]) or "a value"


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
