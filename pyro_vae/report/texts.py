"""Tables of texts, for the HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

__all__ = ["TextTable", "as_html", "cleaned"]


class TextTable(NamedTuple):
    """Texts in rows and named columns.

    Attributes:
        caption: What they are.
        columns: The name of each column.
        rows: Of as many texts each.
        num_printed: How many of the rows are for the terminal.
    """

    caption: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    num_printed: int


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
