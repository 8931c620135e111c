"""How arrays are stored: the levels that they take, and the smallest type that holds them."""

from __future__ import annotations

import itertools
import math
import mmap
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.datasets.axes import CHANNELS
from pyro_vae.datasets.precision import lost_digits
from pyro_vae.datasets.values import chunks
from pyro_vae.memory import room

__all__ = ["as_pixels", "is_mapped", "stored_as", "tensor"]

_CHUNK_BYTES = 2**24
_MOST_PIXEL_LEVELS = 2**16 - 1
_DISTINCT = 0.25
_EXACT = 2**24  # up to which float32 holds every integer
_FAR_FROM_TINY = 100  # below the smallest numbers, 32-bit floats have fewer digits, and units none
# Types of mapped files that torch computes with as they are; others are copied.
_OF_TORCH = ("?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8")


class _Range(NamedTuple):
    low: float
    high: float
    whole: bool
    missing: bool


def _scan(array: np.ndarray, where: str) -> _Range:
    """Smallest and largest value, and whether all are whole numbers; refuses infinity."""
    low, high, whole, missing = math.inf, -math.inf, True, False
    num_bad, first = 0, None
    for begin, chunk in chunks(array):
        seen = chunk
        if chunk.dtype.kind == "f":
            bad = np.isinf(chunk)
            if bad.any():
                num_bad += int(bad.sum())
                index = tuple(int(i) for i in np.argwhere(bad)[0])
                first = first or (begin + index[0], *index[1:])
                continue
            absent = np.isnan(chunk)
            if absent.any():
                missing, seen = True, chunk[~absent]
            whole = whole and bool((seen == np.floor(seen)).all())
        if seen.size:
            low, high = min(low, seen.min().item()), max(high, seen.max().item())
    if first is not None:
        raise ValueError(
            f"{where}: {num_bad} infinite values, the first at index {first}; repair them, or "
            "make them NaN, which is a missing value"
        )
    if low > high:
        raise ValueError(f"{where}: all values are missing (NaN); give some that are not")
    return _Range(low, high, whole, missing)


def stored_as(
    name: str, arrays: Mapping[str, np.ndarray], levels: int | None
) -> tuple[np.dtype, int | None]:
    """The one dtype that holds the arrays, and the levels that they take together."""
    scans = [_scan(array, where) for where, array in arrays.items()]
    lows, highs, whole, missing = zip(*scans, strict=True)
    _refuse_other_scale(name, dict(zip(arrays, scans, strict=True)))
    span = _Range(min(lows), max(highs), all(whole), any(missing))
    levels = _levels(name, list(arrays.values()), span, levels)
    largest, limits = float(max(-span.low, span.high)), np.finfo(np.float32)
    too_small = 0 < largest < _FAR_FROM_TINY * float(limits.tiny)
    if levels is None and (largest > float(limits.max) or too_small):
        raise ValueError(
            f"{name}: values from {span.low:g} to {span.high:g} do not fit in 32-bit floats; "
            "rescale them"
        )
    lost = next(filter(None, map(lost_digits, arrays.values())), None)
    if lost is not None:
        warnings.warn(f"{name}: {lost}", stacklevel=4)
    elif max(-span.low, span.high) > _EXACT:
        of_integers = [a for a in arrays.values() if a.dtype.kind in "iu" or span.missing]
        _warn_of_rounded(name, of_integers if span.whole else [])
    integer = "u1" if (levels or 0) <= 255 else "i2" if (levels or 0) <= 32767 else "i4"
    return np.dtype("f4" if levels is None or span.missing else integer), levels


def _refuse_other_scale(name: str, scans: Mapping[str, _Range]) -> None:
    """Refuse a part of integers beside one that was divided by their largest value."""
    counted = [where for where, r in scans.items() if r.whole and r.low >= 0 and r.high > 1]
    divided = [where for where, r in scans.items() if not r.whole and r.low >= 0 and r.high <= 1]
    if counted and divided:
        raise ValueError(
            f"{name}: {counted[0]} holds whole numbers up to {scans[counted[0]].high:g}, "
            f"{divided[0]} fractions up to {scans[divided[0]].high:g}: bring all parts to one "
            "scale, by dividing all or none"
        )


def _levels(name: str, arrays: list[np.ndarray], span: _Range, levels: int | None) -> int | None:
    if levels is not None:
        if levels < 1 or span.low < 0 or span.high > levels or not span.whole:
            raise ValueError(
                f"{name}: values from {span.low:g} to {span.high:g}"
                f"{'' if span.whole else ', not all whole'}; levels={levels} takes whole numbers "
                f"from 0 to {levels}"
            )
        return levels
    pixels = arrays[0].ndim == 4 and arrays[0].shape[1] in CHANNELS
    integer = span.missing or all(array.dtype.kind != "f" for array in arrays)
    if span.low < 0 or not span.whole:
        return None
    if not integer and span.high > (_MOST_PIXEL_LEVELS if pixels else 1):
        return None
    if span.high > np.iinfo(np.int32).max:
        raise ValueError(
            f"{name}: integers up to {span.high} exceed 32 bits; subtract what they have in "
            "common, such as x - x.min(), or rescale to floats"
        )
    of_bytes = all(array.dtype == np.uint8 for array in arrays)
    if span.high > 1 and (pixels or (of_bytes and (arrays[0].ndim > 2 or span.high > 127))):
        return _pixel_levels(int(span.high))
    return max(1, int(span.high))


def _pixel_levels(high: int) -> int:
    """The largest value of pixels that go up to `high`: of 8 bits, or of as many as it takes."""
    return high if high > _MOST_PIXEL_LEVELS else max(255, 2 ** high.bit_length() - 1)


def _warn_of_rounded(name: str, arrays: Iterable[np.ndarray]) -> None:
    """Warn of integers that float32, in which models compute, cannot tell from others."""
    num_rounded = sum(
        int((rows.astype("f4").astype("f8") != rows)[~np.isnan(rows)].sum())
        for array in arrays
        for _, rows in chunks(array)
    )
    if num_rounded:
        warnings.warn(
            f"{name}: {num_rounded:,} integers beyond {_EXACT:,} are rounded, since models compute "
            "in 32-bit floats; subtract what they have in common, such as x - x.min(), or divide",
            stacklevel=5,
        )


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array, or what it is a view of, lies in a file."""
    seen: Any = array
    while isinstance(seen, np.ndarray):
        if isinstance(seen, np.memmap):
            return True
        seen = seen.base
    return isinstance(seen, mmap.mmap)


def tensor(array: np.ndarray, dtype: np.dtype, rows: Any) -> Tensor:
    """Some rows as a tensor; those of a mapped file stay there in any type that torch has."""
    types = map(np.dtype, _OF_TORCH if is_mapped(array) else (dtype,))
    if isinstance(rows, slice) and array.dtype in types:
        return _shared(array[rows], dtype)
    index = np.arange(len(array))[rows if isinstance(rows, slice) else rows.numpy()]
    filled = room((len(index), *array.shape[1:]), dtype)
    step = max(1, _CHUNK_BYTES * len(array) // max(1, array.nbytes))
    for begin in range(0, len(index), step):
        filled[begin : begin + step] = array[index[begin : begin + step]]
    return _shared(filled, dtype)


def _shared(array: np.ndarray, dtype: np.dtype) -> Tensor:
    with warnings.catch_warnings():
        # Rows are only ever read. A copy-on-write map, which torch would not warn about, is
        # refused by Linux for files larger than memory.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        # A byte of 0 or 1 is a boolean to numpy; as bytes, levels are counted like others'.
        as_bytes = array.dtype.kind == "b" and dtype.kind != "b"
        return torch.from_numpy(array.view("u1") if as_bytes else array)


def as_pixels(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of a file, with images of floats k / 255 or k / 65535 as the integers k.

    That is how pictures of 8 or 16 bits are often stored, or from -1 to 1, as 2 k / 255 - 1. All
    images of the file are, or none.
    """
    images = {name: array for name, array in arrays.items() if _is_image(array)}
    floats = [array.dtype.kind == "f" for array in images.values()]
    kinds = itertools.product((0, -1), ("u1", "u2")) if floats and all(floats) else ()
    for low, dtype in kinds:
        levels = int(np.iinfo(dtype).max)
        if all(
            _is_multiple(rows, levels, low)
            for image in images.values()
            for _, rows in chunks(image)
        ):
            found = {name: _multiples(array, levels, low, dtype) for name, array in images.items()}
            # Of two values alone, 0 and 1, the integers are these.
            if any(((image > 0) & (image < levels)).any() for image in found.values()):
                return {**arrays, **found}
    return dict(arrays)


def _is_image(array: np.ndarray) -> bool:
    return array.ndim == 3 or (array.ndim == 4 and array.shape[1] in CHANNELS)


def _is_multiple(rows: np.ndarray, levels: int, low: int) -> bool:
    """Whether all values are k / levels, spread over low to 1, up to the rounding of their type."""
    if not rows.size or not (rows.min() >= low and rows.max() <= 1):
        return False
    eps = float(np.finfo(rows.dtype).eps)
    if eps * levels > _DISTINCT:
        return False  # the type does not tell one multiple from the next
    parts = _parts(rows, low)
    exact = np.rint(parts * levels) / levels
    rounding = min(4 * eps, _DISTINCT / levels)
    return bool((np.abs(exact - parts) <= rounding * (exact if low == 0 else 1)).all())


def _parts(rows: np.ndarray, low: int) -> np.ndarray:
    """How far values are on the way from low to 1."""
    return (rows.astype("f8") - low) / (1 - low)


def _multiples(array: np.ndarray, levels: int, low: int, dtype: str) -> np.ndarray:
    filled = room(array.shape, np.dtype(dtype))
    for begin, rows in chunks(array):
        filled[begin : begin + len(rows)] = np.rint(_parts(rows, low) * levels)
    return filled
