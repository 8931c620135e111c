"""The cells of a table as they are given, by column: of files, frames and dictionaries."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
from typing import Any

import numpy as np

from pyro_vae.datasets.values import columns_of, is_missing

__all__ = ["Sheet", "dates", "days_since", "is_missing_text", "number_of", "sheet_of"]

_MISSING = ("", "na", "n/a", "nan", "null", "<na>", "nat")
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?$")
_DAY = timedelta(days=1)
_AS_LIST = ("to_pylist", "to_list", "tolist")

_NO_CELLS = (list, tuple, dict, set, np.ndarray, bytes)
Cells = np.ndarray | list[str | None]
"""Numbers, float64 with NaN where one is missing; or texts, None where one is."""


class Sheet:
    """Cells by the names of columns, all of one length.

    Args:
        columns: By name; numbers, or texts.
        lines: The line of a file that each row ends in; None of what is no file.

    Raises:
        ValueError: If columns differ in length.
    """

    def __init__(self, columns: Mapping[str, Cells], lines: Sequence[int] | None = None) -> None:
        self._columns, self._lines = dict(columns), lines
        self.num_rows = len(next(iter(self._columns.values()), ()))
        for name, cells in self._columns.items():
            if len(cells) != self.num_rows:
                raise ValueError(f"column {name!r} has {len(cells)} rows, others {self.num_rows}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self._columns)

    @property
    def is_numeric(self) -> bool:
        """Whether no column holds texts."""
        return all(
            isinstance(cells, np.ndarray) or not any(cells) for cells in self._columns.values()
        )

    def place(self, row: int) -> str:
        """Return what messages call a row."""
        return f"row {row}" if self._lines is None else f"line {self._lines[row]}"

    def missing(self, name: str) -> np.ndarray:
        """Return which cells of a column are missing, ``[N]``."""
        cells = self._columns[name]
        if isinstance(cells, np.ndarray):
            return np.isnan(cells)
        return np.array([cell is None for cell in cells], bool)

    def texts(self, name: str) -> list[str | None]:
        """Return the cells of a column as texts; None where one is missing."""
        cells = self._columns[name]
        return _texts(cells) if isinstance(cells, np.ndarray) else cells

    def numbers(self, name: str) -> np.ndarray:
        """Return the cells of a column as numbers; NaN where one is missing, or none."""
        cells = self._columns[name]
        if isinstance(cells, np.ndarray):
            return cells
        return np.array([number_of(cell) for cell in cells], np.float64)

    @classmethod
    def joined(cls, sheets: Sequence[Sheet]) -> Sheet:
        """Return the rows of several sheets, of the columns that all have."""
        first, *others = sheets
        if not others:
            return first
        found: dict[str, Cells] = {}
        for name in first.names:
            if all(name in other.names for other in others):
                parts = [sheet._columns[name] for sheet in sheets]
                arrays = [part for part in parts if isinstance(part, np.ndarray)]
                if len(arrays) == len(parts):
                    found[name] = np.concatenate(arrays)
                else:
                    found[name] = [cell for sheet in sheets for cell in sheet.texts(name)]
        return cls(found)

    def without(self, codes: Any) -> Sheet:
        """Return the sheet with numbers missing that stand for a missing value."""
        if not codes.values:
            return self
        found: dict[str, Cells] = {}
        for name, cells in self._columns.items():
            numbers = self.numbers(name)
            holes = codes.holes(numbers)
            kept = ~holes | np.isnan(numbers)
            if isinstance(cells, np.ndarray):
                found[name] = np.where(holes, math.nan, cells)
            else:
                found[name] = [c if k else None for c, k in zip(cells, kept, strict=True)]
        return Sheet(found, self._lines)


def sheet_of(values: Any) -> Sheet | None:
    """Return the cells of a frame of pandas, polars or Arrow, or of a dictionary of columns.

    None of anything else.

    Raises:
        ValueError: If two columns have one name or differ in length, or a cell is a list.
    """
    if isinstance(values, Sheet):
        return values
    if isinstance(values, Mapping):
        columns = [(str(name), column) for name, column in values.items()]
    else:
        columns = columns_of(values) or []
    if not columns:
        return None
    names = [name for name, _ in columns]
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise ValueError(f"two columns are called {twice!r}; give each a name of its own")
    found = {}
    for name, column in columns:
        try:
            found[name] = cells_of(column)
        except ValueError as error:
            raise ValueError(f"column {name!r}: {error}") from None
    return Sheet(found)


def cells_of(column: Any) -> Cells:
    """Return a column of any kind as cells.

    Raises:
        ValueError: If a value is no cell, such as a list.
    """
    kind = getattr(getattr(column, "dtype", None), "kind", "")
    if kind in ("i", "u", "f") and isinstance(getattr(column, "dtype", None), np.dtype):
        return np.asarray(column, np.float64)
    method = next((name for name in _AS_LIST if hasattr(column, name)), None)
    if method is not None:
        values = getattr(column, method)()
    else:
        values = list(column) if isinstance(column, (list, tuple)) else np.asarray(column).tolist()
    known = [value for value in values if not is_missing(value)]
    if known and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in known):
        return np.array([math.nan if is_missing(v) else float(v) for v in values], np.float64)
    return [_text(value) for value in values]


def _text(value: Any) -> str | None:
    if is_missing(value):
        return None
    if isinstance(value, (datetime, date)):
        return value.isoformat().removesuffix("T00:00:00")
    if isinstance(value, _NO_CELLS):
        raise ValueError(f"{str(value)[:40]!r} is a {type(value).__name__}, and no cell of a table")
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        return _texts(np.array([value], np.float64))[0]
    text = str(value).strip()
    return None if is_missing_text(text) else text


def is_missing_text(text: str) -> bool:
    """Tell whether a cell stands for a missing value: empty, NA, N/A, NaN or null."""
    return text.strip().lower() in _MISSING


def number_of(text: str | None) -> float:
    """Return the number that a text is; NaN of any other, and of codes such as 007."""
    if text is None or re.match(r"[+-]?0\d", text) or "_" in text:
        return math.nan
    try:
        return float(text)
    except ValueError:
        return math.nan


def _texts(numbers: np.ndarray) -> list[str | None]:
    return [
        None if math.isnan(v) else str(int(v)) if v.is_integer() and abs(v) < 1e15 else repr(v)
        for v in numbers.tolist()
    ]


def dates(texts: Sequence[str | None]) -> list[datetime | None] | None:
    """Return texts as dates, in UTC where they say a zone; None where one is no date."""
    found: list[datetime | None] = []
    for text in texts:
        moment = None if text is None else _date(text)
        if text is not None and moment is None:
            return None
        found.append(moment)
    return found


def days_since(texts: Sequence[str | None], start: str) -> np.ndarray:
    """Return the number of days from a date to each; NaN where there is none."""
    first = datetime.fromisoformat(start)
    moments = [None if text is None else _date(text) for text in texts]
    return np.array([math.nan if m is None else (m - first) / _DAY for m in moments], np.float64)


def _date(text: str) -> datetime | None:
    if not _DATE.match(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is None else moment.astimezone(timezone.utc).replace(tzinfo=None)
