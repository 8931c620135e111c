"""Advice and warnings for who reads them: options or arguments, and the line of the user's."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

__all__ = ["command", "of_distributions", "on_the_command_line", "option", "part", "warn"]

_PACKAGE = str(Path(__file__).parent)
_COMMAND_LINE = ContextVar("command_line", default=False)
_DISTRIBUTIONS = ContextVar("distributions", default=False)
# Arguments that take an object; the others among the parts take what builds one.
_OBJECTS = ("objective", "observation", "schedule", "turns", "corruption")


@contextlib.contextmanager
def on_the_command_line() -> Iterator[None]:
    """Let advice name options: a context, in which a command runs."""
    token = _COMMAND_LINE.set(True)
    try:
        yield
    finally:
        _COMMAND_LINE.reset(token)


@contextlib.contextmanager
def of_distributions() -> Iterator[None]:
    """Let advice name distributions: a context, for programs that take no likelihood as a part."""
    token = _DISTRIBUTIONS.set(True)
    try:
        yield
    finally:
        _DISTRIBUTIONS.reset(token)


def option(name: str, value: object = "", *, python: str | None = None) -> str:
    """Return a setting as it is written: ``--batch-size 2``, or ``batch_size=2`` in Python.

    Args:
        name: Of the argument; one of a part's follows a point, such as ``network.hidden``.
        value: Left out where the advice names none.
        python: What it is called in Python where that is not its name and value.
    """
    if not _COMMAND_LINE.get():
        return python or (f"{name}={value}" if value != "" else name)
    first, *rest = name.split(".")
    written = "--" + ".".join([first.replace("_", "-"), *rest])
    return f"{written} {value}" if value != "" else written


def command(name: str, setting: str, value: object, *, python: str) -> str:
    """Return what to do next: ``pyro-vae train --resume run``, or what to call in Python."""
    return f"pyro-vae {name} {option(setting, value)}" if _COMMAND_LINE.get() else python


def part(role: str, name: str, **arguments: object) -> str:
    """Return a part as it is named for a role, with its arguments.

    ``--likelihood Binomial --likelihood.total_count 16`` on the command line; in Python
    ``likelihood=partial(Binomial, total_count=16)``, or ``objective=FreeBits(nats=0.5)``; and
    ``Binomial(total_count=16)`` to who writes the distribution in the program.
    """
    written = role == "likelihood" and _DISTRIBUTIONS.get()
    if _COMMAND_LINE.get() and not written:
        options = [option(f"{role}.{key}", value) for key, value in arguments.items()]
        return " ".join([option(role, name), *options])
    given = ", ".join(f"{key}={value}" for key, value in arguments.items())
    if written:
        return f"{name}({given})" if given else name
    if role in _OBJECTS:
        return f"{role}={name}({given})"
    return f"{role}=partial({name}, {given})" if given else f"{role}={name}"


def warn(message: str) -> None:
    """Warn at the innermost line outside of this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
