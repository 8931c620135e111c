"""A command line as words: the values of options that no parser may interpret, such as paths.

A parser that reads values as YAML takes ``~`` for nothing, and refuses bytes that are no text.
"""

from __future__ import annotations

__all__ = ["option_values", "taken_option"]


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
