"""Tables in files: of commas or tabs, Parquet, Feather and Excel."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.datasets.sheets import Cells, Sheet, is_missing_text, number_of, sheet_of
from pyro_vae.datasets.text_files import TABLES, cells
from pyro_vae.files import reason, show
from pyro_vae.wording import warn

__all__ = ["FRAMES", "read_sheet"]

FRAMES = (".parquet", ".feather", ".xlsx")
_NEEDED = "pip install 'pyro-vae[tables]'"


def read_sheet(path: Path) -> Sheet:
    """Read the cells of a table with a header.

    Raises:
        ValueError: If the file is no such table: rows of several lengths, two columns of one name,
            another separator; if it is not UTF-8; if the package that reads it is not installed.
    """
    return _of_lines(path) if path.suffix.lower() in TABLES else _of_frame(path)


def _of_lines(path: Path) -> Sheet:
    rows = cells(path)
    if not rows:
        raise ValueError(f"{path}: empty; give a table with a header and rows")
    header = [name.strip() for name in rows[0][1]]
    if len(rows) == 1:
        raise ValueError(f"{path}: a header, {', '.join(header[:8])}, and no row below it")
    _check_rows(path, header, rows)
    lines = [line for line, _ in rows[1:]]
    columns = zip(*(row for _, row in rows[1:]), strict=True)
    found = {name: _cells(column) for name, column in zip(header, columns, strict=True)}
    if "" in found:
        warn(f"{path}: the first column has no name, as an index of rows: left out")
        del found[""]
    return Sheet(found, lines)


def _check_rows(path: Path, header: list[str], rows: list[tuple[int, list[str]]]) -> None:
    wrong = next(((line, row) for line, row in rows if len(row) != len(header)), None)
    if wrong is not None:
        raise ValueError(
            f"{path}: line {wrong[0]} has {len(wrong[1])} cells, the header {len(header)}; put "
            "text with commas into double quotes, and write as many cells in each row"
        )
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}: two columns are called {twice!r}; give each a name of its own")
    if "" in header[1:]:
        place = header.index("", 1) + 1
        raise ValueError(f"{path}: column {place} has no name in the header; give it one")
    if len(header) == 1 and (mark := _other_separator(header[0])):
        raise ValueError(
            f"{path}: one column, called {header[0][:60]!r}: part columns by a comma, semicolon or "
            f"tab in place of {mark} (a .tsv file by tabs alone)"
        )
    if number_of(header[0]) == number_of(header[0]) and all(
        number_of(name) == number_of(name) for name in header
    ):
        raise ValueError(
            f"{path}: no header: the first line holds numbers alone, {', '.join(header[:4])}; "
            "write the names of the columns above it"
        )


def _other_separator(name: str) -> str:
    found = next((mark for mark in ",;|:" if mark in name), None)
    return repr(found) if found else "blanks" if len(name.split()) > 2 else ""


def _cells(column: Sequence[str]) -> Cells:
    texts = [None if is_missing_text(cell) else cell.strip() for cell in column]
    numbers = np.array([number_of(text) for text in texts], np.float64)
    missing = np.array([text is None for text in texts], bool)
    return numbers if bool((np.isnan(numbers) == missing).all()) and not missing.all() else texts


def _of_frame(path: Path) -> Sheet:
    try:
        frame = _read(path)
    except ImportError as error:
        raise ValueError(
            f"{show(path)}: {path.suffix} is read by pandas, which is not there or needs "
            f"{error.name or 'a package'}: {_NEEDED}, or write a .csv file"
        ) from None
    except Exception as error:  # pandas and its readers raise a dozen kinds for a damaged file
        raise ValueError(
            f"{show(path)}: truncated or corrupt ({reason(error)}); write it again"
        ) from None
    try:
        found = sheet_of(frame)
    except ValueError as error:
        raise ValueError(f"{show(path)}: {error}") from None
    if found is None or not found.num_rows:
        raise ValueError(f"{show(path)}: a table without columns or rows; give some")
    return found


def _read(path: Path) -> Any:
    pandas: Any = importlib.import_module("pandas")
    readers = {
        ".parquet": pandas.read_parquet, ".feather": pandas.read_feather, ".xlsx": pandas.read_excel
    }  # fmt: skip
    return readers[path.suffix.lower()](path)
