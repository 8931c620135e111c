"""Say a message about an argument as one about the option that gave it."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["in_options"]

_ARGUMENT = re.compile(r"(?:\w+: )?(\w+)=('[^']*'|[^\s:;,]+)")


def in_options(message: str, arguments: Sequence[str]) -> str:
    """Return a message that begins with ``argument=value`` in the words of the command line.

    ``num_particles=0: give 1 or more`` becomes ``--objective.num_particles 0: give 1 or more``
    where that option was given; a message about anything else stays as it is.
    """
    found = _ARGUMENT.match(message)
    if found is None:
        return message
    rest, value = message[found.end() :], found[2].strip("'")
    pairs = [(word.partition("=")[0], word.partition("=")[2] or following)
             for word, following in zip(arguments, [*arguments[1:], ""], strict=False)
             if word.startswith("--")]  # fmt: skip
    named = [(option, given) for option, given in pairs
             if option[2:].rpartition(".")[2].replace("-", "_") == found[1]]  # fmt: skip
    if named:
        # Of several arguments of one name, such as widths, the one with this value.
        same = [option for option, given in named if _numbers(given) == _numbers(value)]
        option = (same or [named[0][0]])[-1]
        return f"{option} {value}{rest.removeprefix(f' ({option})')}"
    calls = [f"{option} {given}" for option, given in pairs if re.match(r"[\w.]+\(", given)]
    return f"{calls[0]}: {message}" if len(calls) == 1 else message


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]
