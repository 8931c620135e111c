"""Text in files: lines, a column of a table, a folder of documents."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path

from pyro_vae.datasets.containers import Given
from pyro_vae.datasets.images import is_image, visible, walk
from pyro_vae.datasets.names import split_names
from pyro_vae.datasets.text import Reading
from pyro_vae.files import reason
from pyro_vae.wording import option, warn

__all__ = [
    "TABLES",
    "TEXTS",
    "cells",
    "holds_texts",
    "is_smiles",
    "read_file",
    "read_folder",
    "read_smiles",
    "refuse_columns",
]

TEXTS = (".txt", ".text")
TABLES = (".csv", ".tsv")
MOLECULES = (".smi", ".smi.gz", ".smi.xz")
_DELIMITERS = ",;\t|"
_ENDS = re.compile("\r\n|\n|\r")
_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def read_file(path: Path, reading: Reading) -> Given:
    """Read the texts of a file, lines or a column of a table.

    Raises:
        ValueError: If it is no such file; if a column is named, and it is no table.
    """
    if path.suffix.lower() in TABLES:
        return read_table(path, reading)
    refuse_columns(path, reading)
    return read_lines(path)


def refuse_columns(path: Path, reading: Reading) -> None:
    """Refuse columns of what is no table.

    Raises:
        ValueError: If one is named.
    """
    for name, asked in (("text_column", reading.column), ("label_column", reading.label_column)):
        if asked is not None:
            raise ValueError(f"{option(name, asked)}: {path} is no table; leave it out")


def read_lines(path: Path) -> Given:
    """Read a file of one text a line; empty lines are left out, and counted in a warning.

    Raises:
        ValueError: If it is no text in UTF-8, or all lines are empty.
    """
    lines = _ENDS.split(read(path))
    lines = lines[:-1] if lines[-1] == "" else lines
    return {"x": _without_empty(lines, [*lines], path, "lines")}


def is_smiles(path: Path) -> bool:
    """Tell whether a file holds molecules, by its name."""
    return path.name.lower().endswith(MOLECULES)


def read_smiles(path: Path) -> tuple[list[str], list[int]]:
    """Read a file of one SMILES a line; return them and the number of each line, from 1.

    What follows the first blank of a line, such as a name, is left out, and so are empty lines,
    which are counted in a warning. The file may be compressed by gzip or xz.

    Raises:
        ValueError: If it is damaged or no text in UTF-8, or all lines are empty.
    """
    lines = _ENDS.split(read(path))
    lines = lines[:-1] if lines[-1] == "" else lines
    words = [(line.split(maxsplit=1) or [""])[0] for line in lines]
    kept = _without_empty(words, [*enumerate(words, 1)], path, "lines")
    return [word for _, word in kept], [number for number, _ in kept]


def read(path: Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: If it is none; names the line and the byte.
    """
    content = _content(path)
    mark = next((kind for mark, kind in _MARKS.items() if content.startswith(mark)), None)
    if mark is not None:
        raise ValueError(f"{path}: text in {mark}; save it as UTF-8")
    if (place := content.find(b"\0")) >= 0:
        line = content.count(b"\n", 0, place) + 1
        raise ValueError(
            f"{path}: no text: line {line} holds a zero byte, at byte {place}; give plain "
            "text in UTF-8"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The offset is that behind the byte order mark, where there is one.
        place = error.start + 3 * content.startswith(codecs.BOM_UTF8)
        line = content.count(b"\n", 0, place) + 1
        raise ValueError(
            f"{path}: no UTF-8: line {line}, byte {place} of the file is "
            f"0x{content[place]:02x}; save it as UTF-8, such as by iconv -f latin1 -t utf-8"
        ) from None


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        if path.suffix.lower() == ".gz":
            return gzip.decompress(content)
        return lzma.decompress(content) if path.suffix.lower() == ".xz" else content
    except (lzma.LZMAError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        said = reason(error)
        raise ValueError(f"{path}: truncated or corrupt ({said}); get it again") from None


def _without_empty(texts: list[str], kept: list, path: Path, what: str) -> list:
    """Return the members of a list whose texts are not empty; warns of how many are."""
    found = [value for text, value in zip(texts, kept, strict=True) if text.strip()]
    if not found:
        raise ValueError(f"{path}: no text in it: {_counted(len(texts), what)}; give some")
    if (num_empty := len(texts) - len(found)) > 0:
        warn(f"{path}: {num_empty:,} empty {what} of {len(texts):,} are left out")
    return found


def _counted(number: int, what: str) -> str:
    return f"{number:,} empty {what}" if number else f"no {what}"


# Tables -------------------------------------------------------------------------------------------


def read_table(path: Path, reading: Reading) -> Given:
    """Read the texts in a column of a table with a header, with their labels.

    Raises:
        ValueError: If there is no such column, or the file is no such table.
    """
    rows = cells(path)
    header = [name.strip() for name in rows[0][1]] if rows else []
    column, label_column = reading.column, reading.label_column
    if column is None:
        listed = ", ".join(header[:20]) or "no header"
        raise ValueError(
            f"{path}: a table; {option('text_column', python='text=Reading(column=...)')} "
            f"names the column of its texts, one of {listed}; without options of text it is read "
            "as a table"
        )
    wrong = next((line for line, row in rows[1:] if len(row) != len(header)), None)
    if wrong is not None:
        raise ValueError(
            f"{path}: the row that ends in line {wrong} has another number of cells than the "
            f"{len(header)} of the header; put text with commas into double quotes"
        )
    texts = _of_column(path, header, rows, column, "text_column")
    fields = {"x": _without_empty(texts, texts, path, "texts")}
    if label_column is not None:
        labels = _of_column(path, header, rows, label_column, "label_column")
        kept = [label.strip() or None for text, label in zip(texts, labels, strict=True)
                if text.strip()]  # fmt: skip
        fields["labels"] = kept
    return fields


def cells(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows of a table that are not empty, each with the number of its last line.

    Raises:
        ValueError: If it is no table of cells, or not UTF-8.
    """
    text = read(path)
    first = _ENDS.split(text, 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(_DELIMITERS, key=first.count)
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(
            f"{path}: no table of cells and commas at line {reader.line_num} ({error}); "
            "write it with Python's csv, pandas or a spreadsheet"
        ) from None
    finally:
        csv.field_size_limit(limit)


def _of_column(
    path: Path, header: list[str], rows: list[tuple[int, list[str]]], name: str, asked: str
) -> list[str]:
    if header.count(name) != 1:
        held = "two columns" if name in header else "no column"
        raise ValueError(
            f"{option(asked, name)}: {path} has {held} of that name: it has "
            f"{', '.join(header[:20])}"
        )
    place = header.index(name)
    return [row[place] for _, row in rows[1:]]


# Folders ------------------------------------------------------------------------------------------


def holds_texts(folder: Path) -> bool:
    """Tell whether a folder holds texts and no image."""
    names = walk(folder)
    return any(map(_is_text, names)) and not any(map(is_image, names))


def _is_text(name: str) -> bool:
    return Path(name).suffix.lower() in (*TEXTS, "")


def read_folder(folder: Path, reading: Reading) -> dict[str, Given]:
    """Read a folder of documents, one a file, by split; of "" where it is not split.

    Subfolders are labels, or splits with or without labels in them. The files ``train.txt``,
    ``valid.txt`` and ``test.txt`` alone are splits, too, of one text a line.

    Raises:
        ValueError: If there are documents both beside and inside subfolders, or a file is no text;
            if a column is named.
    """
    refuse_columns(folder, reading)
    inside = visible(folder)
    files = {_stem(path): path for path in inside if path.is_file() and _is_text(path.name)}
    folders = {path.name: path for path in inside if path.is_dir()}
    for found, read_part in ((files, read_lines), (folders, _documents)):
        parts = split_names([*found], str(folder))
        if parts is not None:
            return _split(folder, found, parts, read_part)
    return {"": _documents(folder)}


def _stem(path: Path) -> str:
    """Return the name of a split in that of a file: that of ``ptb.train.txt`` is ``train``."""
    return path.stem.rpartition(".")[2]


def _split(
    folder: Path,
    found: dict[str, Path],
    parts: dict[str, str],
    read_part: Callable[[Path], Given],
) -> dict[str, Given]:
    others = sorted(set(found) - set(parts.values()))
    if others:
        warn(f"{folder}: {', '.join(others)} beside {', '.join(parts.values())} is left out")
    return {part: read_part(found[name]) for part, name in parts.items()}


def _documents(folder: Path) -> Given:
    """Return the documents below a folder, in sorted order, with the subfolder of each."""
    names = sorted(name for name in walk(folder) if _is_text(name))
    others = sorted({Path(name).suffix for name in walk(folder) if not _is_text(name)})
    if not names:
        raise ValueError(f"{folder}: no texts in it; expected files such as a.txt")
    if others:
        warn(f"{folder}: files that end in {', '.join(others)} are left out")
    labels = [name.split("/")[0] if "/" in name else None for name in names]
    if any(labels) and not all(labels):
        first = next(filter(None, labels))
        raise ValueError(
            f"{folder}: texts both beside and inside subfolders ({first}, ...); subfolders "
            "are class labels: put every text into one, or none"
        )
    texts = [_ENDS.sub("\n", read(folder / name)).strip("\n") for name in names]
    fields = {"x": _without_empty(texts, texts, folder, "texts")}
    if labels[0] is not None:
        fields["labels"] = [
            label for text, label in zip(texts, labels, strict=True) if text.strip()
        ]
    return fields
