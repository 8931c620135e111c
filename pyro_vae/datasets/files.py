"""A user's own files: .npy and .npz arrays, texts, molecules, and folders of images or texts."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pyro_vae import memory
from pyro_vae.datasets import archives
from pyro_vae.datasets.arrays import from_arrays
from pyro_vae.datasets.axes import Axes, as_images
from pyro_vae.datasets.containers import Given
from pyro_vae.datasets.data import Dataset
from pyro_vae.datasets.images import read_images, visible
from pyro_vae.datasets.names import parts_by_name, split_names
from pyro_vae.datasets.overlap import warn_of_shared_rows
from pyro_vae.datasets.storage import as_pixels
from pyro_vae.datasets.table_files import FRAMES, read_sheet
from pyro_vae.datasets.table_kinds import TableReading
from pyro_vae.datasets.text import Reading, no_texts, sound
from pyro_vae.datasets.text_files import (
    TABLES,
    TEXTS,
    holds_texts,
    is_smiles,
    read_file,
    read_folder,
    read_smiles,
    refuse_columns,
)
from pyro_vae.fields import KNOWN, meant
from pyro_vae.files import show
from pyro_vae.wording import option

__all__ = ["load_file", "load_folder"]


def load_file(
    path: Path,
    *,
    missing: Sequence[float] = (),
    axes: Axes = as_images,
    apart: Collection[str] = (),
    text: Reading | None = None,
    table: TableReading | None = None,
) -> Dataset:
    """Load a file of numbers, texts, molecules or a table; see `load` for what each may hold."""
    suffix = path.suffix.lower()
    if suffix in FRAMES or (suffix in TABLES and _is_no_text(text)):
        columns = _of_columns(text, table)
        return from_arrays(read_sheet(path), name=path.name, missing=missing, table=columns)
    if table is not None and table.table is None:
        given = option("columns" if table.kinds else "ignore", python=f"table={table}")
        raise ValueError(f"{given}: {path} is read as no table with names; leave it out")
    if is_smiles(path) or suffix in (*TEXTS, *TABLES):
        if missing:
            raise ValueError(f"missing={missing[0]:g}: {path} holds texts, which have none")
        reading = text or Reading()
        if is_smiles(path):
            return _of_smiles(path, reading)
        return from_arrays(read_file(path, reading), name=path.name, text=reading)
    if suffix not in (".npy", ".npz"):
        raise ValueError(
            f"{path}: expected a .npy or .npz file of numbers, a .txt, .csv or .tsv file of text, "
            "a .smi file of molecules, a .csv, .tsv, .parquet, .feather or .xlsx file of a table, "
            "or a folder of images or texts; numpy.save writes the first from any array"
        )
    arrays = _arrays(path, suffix)
    parts = {"": arrays} if suffix == ".npy" else _npz_fields(path, arrays, apart)
    if axes is as_images:
        pixels = as_pixels({part: fields["x"] for part, fields in parts.items()})
        parts = {part: {**fields, "x": pixels[part]} for part, fields in parts.items()}
    found = from_arrays(
        parts.get("", parts), name=path.name, missing=missing, axes=axes, text=text, table=table
    )
    if "" not in parts:
        warn_of_shared_rows(found)
    return found


def _is_no_text(text: Reading | None) -> bool:
    """Whether nothing is said of how texts are read, but for the column of labels."""
    return text is None or replace(text, label_column=None) == Reading()


def _of_columns(text: Reading | None, table: TableReading | None) -> TableReading:
    label_column = None if text is None else text.label_column
    reading = table or TableReading()
    return reading if label_column is None else replace(reading, label_column=label_column)


def _of_smiles(path: Path, reading: Reading) -> Dataset:
    """Load molecules, which are checked by line, before their rows are numbered."""
    refuse_columns(path, reading)
    reading = replace(reading, symbols=reading.symbols or "smiles")
    texts, lines = read_smiles(path)
    given = sound({"x": texts}, path.name, reading, lambda row: f"line {lines[row]}")
    return from_arrays(given, name=path.name, text=replace(reading, invalid="keep"))


_STARTS = {
    ".npy": b"\x93NUMPY",
    ".npz": b"PK",
    "a PNG image": b"\x89PNG",
    "a JPEG image": b"\xff\xd8\xff",
    "an HDF5 file": b"\x89HDF",
    "compressed by gzip": b"\x1f\x8b",
    "a page of the web, such as an error of a download": b"<",
}
_LONGEST = max(map(len, _STARTS.values()))


def _arrays(path: Path, suffix: str) -> dict[str, np.ndarray]:
    read = _read_npy if suffix == ".npy" else _read_npz
    with path.open("rb") as file:
        start = file.read(_LONGEST)
    if not start.startswith(_STARTS[suffix]):
        what = next((kind for kind, first in _STARTS.items() if start.startswith(first)), None)
        found = f"starts with {start!r}" if start else "is empty"
        mend = "save the array again" if what is None else f"by its contents it is {what}"
        mend += f": name it so, as in {path.stem}{what}" if what in (".npy", ".npz") else ""
        raise ValueError(f"{path}: not a {suffix} file, it {found}; {mend}")
    try:
        # A hostile header can overflow numpy's own size arithmetic, which only warns.
        with np.errstate(over="ignore"):
            return read(path)
    except memory.TooLargeError:
        raise
    except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged file
        raise ValueError(_damage(path, error)) from None


def _damage(path: Path, error: Exception) -> str:
    reason = reason_of(error)
    if "bject" in reason and ("llow_pickle" in reason or "memory-mapped" in reason):
        return (
            f"{path}: contains pickled objects, which are never loaded: "
            "save it as a plain numeric array"
        )
    if isinstance(error, MemoryError):
        return f"{path}: its header claims more data than fit in memory ({reason}); save it again"
    return f"{path}: truncated or corrupt ({reason}); save the array again"


def _read_npy(path: Path) -> dict[str, np.ndarray]:
    # Mapping first, whatever the size: the header's claim is then held against the file's length
    # before anything is allocated.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.nbytes <= memory.MAPPED_BYTES:
        return {"x": np.array(array)}
    _warn_of_order(path, array)
    return {"x": memory.mapped(array)}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    return archives.arrays(path)


def _warn_of_order(path: Path, array: np.ndarray) -> None:
    warnings.warn(
        f"{path.name} ({array.nbytes / 2**30:.1f} GiB) stays on disk and is split in file order "
        "(first 80 % training, last 10 % test): shuffle its rows once if they are sorted",
        stacklevel=6,
    )


def _npz_fields(
    path: Path, arrays: dict[str, np.ndarray], apart: Collection[str]
) -> dict[str, Given]:
    """The fields of each split; of "" where the names are not those of splits."""
    parts = parts_by_name(arrays, str(path))
    if "" in parts:
        names = {field: name for field, name in parts[""].items() if field in KNOWN}
        others = [name for name in arrays if name not in {*names.values(), *apart}]
        if "x" not in names and len(others) == 1:
            names["x"] = others[0]
        if "x" not in names:
            raise ValueError(
                f"{path}: holds {', '.join(arrays) or 'no arrays'}; expected train, validation "
                f"and test, or x (images, data) with y (labels), {', '.join([*KNOWN][2:])}, or a "
                "single array"
            )
        if isinstance(arrays[names["x"]], np.memmap):
            _warn_of_order(path, arrays[names["x"]])
        parts = {"": names}
    used = {name for names in parts.values() for name in names.values()}
    _warn_of_others(path, arrays, used, apart)
    return {
        part: {field: arrays[name] for field, name in names.items()}
        for part, names in parts.items()
    }


def _warn_of_others(
    path: Path, arrays: Collection[str], used: set[str], apart: Collection[str]
) -> None:
    others = [name for name in arrays if name not in {*used, *apart}]
    if others:
        asked = next(filter(None, map(meant, others)), "")
        warnings.warn(
            f"{path.name}: {', '.join(others)} beside {', '.join(sorted(used))} is left out{asked}",
            stacklevel=6,
        )


def load_folder(folder: Path, text: Reading | None = None) -> Dataset:
    """Load a folder of images or texts, with its subfolders as labels or as splits."""
    place = folder
    while len(inside := visible(place)) == 1 and inside[0].is_dir():
        place = inside[0]  # such as an archive makes: pets/pets/cat
    if holds_texts(place):
        return _of_texts(place, folder.resolve().name, text or Reading())
    if text is not None:
        raise no_texts(text, show(folder))
    folders = [path.name for path in inside if path.is_dir()]
    parts = split_names(folders, str(place))
    if parts is None:
        return from_arrays(_of_images(place), name=folder.resolve().name)
    others = sorted(set(folders) - set(parts.values()))
    if others:
        warnings.warn(
            f"{place}: {', '.join(others)} beside {', '.join(parts.values())} is left out",
            stacklevel=4,
        )
    splits = {part: _of_images(place / name) for part, name in parts.items()}
    found = from_arrays(splits, name=folder.resolve().name)
    warn_of_shared_rows(found)
    return found


def _of_texts(folder: Path, name: str, reading: Reading) -> Dataset:
    parts = read_folder(folder, reading)
    found = from_arrays(parts.get("", parts), name=name, text=reading)
    if "" not in parts:
        warn_of_shared_rows(found)
    return found


def _of_images(folder: Path) -> Given:
    x, labels = read_images(folder)
    return {"x": x} if labels is None else {"x": x, "labels": labels}


def reason_of(error: Exception) -> str:
    """An exception's text on one short line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
