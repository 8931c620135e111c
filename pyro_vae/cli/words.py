"""Take options such as paths from a command line before a parser interprets them.

A parser that reads values as YAML takes ``~`` for nothing, and refuses bytes that are no text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["in_options", "option_values", "taken_option"]

_ARGUMENT = re.compile(r"(?:\w+: )?(\w+)=('[^']*'|[^\s:;,]+)")


def taken_option(arguments: list[str], option: str) -> tuple[list[str], str | None]:
    """Return the words without an option and its value, and the value; the last of several.

    Raises:
        ValueError: If it has no value.
    """
    values = option_values(arguments, option)
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == option:
            next(words, None)
        elif not word.startswith(f"{option}="):
            rest.append(word)
    return rest, values[-1] if values else None


def option_values(arguments: list[str], option: str) -> list[str]:
    """Return the values that an option is given on a command line, in order.

    Raises:
        ValueError: If one is missing.
    """
    values = []
    for place, word in enumerate(arguments):
        if word == option:
            if place + 1 == len(arguments):
                raise ValueError(f"{option}: give it a value")
            values.append(arguments[place + 1])
        elif word.startswith(f"{option}="):
            values.append(word.partition("=")[2])
    return values


def in_options(message: str, arguments: Sequence[str]) -> str:
    """Return a message that begins with ``argument=value`` in the words of the command line.

    ``num_particles=0: give 1 or more`` becomes ``--objective.num_particles 0: give 1 or more``
    where that option was given; a message about anything else stays as it is.
    """
    found = _ARGUMENT.match(message)
    if found is None:
        return message
    for word in arguments:
        option = word.partition("=")[0]
        if option.startswith("--") and option[2:].rpartition(".")[2].replace("-", "_") == found[1]:
            rest = message[found.end() :].removeprefix(f" ({option})")
            return f"{option} {found[2].strip(chr(39))}{rest}"
    return message
