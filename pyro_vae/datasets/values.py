"""Convert a user's numbers (masked, nullable, objects) to one array in which NaN is missing."""

from __future__ import annotations

import decimal
import math
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.masked import MaskedTensor

from pyro_vae import memory

__all__ = ["Codes", "chunks", "columns_of", "is_missing", "is_picture", "num_axes", "numeric"]

_CHUNK_BYTES = 2**24
_NUMERIC = "biuf"


class Codes:
    """Numbers that stand for a missing value, such as -9999, and which of them were met.

    Args:
        values: the numbers.

    Raises:
        ValueError: one that is no number.
    """

    def __init__(self, values: Sequence[float] | float = ()) -> None:
        given: list[Any] = list(np.atleast_1d(np.asarray(values, object)))
        wrong = [value for value in given if not isinstance(value, (numbers.Real, np.number))]
        if wrong:
            raise ValueError(f"missing={wrong[0]!r}: give numbers that stand for missing values")
        self.values: tuple[float, ...] = tuple(value for value in given if not math.isnan(value))
        self._met: set[float] = set()

    def holes(self, chunk: np.ndarray) -> np.ndarray:
        """Where in some rows a code stands, compared in the rows' own type."""
        holes = np.zeros(chunk.shape, bool)
        for value in self.values:
            as_stored = _in_type(value, chunk.dtype)
            if as_stored is not None:
                found = chunk == as_stored
                if found.any():
                    self._met.add(value)
                    holes |= found
        return holes

    @property
    def unmet(self) -> list[float]:
        """Which codes stood nowhere."""
        return [value for value in self.values if value not in self._met]


def _in_type(value: float, dtype: np.dtype) -> Any:
    """The code as the type holds it; None where it cannot."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(value)
    if dtype.kind == "b" or value != int(value):
        return None
    limits = np.iinfo(dtype)
    return dtype.type(int(value)) if limits.min <= value <= limits.max else None


def chunks(array: np.ndarray, size: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of rows of bounded size, so that mapped files are read without filling memory."""
    step = max(1, (size or _CHUNK_BYTES) * len(array) // max(1, array.nbytes))
    for begin in range(0, len(array), step):
        yield begin, (rows := array[begin : begin + step])
        memory.touched(rows.nbytes)


def numeric(values: Any, where: str, codes: Codes) -> np.ndarray:
    """The values as an array of booleans, integers or floats; a view where possible.

    Masked values of numpy, None, pandas' NA, and codes that stand for a missing value become NaN,
    for which integers become floats. Sparse rows are made dense, and the columns of a table of
    pandas, polars or Arrow, or of a structured array, stand side by side.

    Args:
        values: whatever numpy makes an array of, a tensor, sparse rows, or a table.
        where: what messages call it.
        codes: what stands for a missing value.

    Raises:
        ValueError: text, dates, complex numbers or objects; rows of different lengths.
        TooLargeError: sparse rows that do not fit in memory.
    """
    values = _of_masked(values)
    columns = columns_of(values)
    if columns is not None:
        return _side_by_side(columns, where, codes)
    array = _array(_dense(values, where), where)
    if array.dtype.names:
        return _side_by_side([(name, array[name]) for name in array.dtype.names], where, codes)
    mask = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
    if mask is not None:
        array = np.asarray(array)
    if array.dtype.kind == "O":
        array = _of_objects(array, where, mask)
    if array.dtype.kind not in _NUMERIC:
        raise ValueError(f"{where}: dtype {array.dtype} is not numeric; {_cure(array.dtype)}")
    return _with_holes(array, mask, codes)


def _cure(dtype: np.dtype) -> str:
    cures = {
        "M": "give dates as numbers, such as days since the first: (x - x.min()) / "
        "numpy.timedelta64(1, 'D')",
        "m": "give times as numbers of a unit: x / numpy.timedelta64(1, 's')",
        "c": "give real and imaginary parts as numbers of their own: x.view(float)",
    }
    return cures.get(dtype.kind, "give an array of integers or floats")


def _array(values: Any, where: str) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    if isinstance(values, Tensor):
        try:
            return values.resolve_conj().resolve_neg().numpy()
        except TypeError:  # bfloat16 and smaller floats, which numpy has not
            return values.float().numpy()
    if isinstance(values, (list, tuple)) and any(isinstance(v, np.ma.MaskedArray) for v in values):
        return np.ma.stack(values)
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError):
        raise ValueError(f"{where}: rows of different lengths; give a rectangular array") from None


def _of_masked(values: Any) -> Any:
    """A masked tensor of torch as a masked array of numpy, which hides where the other shows."""
    if not isinstance(values, MaskedTensor):
        return values
    hidden = ~values.get_mask().cpu().numpy()
    return np.ma.masked_array(values.get_data().detach().cpu().numpy(), hidden)


def _dense(values: Any, where: str) -> Any:
    """Tensors on the CPU, and sparse rows with their zeros."""
    is_tensor = isinstance(values, Tensor)
    if is_tensor and (values.is_nested or values.is_meta):
        kind = "nested tensor, whose rows differ in length" if values.is_nested else "meta tensor"
        raise ValueError(f"{where}: a {kind}; give a rectangular tensor with values")
    is_sparse = is_tensor and values.layout is not torch.strided
    if is_sparse or hasattr(values, "toarray"):
        shape = tuple(values.shape)
        itemsize = 8 if is_sparse else values.dtype.itemsize
        memory.refuse_beyond(
            math.prod(shape) * itemsize,
            f"{where}: sparse rows of shape {shape} with their zeros",
            "give fewer rows or columns, or write them to a .npy file, which stays on disk",
        )
        values = values.to_dense() if is_sparse else values.toarray()
    if is_tensor:
        values = values.detach()
        values = (values.dequantize() if values.is_quantized else values).cpu()
    return values


def columns_of(values: Any) -> list[tuple[str, Any]] | None:
    """Return the columns of a table by name; None of anything else."""
    if isinstance(values, (np.ndarray, Tensor)):
        return None
    if hasattr(values, "iloc") and hasattr(values, "columns"):  # pandas
        return [(str(name), values.iloc[:, n]) for n, name in enumerate(values.columns)]
    if hasattr(values, "get_columns"):  # polars
        return [(column.name, column) for column in values.get_columns()]
    if hasattr(values, "column_names") and hasattr(values, "itercolumns"):  # Arrow
        return list(zip(values.column_names, values.itercolumns(), strict=True))
    return None


def _side_by_side(columns: list[tuple[str, Any]], where: str, codes: Codes) -> np.ndarray:
    if not columns:
        raise ValueError(f"{where}: a table without columns")
    arrays = [numeric(column, f"{where}, column {name!r}", codes) for name, column in columns]
    for (name, _), array in zip(columns, arrays, strict=True):
        if array.ndim != 1:
            raise ValueError(f"{where}, column {name!r}: more than one number a row")
    return np.stack(arrays, 1)


def is_missing(value: Any) -> bool:
    """Whether Python's value stands for none: None, NaN, or pandas' NA and NaT."""
    if value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and math.isnan(value)


def _of_objects(array: np.ndarray, where: str, mask: np.ndarray | None) -> np.ndarray:
    """Python's own numbers, and columns of pandas, as one numpy type."""
    hidden = np.zeros(array.shape, bool) if mask is None else mask
    values = list(array.flat)
    for place, (value, is_hidden) in enumerate(zip(values, hidden.flat, strict=True)):
        if is_hidden or is_missing(value):
            values[place] = None
        elif not isinstance(value, (numbers.Real, np.bool_, decimal.Decimal)):
            raise ValueError(_not_a_number(value, np.unravel_index(place, array.shape), where))
    if None in values:
        numbers_ = np.array([math.nan if v is None else float(v) for v in values])
    else:
        found = np.array(values)
        numbers_ = found.astype(float) if found.dtype.kind == "O" else found
    return numbers_.reshape(array.shape)


def _not_a_number(value: Any, index: Sequence[Any], where: str) -> str:
    if isinstance(value, (list, tuple, np.ndarray, Tensor)):
        return f"{where}: rows of different lengths; give a rectangular array"
    if not index:
        return f"{where}: one {type(value).__name__}, which holds no rows; give an array"
    at = ", ".join(str(int(n)) for n in index)
    shown = " ".join(repr(value).split())
    shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
    return (
        f"{where}: dtype object is not numeric: {shown} at index ({at}) is "
        f"{type(value).__name__}; give numbers, and None or NaN where one is missing"
    )


def _with_holes(array: np.ndarray, mask: np.ndarray | None, codes: Codes) -> np.ndarray:
    """The array with NaN where it is masked, or where a code stands for a missing value."""
    if mask is None and not codes.values:
        return array

    def holes(begin: int, rows: np.ndarray) -> np.ndarray:
        coded = codes.holes(rows)
        return coded if mask is None else coded | mask[begin : begin + len(rows)]

    if array.ndim == 0 or not any(holes(*block).any() for block in chunks(array)):
        return array
    small = array.dtype.kind in "biu" and array.dtype.itemsize <= 2
    dtype = array.dtype if array.dtype.kind == "f" else np.dtype("f4" if small else "f8")
    filled = memory.room(array.shape, dtype)
    for begin, rows in chunks(array):
        filled[begin : begin + len(rows)] = rows
        filled[begin : begin + len(rows)][holes(begin, rows)] = math.nan
    return filled


def num_axes(values: Any) -> int:
    """How many axes an array, a picture or a nested list has; 0 of anything else."""
    known = getattr(values, "ndim", None)
    if isinstance(known, int):
        return known
    if isinstance(values, (list, tuple)):
        return 1 + (num_axes(values[0]) if len(values) else 0)
    shape = getattr(values, "shape", None)
    return len(shape) if isinstance(shape, tuple) else 2 * is_picture(values)


def is_picture(value: Any) -> bool:
    """Whether it is one of PIL's images, without importing PIL."""
    return type(value).__module__.startswith("PIL.") and hasattr(value, "getbands")
