"""Texts as tables: for the terminal, where each is one line, and for the HTML page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from pyro_vae.terminal import on_one_line

__all__ = ["TextTable", "as_html", "as_lines", "cleaned"]

_WIDTH = 100


class TextTable(NamedTuple):
    """Texts in rows and named columns.

    Attributes:
        caption: What they are.
        columns: The name of each column.
        rows: Of as many texts each.
    """

    caption: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]


def as_lines(table: TextTable, *, num_rows: int) -> Iterator[str]:
    """Yield the first rows for the terminal: a line for each text, which is cut where it is long.

    Args:
        table: The texts.
        num_rows: How many rows.
    """
    yield f"{table.caption}:"
    width = max(map(len, table.columns))
    for row in table.rows[:num_rows]:
        for name, text in zip(table.columns, row, strict=True):
            line = on_one_line(text)
            cut = f"{line[: _WIDTH - 3]}..." if len(line) > _WIDTH else line
            yield f"  {name:<{width}}  {cut}".rstrip()


def as_html(table: TextTable) -> str:
    """Return the table for the page; text runs in the direction of its own script."""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    caption = f"<figcaption>{escape(table.caption)}</figcaption>"
    return f'<figure><table class="texts">\n<tr>{head}</tr>\n{rows}\n</table>{caption}</figure>'


def _cell(text: str) -> str:
    return f'<td dir="auto">{escape(cleaned(text))}</td>'


def cleaned(text: str) -> str:
    """Return text without the control characters that no page may hold."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", text)
