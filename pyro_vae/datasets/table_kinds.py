"""What the columns of a table are: real numbers, counts, bits, categories, dates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pyro_vae.datasets.containers import Given
from pyro_vae.datasets.sheets import Sheet, dates, number_of, sheet_of
from pyro_vae.datasets.tables import KINDS, Column, Table
from pyro_vae.datasets.values import Codes, columns_of
from pyro_vae.wording import option, warn

__all__ = ["TableReading", "described", "numbered_tables"]

_FEW_NUMBERS = 10  # different numbers that are taken for categories
_ROWS_EACH = 4  # in how many rows each of them is, on average
_FEW_TEXTS = 20
_IDENTIFIER = 0.5  # different texts among the rows
_LARGEST_COUNT = 10_000
_SPREAD = 1 / 3  # standard deviation over mean; numbers far from zero are as good as real
_SHOWN = 8


@dataclass(frozen=True)
class TableReading:
    """How a table becomes rows of numbers.

    The kind of a column is found from all rows, unless it is given. Numbers are binary where two
    occur, and categories where at most 10 do, each in four rows or more on average; whole numbers
    from 0 to 10,000 are counts where their standard deviation is at least a third of their mean;
    others are real. Texts are dates where all are such as 2024-05-31, binary where there are two,
    and categories otherwise.

    Args:
        kinds: Of columns by name, in place of those that are found: "real", "positive", "count",
            "binary", "categorical" or "date".
        ignore: Names of columns that are left out, such as identifiers.
        label_column: The one that holds labels.
        table: In place of what is found, such as that of a run.

    Raises:
        ValueError: If there is no such kind.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    label_column: str | None = None
    table: Table | None = None

    def __post_init__(self) -> None:
        for name, kind in self.kinds.items():
            if kind not in KINDS:
                given = option("columns", f"{name}={kind}", python=f"kinds={{{name!r}: {kind!r}}}")
                raise ValueError(f"{given}: a column is {', '.join(KINDS)}")


def numbered_tables(
    parts: Mapping[str, Given], name: str, reading: TableReading | None, codes: Codes
) -> tuple[dict[str, Given], Table | None]:
    """Return parts with the numbers of their tables as x, and the table; None where x is none.

    Frames that hold numbers alone are arrays, unless a reading of tables is given.

    Args:
        parts: By what messages call them.
        name: What messages call all of them.
        reading: How they are read.
        codes: Numbers that stand for a missing value.

    Raises:
        ValueError: If a column is of none of the kinds, or is not there.
    """
    sheets = {where: _sheet(given["x"], where, reading) for where, given in parts.items()}
    found = {where: sheet.without(codes) for where, sheet in sheets.items() if sheet is not None}
    if len(found) < len(parts):
        _refuse_no_table(parts, found, name, reading)
        return dict(parts), None if reading is None else reading.table
    reading = reading or TableReading()
    table = reading.table or described(Sheet.joined([*found.values()]), name, reading)
    numbers = {}
    for where, sheet in found.items():
        if not sheet.num_rows:
            raise ValueError(f"{where}: a table without rows; give some")
        fields = {**parts[where], "x": table.encode(sheet, where)}
        if table.label_column in sheet.names and "labels" not in fields:
            fields["labels"] = _labels(sheet, str(table.label_column))
        numbers[where] = fields
    return numbers, table


def _sheet(values: Any, where: str, reading: TableReading | None) -> Sheet | None:
    is_frame = isinstance(values, (Sheet, Mapping)) or columns_of(values) is not None
    try:
        sheet = sheet_of(values) if is_frame else None
        is_array = sheet is not None and sheet is not values and sheet.is_numeric
        return None if reading is None and is_array else sheet
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _refuse_no_table(
    parts: Mapping[str, Given], found: Mapping[str, Any], name: str, reading: TableReading | None
) -> None:
    if reading is not None and reading.table is None:
        asked = {"columns": reading.kinds, "ignore": reading.ignore}
        first = next((key for key, value in asked.items() if value), "columns")
        given = option(first, python=f"table={reading}")
        raise ValueError(f"{given}: {name} holds no table with names of columns; leave it out")
    if found:
        other = next(where for where in parts if where not in found)
        raise ValueError(f"{name}: {other} holds no table, and another part does")


def _labels(sheet: Sheet, name: str) -> list[Any]:
    numbers = sheet.numbers(name)
    if bool((np.isnan(numbers) == sheet.missing(name)).all()):
        return [None if np.isnan(value) else value for value in numbers.tolist()]
    return [*sheet.texts(name)]


def described(sheet: Sheet, name: str, reading: TableReading) -> Table:
    """Return the columns of a table with the kind of each; constant ones are left out.

    Args:
        sheet: All rows.
        name: What messages call the table.
        reading: Kinds and columns that are given.

    Raises:
        ValueError: If a name is none of the table's, no column is left, or a column is not of the
            kind that is given, or of texts that nearly all differ.
    """
    _check_names(sheet, name, reading)
    apart = {*reading.ignore, reading.label_column}
    columns, constant = [], []
    for each in sheet.names:
        if each in apart:
            continue
        column = _column(sheet, each, name, reading.kinds.get(each))
        if column is None:
            constant.append(each)
        else:
            columns.append(column)
    if constant:
        few = ", ".join(map(repr, constant[:_SHOWN])) + ", ..." * (len(constant) > _SHOWN)
        warn(f"{name}: the same in all rows, or empty, and left out: {few}")
    if not columns:
        raise ValueError(f"{name}: no column is left to model; give one that differs among rows")
    return Table(tuple(columns), reading.label_column, (*reading.ignore, *constant))


def _check_names(sheet: Sheet, name: str, reading: TableReading) -> None:
    if not sheet.num_rows:
        raise ValueError(f"{name}: a table without rows; give some")
    label = () if reading.label_column is None else (reading.label_column,)
    asked = {"columns": [*reading.kinds], "ignore": reading.ignore, "label_column": label}
    for key, names in asked.items():
        if (wrong := next((each for each in names if each not in sheet.names), None)) is not None:
            listed = ", ".join(sheet.names[:20]) + ", ..." * (len(sheet.names) > 20)
            python = f"{'kinds' if key == 'columns' else key}: {wrong!r}"
            raise ValueError(
                f"{option(key, wrong, python=python)}: {name} has no column of that name: it has "
                f"{listed}"
            )


def _column(sheet: Sheet, name: str, where: str, kind: str | None) -> Column | None:
    """Return what a column is; None where all of its cells that are there are the same."""
    known = [text for text in sheet.texts(name) if text is not None]
    if len({*known}) < 2:
        return None
    numbers = sheet.numbers(name)
    seen = numbers[~np.isnan(numbers)]
    is_number = len(seen) == len(known)
    found = kind or (_of_numbers(seen) if is_number else _of_texts(known, name, where))
    column = Column(name, found)
    if found == "date":
        column = replace(column, start=_start(sheet, name, where))
    elif found == "categorical" or (found == "binary" and not _is_binary(seen, is_number)):
        column = replace(column, categories=_categories(known, name, where, found))
    elif found in ("real", "positive"):
        column = replace(column, whole=is_number and bool((seen == np.floor(seen)).all()))
    return column


def _is_binary(seen: np.ndarray, is_number: bool) -> bool:
    return is_number and {*seen.tolist()} <= {0.0, 1.0}


def _of_numbers(seen: np.ndarray) -> str:
    if _is_binary(seen, True):
        return "binary"
    num_different = len(np.unique(seen))
    if num_different <= min(_FEW_NUMBERS, len(seen) / _ROWS_EACH):
        return "binary" if num_different == 2 else "categorical"
    if not bool((np.isfinite(seen) & (seen >= 0) & (seen == np.floor(seen))).all()):
        return "real"
    near_zero = seen.std() >= _SPREAD * seen.mean()
    return "count" if near_zero and seen.max() <= _LARGEST_COUNT else "real"


def _of_texts(known: list[str], name: str, where: str) -> str:
    if dates(known) is not None:
        return "date"
    num_different = len({*known})
    if num_different == 2:
        return "binary"
    if num_different > max(_FEW_TEXTS, _IDENTIFIER * len(known)):
        raise ValueError(_why_so_many(known, name, where, num_different))
    return "categorical"


def _why_so_many(known: list[str], name: str, where: str, num_different: int) -> str:
    numbers = sum(number_of(text) == number_of(text) for text in known)
    comma = sum(number_of(text.replace(",", ".", 1)) == number_of(text.replace(",", ".", 1))
                for text in known)  # fmt: skip
    if comma == len(known):
        return (
            f"{where}, column {name!r}: numbers with a decimal comma, such as {known[0]!r}; write "
            "them with a point"
        )
    if numbers > len(known) / 2:
        other = next(text for text in known if number_of(text) != number_of(text))
        return (
            f"{where}, column {name!r}: {len(known) - numbers:,} of {len(known):,} cells are no "
            f"numbers, such as {other!r}; mend them, or leave them empty where they are missing"
        )
    ignore = option("ignore", name, python=f"ignore=({name!r},)")
    text = option("text_column", name, python=f"text=Reading(column={name!r})")
    kind = option("columns", f"{name}=categorical", python=f"kinds={{{name!r}: 'categorical'}}")
    return (
        f"{where}, column {name!r}: {num_different:,} different texts in {len(known):,} rows, such "
        f"as {known[0][:40]!r}: {ignore} leaves it out, {text} models its texts alone, {kind} "
        "takes them for categories"
    )


def _start(sheet: Sheet, name: str, where: str) -> str:
    texts = [text for text in sheet.texts(name) if text is not None]
    moments = dates(texts)
    if moments is None:
        raise ValueError(
            f"{where}, column {name!r}: {next(t for t in texts if dates([t]) is None)!r} is no "
            "date such as 2024-05-31 or 2024-05-31T12:00"
        )
    first = min(moment for moment in moments if moment is not None)
    whole = all(m is None or (m.hour, m.minute, m.second) == (0, 0, 0) for m in moments)
    return first.date().isoformat() if whole else first.isoformat(timespec="seconds")


def _categories(known: list[str], name: str, where: str, kind: str) -> tuple[str, ...]:
    different = {*known}
    as_numbers: Callable[[str], Any] = number_of
    is_number = all(number_of(text) == number_of(text) for text in different)
    found = sorted(different, key=as_numbers) if is_number else sorted(different)
    if kind == "binary" and len(found) != 2:
        raise ValueError(
            f"{where}, column {name!r}: {len(found)} different values, and binary ones are two"
        )
    return tuple(found)
