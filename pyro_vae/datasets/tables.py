"""A table: columns with names and kinds, as rows of numbers and back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from pyro_vae.datasets.sheets import Sheet, days_since
from pyro_vae.wording import warn

__all__ = ["KINDS", "Column", "Table"]

KINDS = ("real", "positive", "count", "binary", "categorical", "date")
_SHOWN = 8
_WIDTH = 60
_WRONG: dict[str, tuple[Any, str]] = {
    "positive": (lambda x: x <= 0, "positive numbers"),
    "count": (lambda x: (x < 0) | (x != np.floor(x)), "counts 0, 1, 2, ..."),
    "binary": (lambda x: (x != 0) & (x != 1), "0 and 1"),
}


@dataclass(frozen=True)
class Column:
    """One column of a table, and how its cells are numbers.

    Args:
        name: Its name.
        kind: One of ``KINDS``.
        categories: Those of a categorical column by number, and the two of a binary one; none of
            a binary column of zeros and ones.
        whole: Whether a real or positive column holds whole numbers alone, which are written as
            such.
        start: The first date of a column of dates, which are numbers of days since; in ISO format,
            with a time where the column has times.
    """

    name: str
    kind: str
    categories: tuple[str, ...] = ()
    whole: bool = False
    start: str = ""

    def __str__(self) -> str:
        shown = self.kind
        if self.categories:
            few = ", ".join(self.categories[:_SHOWN])
            few = few if len(few) <= _WIDTH else f"{few[: _WIDTH - 3]}..."
            shown += f", {few}" if len(self.categories) <= _SHOWN else f", {few}, ..."
            shown += f" ({len(self.categories)})" if len(self.categories) > _SHOWN else ""
        if self.start:
            shown += f", days since {self.start}"
        return f"{self.name}: {shown}"

    def numbers(self, sheet: Sheet, where: str) -> np.ndarray:
        """Return the column of a sheet as numbers, ``[N]`` float64, NaN where a cell is missing.

        Args:
            sheet: Has a column of this name.
            where: What messages call the table.

        Raises:
            ValueError: If a cell is of another kind, or a category is unknown; names its row.
        """
        if self.categories:
            return self._of_categories(sheet, where)
        if self.kind == "date":
            found = days_since(sheet.texts(self.name), self.start)
            self._refuse(sheet, where, np.isnan(found) & ~sheet.missing(self.name), "dates")
            return found
        found = sheet.numbers(self.name)
        self._refuse(sheet, where, np.isnan(found) & ~sheet.missing(self.name), "numbers")
        if self.kind in _WRONG:
            wrong, expected = _WRONG[self.kind]
            self._refuse(sheet, where, wrong(found) & ~np.isnan(found), expected)
        return found

    def _of_categories(self, sheet: Sheet, where: str) -> np.ndarray:
        places: dict[str | None, float] = {name: n for n, name in enumerate(self.categories)}
        places[None] = math.nan
        cells = sheet.texts(self.name)
        unknown = np.array([cell not in places for cell in cells], bool)
        few = ", ".join(self.categories[:_SHOWN]) + ", ..." * (len(self.categories) > _SHOWN)
        self._refuse(sheet, where, unknown, f"the categories {few}")
        return np.array([places[cell] for cell in cells], np.float64)

    def _refuse(self, sheet: Sheet, where: str, wrong: np.ndarray, expected: str) -> None:
        if not wrong.any():
            return
        row = int(np.flatnonzero(wrong)[0])
        held = "" if expected.startswith("the categories") else f" ({self.kind})"
        raise ValueError(
            f"{where}, column {self.name!r}: {sheet.place(row)} is "
            f"{sheet.texts(self.name)[row]!r}, and the column holds {expected}{held}; mend the "
            "cell, or leave it empty where it is missing"
        )

    def cells(self, numbers: np.ndarray) -> list[Any]:
        """Return numbers, ``[N]``, as cells: names, whole numbers, dates; None where missing."""
        return [None if math.isnan(value) else self._cell(value) for value in numbers.tolist()]

    def _cell(self, value: float) -> Any:
        if self.categories:
            return self.categories[min(max(round(value), 0), len(self.categories) - 1)]
        if self.kind == "date":
            return self._date(value)
        if self.whole or self.kind in ("count", "binary"):
            return round(value)
        # The shortest text that 32-bit floats read as the same number.
        return float(str(np.float32(value)))

    def _date(self, value: float) -> str:
        try:
            moment = datetime.fromisoformat(self.start) + timedelta(days=value)
        except OverflowError:
            return ""
        if "T" in self.start:
            return moment.isoformat(timespec="seconds")
        return (moment + timedelta(hours=12)).date().isoformat()


@dataclass(frozen=True)
class Table:
    """The columns of a table that a model is of, and those that it leaves alone.

    Args:
        columns: In the order of the numbers of a row.
        label_column: The one that holds labels; None without.
        left_out: Others that are known and not used: identifiers, constant columns.

    Raises:
        ValueError: If two columns have one name.
    """

    columns: tuple[Column, ...]
    label_column: str | None = None
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len({*self.names}) < len(self.columns):
            raise ValueError("columns: no two have one name")

    def __len__(self) -> int:
        return len(self.columns)

    def __repr__(self) -> str:
        return f"Table({len(self)} columns)"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column.name for column in self.columns)

    def encode(self, sheet: Sheet, where: str = "table") -> np.ndarray:
        """Return the rows of a sheet as numbers, ``[N, D]`` float64; the order of columns is free.

        Args:
            sheet: Its cells, by column.
            where: What messages call it.

        Raises:
            ValueError: If a column is missing, or a cell is of another kind.
        """
        held = sheet.names
        missing = [name for name in self.names if name not in held]
        if missing:
            raise ValueError(
                f"{where}: no column {_listed(missing)}; it has {_listed(held)}: name the columns "
                "as in training"
            )
        known = {*self.names, *self.left_out, self.label_column}
        if extra := [name for name in held if name not in known]:
            warn(f"{where}: {_listed(extra)}: not known from training, and left out")
        return np.stack([column.numbers(sheet, where) for column in self.columns], 1)

    def decode(self, rows: Any) -> dict[str, list[Any]]:
        """Return rows of numbers, ``[N, D]``, as cells by the names of columns.

        Categories have their names, counts are whole numbers, dates ISO texts, and None is missing.
        """
        numbers = np.asarray(rows, np.float64)
        return {
            column.name: column.cells(numbers[:, place])
            for place, column in enumerate(self.columns)
        }

    def to_json(self) -> str:
        """Return it as text, from which ``from_json`` makes it again."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Table:
        """Return the table that ``to_json`` wrote.

        Raises:
            ValueError: If it is none.
        """
        try:
            held = json.loads(text)
            columns = [
                Column(**{**column, "categories": tuple(column["categories"])})
                for column in held["columns"]
            ]
            return cls(tuple(columns), held["label_column"], tuple(held["left_out"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is no description of a table ({error!r})") from None


def _listed(names: Sequence[str]) -> str:
    few = ", ".join(map(repr, names[:_SHOWN]))
    return few + (f" and {len(names) - _SHOWN:,} others" if len(names) > _SHOWN else "")
