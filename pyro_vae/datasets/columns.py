"""Read what stands beside x in a user's data, each field by rules of its own: a line of a table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pyro_vae.datasets.precision import lost_digits
from pyro_vae.datasets.storage import is_mapped
from pyro_vae.datasets.values import Codes, chunks, numeric
from pyro_vae.memory import room

__all__ = ["check_alike", "column"]

_OWN = ("rows", "fields", "names", "tensors", "replace")  # what else ``Data`` has by name


def column(field: str, values: Any, x: np.ndarray, where: str) -> np.ndarray:
    """One field beside x as an array `[N, ...]`; labels are read over all parts at once.

    Args:
        field: its name.
        values: as given.
        x: the rows, `[N, *event_shape]`.
        where: what messages call the rows.

    Raises:
        ValueError: another number of rows, or values that the field does not have.
    """
    if field in _OWN:
        raise ValueError(f"{where}: no field can be called {field!r}; give it another name")
    where = f"{field} of {where}"
    try:
        array = numeric(values, where, Codes())
    except ValueError as error:
        raise ValueError(f"{error}; or leave {field} out") from None
    shape, read = _READ.get(field, ("(N, ...)", _numbers))
    if array.shape[:1] != (len(x),) or (array.ndim > 1 and "..." not in shape):
        expected = shape.replace("N", str(len(x)))
        raise ValueError(f"{where}: shape {array.shape}, expected {expected}: one for each row")
    return read(array, x, where)


def check_alike(name: str, parts: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Refuse fields that parts have in another shape, or only some of them.

    Weights, which training alone needs, may be those of some.

    Raises:
        ValueError: if there is such a field; names it.
    """
    for field in dict.fromkeys(field for part in parts.values() for field in part):
        shapes = {w: part[field].shape[1:] for w, part in parts.items() if field in part}
        if len(shapes) < len(parts) and field != "weights":
            raise ValueError(f"{name}: {field} for some splits only; give all three or none")
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{where} {shape}" for where, shape in shapes.items())
            of = "" if field == "x" else f" of their {field}"
            raise ValueError(
                f"{name}: the splits differ in shape{of}: {listed}; make them the same"
            )


def _refuse(array: np.ndarray, wrong: Callable[[Any], Any], where: str, expected: str) -> None:
    """Refuse values that are wrong, and name the row of the first."""
    for begin, rows in chunks(array):
        if (found := wrong(rows)).any():
            row, *_ = place = tuple(np.argwhere(found)[0])
            raise ValueError(f"{where}: {rows[place]:g} at row {begin + row}, expected {expected}")


def _weights(array: np.ndarray, x: np.ndarray, where: str) -> np.ndarray:
    array = array.astype(np.float32)
    expected = "finite numbers >= 0; 0 leaves a row out of training"
    _refuse(array, lambda rows: ~(np.isfinite(rows) & (rows >= 0)), where, expected)
    if not array.any():
        raise ValueError(f"{where}: all are 0, which trains nothing; give some > 0")
    return array


def _mask(array: np.ndarray, x: np.ndarray, where: str) -> np.ndarray:
    """True or False for each row or value; of the shape of x where it has as many values."""
    _refuse(array, lambda rows: (rows != 0) & (rows != 1), where, "True or False")
    return array.astype(bool).reshape(x.shape if array.size == x.size else array.shape)


def _numbers(array: np.ndarray, x: np.ndarray, where: str) -> np.ndarray:
    """Numbers of any shape: floats of 32 bits, whole numbers, booleans; a mapped file as it is."""
    expected = "finite numbers: fill it in, and tell a program which are known by another field"
    _refuse(array, lambda rows: ~np.isfinite(rows), where, expected)
    if array.dtype.kind == "f" and (lost := lost_digits(array)) is not None:
        warnings.warn(f"{where}: {lost}", stacklevel=5)
    return array if is_mapped(array) else array.astype(_KEPT.get(array.dtype.kind, np.int64))


def _covariates(array: np.ndarray, x: np.ndarray, where: str) -> np.ndarray:
    """Numbers that networks are given: floats, whatever they are."""
    if array.dtype.kind != "f":
        filled = room(array.shape, np.dtype("f4"))
        for begin, rows in chunks(array):
            filled[begin : begin + len(rows)] = rows
        array = filled
    return _numbers(array, x, where)


_KEPT = {"f": np.float32, "b": np.bool_}
_READ: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray, str], np.ndarray]]] = {
    "weights": ("(N,)", _weights),
    "mask": ("(N, ...)", _mask),
    "covariates": ("(N, ...)", _covariates),
}
"""The shape of a field and what reads it; ``_numbers`` reads every other."""
