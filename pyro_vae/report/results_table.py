"""The results of a run as a table: names, numbers with their errors, and what each means."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pyro_vae.report.numbers import NUMBERS, PARTNERS, RENAMED, TEXTS, WHOLES, Number, count

__all__ = ["Row", "flat", "one_line", "rows_of", "table"]

_SATURATED = 0.98  # of its ceiling: an estimate from N data cannot tell more than log N


class Row(NamedTuple):
    """A number as it is shown: its key, what it is called, its value and its meaning."""

    key: str
    name: str
    value: str
    meaning: str


def table(results: Mapping[str, Any]) -> str:
    """Return the results as lines of plain text, ``name  value +- standard error``, points aligned.

    Args:
        results: Numbers by name, see ``write_report``. None reads "-", NaN and infinity read
            "not finite", and numbers this module has no name for come last under their keys.
    """
    rows = list(rows_of(results))
    width = max((len(row.name) for row in rows), default=0)
    places = max((_num_leading(row.value) for row in rows), default=0)
    return "\n".join(
        f"{row.name:<{width}}  {' ' * (places - (_num_leading(row.value) or places))}{row.value}"
        for row in rows
    )


def _num_leading(value: str) -> int:
    """Return how many characters stand before the decimal point, 0 where there is no number."""
    number = re.match(r"-?\d[\d,]*", value)
    return number.end() if number else 0


def rows_of(results: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows of a table of results, in the order of ``NUMBERS``, unknown ones last."""
    numbers = {RENAMED.get(key, key): value for key, value in flat(results) if key not in TEXTS}
    hidden = {part for part, whole in PARTNERS.items() if whole in numbers}
    wholes = {key: key.partition(".")[0] for key in numbers}
    known = [key for whole in NUMBERS for key in numbers if wholes[key] == whole]
    for key in [*known, *(key for key in numbers if wholes[key] not in NUMBERS)]:
        if key not in hidden:
            number = NUMBERS.get(wholes[key], Number(key, _plain, ""))
            part = key.removeprefix(wholes[key]).replace(".", " of ", 1) if key in known else ""
            name = one_line(number.name.replace(" (", f"{part} (", 1))
            yield Row(key, name, _value(key, numbers, number.write), number.meaning)


def flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested records, their keys joined by points."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(key: str, results: Mapping[str, Any], write: Callable[[float], str]) -> str:
    """Write a number, with its standard error or its whole beside it where there is one."""
    text = _written(results[key], write)
    partner = next((part for part, whole in PARTNERS.items() if whole == key), "")
    number, beside = _number(results[key]), _number(results.get(partner))
    if number is None or not math.isfinite(number) or beside is None or math.isnan(beside):
        return text  # of a single datum, an error is not known
    if partner == "mutual_information_ceiling":
        if number >= _SATURATED * beside:
            return f"at least {text} (saturated at log N)"
        return f"{text} (at most log N = {_written(beside, write)})"
    if partner in WHOLES:
        whole = _written(beside, count)
        return f"{text} {WHOLES[partner].format(whole)}"
    if math.isfinite(beside):
        write = f"{{:,.{_places(beside)}f}}".format
    return f"{_written(number, write)} +- {_written(beside, write)}"


def _places(error: float) -> int:
    """Return enough decimals to show one digit of the error, at least two."""
    return min(8, max(2, -math.floor(math.log10(error)))) if error > 0 else 2


def _written(value: Any, write: Callable[[float], str]) -> str:
    if value is None:
        return "-"
    number = _number(value)
    if number is None:
        return one_line(value) or "-"
    if not math.isfinite(number):
        return "not finite"
    return write(number) if abs(number) < 1e12 else f"{number:.4g}"


def _number(value: Any) -> float | None:
    """Return what is one number as a float: Python's, numpy's and torch's; None otherwise."""
    if isinstance(value, (bool, str, bytes)) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"


def one_line(value: Any) -> str:
    """Return a value as text on one line."""
    return re.sub(r"\s+", " ", str(value)).strip()
