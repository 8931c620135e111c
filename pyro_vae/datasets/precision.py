"""Warn about numbers that 32-bit floats cannot tell apart."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["lost_digits"]

_ELEMENTS = 2_000_000
_SHARE = 0.01
_STEPS = 1_000
_EXACT = 2**24  # up to it, 32-bit floats hold every whole number
_SHOWN = 5


def lost_digits(array: np.ndarray) -> str | None:
    """Say in which columns different values become one as 32-bit floats; None if in none.

    Programs compute in 32-bit floats, which hold seven digits: a time stamp in seconds has ten, and
    values that differ in the others alone are the same afterwards. Told are columns of whole
    numbers of which any become one, those that lose more than a hundredth of their different
    values, and those that are left with less than a thousand steps to a standard deviation.

    Args:
        array: ``[N, *event_shape]``, as given; some rows stand for all of large ones.

    Returns:
        One sentence with the columns, how many values they have before and after, and the cure.
    """
    rows = array[:: max(1, -(-array.size // _ELEMENTS))]
    columns = np.asarray(rows).reshape(len(rows), -1)
    if columns.dtype.itemsize < 4:
        return None
    places = np.flatnonzero(_is_coarse(columns))
    if not len(places):
        return None
    before, after = _num_distinct(columns[:, places]), _num_distinct(_short(columns[:, places]))
    shape = array.shape[1:]
    listed = ", ".join(
        f"{_place(place, shape)} ({num:,} different values become {left:,})"
        for place, num, left in list(zip(places, before, after, strict=True))[:_SHOWN]
    )
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return (
        f"32-bit floats cannot tell apart the values of column{'s' * (len(places) > 1)} "
        f"{listed}{more}: {_cure(columns[:, places])}, before the data are given"
    )


def _cure(columns: np.ndarray) -> str:
    """What keeps the digits: another unit of numbers that 32 bits hold as 0 or nearly, or a shift.

    Below ``tiny``, 32-bit floats have fewer digits.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        largest = np.nanmax(np.abs(columns.astype(np.float64)), axis=0, initial=0)
    if (largest < np.finfo(np.float32).tiny / np.finfo(np.float32).eps).all():
        return "multiply each such column in 64 bits, as in x[:, i] / x[:, i].std()"
    return "subtract an offset from each such column in 64 bits, as in x[:, i] - x[:, i].mean()"


def _is_coarse(columns: np.ndarray) -> np.ndarray:
    """Return which columns lose what tells their rows apart."""
    with np.errstate(invalid="ignore", over="ignore"):
        wide = columns.astype(np.float64)
        largest = np.nanmax(np.abs(wide), axis=0, initial=0)
        deviation = np.nanstd(np.where(np.isnan(wide).all(0), 0, wide), axis=0)
        step = np.spacing(np.float32(largest)).astype(np.float64)
        whole = (np.isnan(wide) | (wide == np.floor(wide))).all(0)
        exact = whole & (largest <= _EXACT)
        few_steps = (deviation > 0) & (step > deviation / _STEPS) & ~exact
    before, after = _num_distinct(columns), _num_distinct(_short(columns))
    merged = before - after
    few_steps &= before > 1  # the deviation of a constant is its rounding
    return few_steps | (whole & (merged > 0)) | (merged > np.maximum(1, _SHARE * before))


def _short(columns: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return columns.astype(np.float32)


def _num_distinct(columns: np.ndarray) -> np.ndarray:
    """Return how many different values each column has."""
    ordered = np.sort(columns, axis=0)
    with np.errstate(invalid="ignore"):
        later = ordered[1:] != ordered[:-1]
    known = np.isfinite(ordered[1:]) if ordered.dtype.kind == "f" else True
    return (later & known).sum(0) + 1


def _place(place: Any, shape: tuple[int, ...]) -> str:
    index = tuple(int(i) for i in np.unravel_index(place, shape))
    return str(index[0]) if len(index) == 1 else str(index)
