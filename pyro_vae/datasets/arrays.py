"""A user's arrays as a data set: checked, stored compactly, split."""

from __future__ import annotations

import hashlib
import math
import mmap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.datasets.labels import number_classes
from pyro_vae.memory import room

__all__ = [
    "Data",
    "Dataset",
    "Shape",
    "checked_weights",
    "from_arrays",
    "from_splits",
]

Shape = tuple[int, ...]
_CHANNELS = (1, 3, 4)
_CHUNK_BYTES = 2**24
# Types of mapped files that torch computes with as they are; others are copied.
_OF_TORCH = ("?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8")


@dataclass(frozen=True, eq=False)
class Data:
    """Rows as stored, unscaled.

    Attributes:
        x: `[N, *event_shape]`; uint8, int16 or int32 for integer data, else float32. Data with
            missing values, which are NaN, are float32 in any case. Rows of a mapped file stay in
            it, of the type that they have there.
        labels: `[N]` int64 class numbers from 0, or None.
        weights: `[N]` float32, what each row counts in training; None: 1 each. What is measured on
            validation and test rows is an unweighted mean in any case.
        rows: which rows of the user's array or file these are, `[N]`; None: all of them, in order.
    """

    x: Tensor
    labels: Tensor | None = None
    weights: Tensor | None = None
    rows: range | Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Data:
        """Rows by a slice or by a tensor of indices, with all that belongs to them."""
        labels, weights = (
            None if held is None else held[index] for held in (self.labels, self.weights)
        )
        rows = range(len(self)) if self.rows is None else self.rows
        if isinstance(rows, range) and not isinstance(index, slice):
            rows = torch.arange(rows.start, rows.stop, rows.step)
        return Data(self.x[index], labels, weights, rows[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three fixed, disjoint parts of one data set.

    Attributes:
        name: what it is called in tables and run folders.
        train: the rows to fit.
        validation: the rows to choose by.
        test: the rows to report.
        levels: integer data take the values `0..levels` (digits 16, images 255, binary data 1);
            None for real-valued data.
        classes: what the classes are called, by number, whichever part they occur in; None for
            data without labels.
    """

    name: str
    train: Data
    validation: Data
    test: Data
    levels: int | None
    classes: tuple[str, ...] | None = None

    @property
    def event_shape(self) -> Shape:
        """Shape of one datum; images are channel-first, `(1, 28, 28)`."""
        return tuple(self.train.x.shape[1:])

    def fingerprint(self) -> str:
        """SHA-256 over dtype, shape and bytes of rows, labels and weights, and classes' names."""
        digest = hashlib.sha256()
        if self.classes != tuple(map(str, range(len(self.classes or ())))):
            digest.update(repr(self.classes).encode())
        for part in (self.train, self.validation, self.test):
            weights = [] if part.weights is None else [part.weights]
            for tensor in (part.x, part.labels, *weights):
                if tensor is None:
                    digest.update(b"none")
                    continue
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                for _, chunk in _chunks(tensor.detach().cpu().numpy()):
                    digest.update(np.ascontiguousarray(chunk).data)
        return digest.hexdigest()


def from_arrays(
    x: Any,
    labels: Any | None = None,
    *,
    weights: Any | None = None,
    name: str = "array",
    levels: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Split a user's array 80/10/10 by a permutation that depends on `seed` and N alone.

    Booleans and floats that are all 0 or 1 become uint8 with one level; other integers `>= 0` keep
    an integer type, with as many levels as their largest value (255 for uint8 images, and for any
    uint8 array with a value above 127); everything else becomes float32, real-valued.

    NaN is a missing value. Whole numbers `>= 0` beside missing ones count as integers, which an
    array with NaN cannot hold.

    Args:
        x: numpy array, tensor or nested list: `(N, D)`, `(N, H, W)` or `(N, C, H, W)` with 1, 3
            or 4 channels. It is neither modified nor shared. `(N, H, W)` becomes `(N, 1, H, W)`.
        labels: `(N,)` integers `>= 0`, whole floats, booleans or text; the classes that occur are
            numbered in order, and keep their names.
        weights: `(N,)` numbers `>= 0`, what each row counts in training: an objective is maximised
            as the sum over rows of weight times bound. They are taken as they are, not normalised.
        name: what messages and tables call it.
        levels: the largest value that the data can take; found from the data if not given.
        seed: of the permutation.

    Raises:
        ValueError: text or objects, a wrong shape, no or too few rows, infinite values, nothing
            but missing values, values outside `0..levels`, labels or weights that do not fit.
    """
    rows = _rows(x, name)
    (numbers,), classes = number_classes({name: (labels, len(rows))})
    counts = checked_weights(weights, len(rows), name)
    if len(rows) < 3:
        count = "one datum" if len(rows) == 1 else f"{len(rows)} data"
        raise ValueError(
            f"{name}: {count}, but training, validation and test need a row each: give 3 or more"
        )
    dtype, found = _stored_as(name, {name: rows}, levels)
    beside = Data(torch.empty(len(rows), 0), numbers, counts)
    train, validation, test = (
        replace(beside[part], x=_tensor(rows, dtype, part))
        for part in _split(len(rows), seed, in_order=_is_mapped(rows))
    )
    return Dataset(name, train, validation, test, found, classes)


def _split(num_rows: int, seed: int, *, in_order: bool) -> list[Any]:
    """Index of the training, validation and test rows."""
    held = max(1, round(num_rows / 10))
    first, second = num_rows - 2 * held, num_rows - held
    if in_order:
        return [slice(first), slice(first, second), slice(second, None)]
    # The legacy generator: numpy promises that its stream never changes, so splits do not either.
    order = np.random.RandomState(seed).permutation(num_rows)
    return [torch.from_numpy(part) for part in np.split(order, [first, second])]


def from_splits(
    name: str,
    parts: Mapping[str, tuple[Any, ...]],
    levels: int | None = None,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """A data set from given `train`, `validation` and `test`: rows, labels and weights of each.

    Labels and weights may be None, or left out. Levels and classes are those of all parts, unless
    given: `classes` are then the names of the labels, which are their numbers.
    """
    rows = {f"{name} {part}": _rows(x, f"{name} {part}") for part, (x, *_) in parts.items()}
    labels, counts = {}, []
    for (where, array), (_, *beside) in zip(rows.items(), parts.values(), strict=True):
        of_rows, weights, *_ = *beside, None, None
        labels[where] = of_rows, len(array)
        counts.append(checked_weights(weights, len(array), where))
    numbers, names = number_classes(labels, classes)
    shapes = {where: array.shape[1:] for where, array in rows.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{where} {shape}" for where, shape in shapes.items())
        raise ValueError(f"{name}: the splits differ in shape: {listed}; make them the same")
    dtype, found = _stored_as(name, rows, levels)
    stored = [_tensor(array, dtype, slice(None)) for array in rows.values()]
    train, validation, test = map(Data, stored, numbers, counts)
    return Dataset(name, train, validation, test, found, names)


def _array(values: Any, where: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        array = values if isinstance(values, np.ndarray) else np.asarray(values)
    except ValueError:
        raise ValueError(f"{where}: rows of different lengths; give a rectangular array") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{where}: dtype {array.dtype} is not numeric; give an array of integers or floats"
        )
    return array


def _rows(values: Any, where: str) -> np.ndarray:
    """The values as `(N, *event_shape)`, images channel-first; a view where possible."""
    array = _array(values, where)
    shape = array.shape
    if array.ndim < 2:
        raise ValueError(
            f"{where}: shape {shape}, expected (N, ...): one row per datum; "
            "a single column is x.reshape(-1, 1)"
        )
    if array.size == 0:
        raise ValueError(f"{where}: empty, shape {shape}; give at least 3 rows of at least 1 value")
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 2 or (array.ndim == 4 and shape[1] in _CHANNELS):
        return array
    if array.ndim == 4 and shape[3] in _CHANNELS:
        raise ValueError(
            f"{where}: shape {shape} reads as {shape[1]} channels of {shape[2]}x{shape[3]} pixels, "
            f"or as {shape[1]}x{shape[2]} images with {shape[3]} channels last; images are "
            "channel-first: use x.transpose(0, 3, 1, 2)"
        )
    raise ValueError(
        f"{where}: shape {shape}, expected (N, D), (N, H, W) or (N, C, H, W) with 1, 3 or 4 "
        "channels; x.reshape(len(x), -1) makes vectors of anything"
    )


def checked_weights(weights: Any | None, num_rows: int, where: str) -> Tensor | None:
    """Weights of rows as float32 `(N,)`, or None; ValueError where they do not fit the rows."""
    if weights is None:
        return None
    array = _array(weights, f"weights of {where}")
    if array.shape != (num_rows,):
        raise ValueError(
            f"weights of {where}: shape {array.shape}, expected ({num_rows},): one weight a row"
        )
    array = array.astype(np.float32)
    unusable = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if len(unusable):
        raise ValueError(
            f"weights of {where}: {array[unusable[0]]:g} at row {unusable[0]} ({len(unusable)} in "
            "all), expected finite numbers >= 0; 0 leaves a row out of training"
        )
    if not array.any():
        raise ValueError(f"weights of {where}: all are 0, which trains nothing; give some > 0")
    return torch.from_numpy(array)


class _Range(NamedTuple):
    low: float
    high: float
    whole: bool
    missing: bool


def _chunks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of rows of bounded size, so that mapped files are read without filling memory."""
    step = max(1, _CHUNK_BYTES * len(array) // max(1, array.nbytes))
    return ((begin, array[begin : begin + step]) for begin in range(0, len(array), step))


def _scan(array: np.ndarray, where: str) -> _Range:
    """Smallest and largest value, and whether all are whole numbers; refuses infinity."""
    low, high, whole, missing = math.inf, -math.inf, True, False
    num_bad, first = 0, None
    for begin, chunk in _chunks(array):
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


def _stored_as(
    name: str, arrays: Mapping[str, np.ndarray], levels: int | None
) -> tuple[np.dtype, int | None]:
    """The one dtype that holds the arrays, and the levels that they take together."""
    scans = [_scan(array, where) for where, array in arrays.items()]
    lows, highs, whole, missing = zip(*scans, strict=True)
    span = _Range(min(lows), max(highs), all(whole), any(missing))
    levels = _levels(name, list(arrays.values()), span, levels)
    if levels is None and max(-span.low, span.high) > float(np.finfo(np.float32).max):
        raise ValueError(
            f"{name}: values from {span.low:g} to {span.high:g} do not fit in 32-bit floats; "
            "rescale them"
        )
    integer = "u1" if (levels or 0) <= 255 else "i2" if (levels or 0) <= 32767 else "i4"
    return np.dtype("f4" if levels is None or span.missing else integer), levels


def _levels(name: str, arrays: list[np.ndarray], span: _Range, levels: int | None) -> int | None:
    if levels is not None:
        if levels < 1 or span.low < 0 or span.high > levels or not span.whole:
            raise ValueError(
                f"{name}: values from {span.low:g} to {span.high:g}"
                f"{'' if span.whole else ', not all whole'}; levels={levels} takes whole numbers "
                f"from 0 to {levels}"
            )
        return levels
    integer = span.missing or all(array.dtype.kind != "f" for array in arrays)
    if span.low < 0 or not span.whole or (not integer and span.high > 1):
        return None
    if span.high > np.iinfo(np.int32).max:
        raise ValueError(f"{name}: integers up to {span.high} exceed 32 bits; rescale to floats")
    pixels = all(array.dtype == np.uint8 for array in arrays) and span.high > 1
    if pixels and (arrays[0].ndim > 2 or span.high > 127):
        return 255
    return max(1, int(span.high))


def _is_mapped(array: np.ndarray) -> bool:
    """Whether an array, or what it is a view of, lies in a file."""
    seen: Any = array
    while isinstance(seen, np.ndarray):
        if isinstance(seen, np.memmap):
            return True
        seen = seen.base
    return isinstance(seen, mmap.mmap)


def _tensor(array: np.ndarray, dtype: np.dtype, rows: Any) -> Tensor:
    """Some rows as a tensor; those of a mapped file stay there in any type that torch has."""
    types = map(np.dtype, _OF_TORCH if _is_mapped(array) else (dtype,))
    if isinstance(rows, slice) and array.dtype in types:
        return _shared(array[rows])
    index = np.arange(len(array))[rows if isinstance(rows, slice) else rows.numpy()]
    filled = room((len(index), *array.shape[1:]), dtype)
    step = max(1, _CHUNK_BYTES * len(array) // max(1, array.nbytes))
    for begin in range(0, len(index), step):
        filled[begin : begin + step] = array[index[begin : begin + step]]
    return _shared(filled)


def _shared(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # Rows are only ever read. A copy-on-write map, which torch would not warn about, is
        # refused by Linux for files larger than memory.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        # A byte of 0 or 1 is a boolean to numpy; as bytes, levels are counted like others'.
        return torch.from_numpy(array.view("u1") if array.dtype.kind == "b" else array)
