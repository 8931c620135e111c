"""A user's arrays as a data set: checked, stored compactly, split."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.datasets.axes import Axes, as_given, as_images
from pyro_vae.datasets.containers import Fields, unpacked
from pyro_vae.datasets.labels import number_classes
from pyro_vae.datasets.storage import is_mapped, stored_as, tensor
from pyro_vae.datasets.values import Codes, chunks, numeric

__all__ = [
    "Data",
    "Dataset",
    "Shape",
    "as_dataset",
    "checked_weights",
    "from_arrays",
    "from_splits",
]

Shape = tuple[int, ...]


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

    def __repr__(self) -> str:
        beside = [name for name in ("labels", "weights") if getattr(self, name) is not None]
        kind = str(self.x.dtype).removeprefix("torch.")
        return f"Data({', '.join([f'x: {kind} {tuple(self.x.shape)}', *beside])})"

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

    def __repr__(self) -> str:
        parts = "".join(
            f"\n  {name}: {getattr(self, name)!r}" for name in ("train", "validation", "test")
        )
        known = "" if self.classes is None else f", {len(self.classes)} classes"
        return f"Dataset({self.name!r}, levels={self.levels}{known}){parts}"

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
            for held in (part.x, part.labels, *weights):
                if held is None:
                    digest.update(b"none")
                    continue
                digest.update(f"{held.dtype} {tuple(held.shape)}".encode())
                for _, chunk in chunks(held.detach().cpu().numpy()):
                    digest.update(np.ascontiguousarray(chunk).data)
        return digest.hexdigest()


def as_dataset(data: Any, *, name: str = "array", weights: Any | None = None) -> Dataset:
    """What `fit` takes as a data set: one, or whatever `from_arrays` takes, of any shape as it is.

    A tuple is `(x,)`, `(x, labels)` or `(x, labels, weights)`.

    Args:
        data: rows, or a data set.
        name: what messages call it.
        weights: `(N,)`, what each row counts in training, in place of those that the data have;
            of a data set, one for each of its training rows.

    Raises:
        ValueError: as `from_arrays` does.
    """
    if isinstance(data, Dataset):
        return data if weights is None else _weighted(data, weights)
    x, labels, held = Fields(*data) if isinstance(data, tuple) and 0 < len(data) <= 3 else (
        Fields(data)
    )  # fmt: skip
    weights = held if weights is None else weights
    found = from_arrays(x, labels, weights=weights, name=name, axes=as_given)
    _warn_of_renumbered(found)
    return found


def _weighted(data: Dataset, weights: Any) -> Dataset:
    checked = checked_weights(weights, len(data.train), f"{data.name} (its training rows)")
    return replace(data, train=replace(data.train, weights=checked))


def _warn_of_renumbered(data: Dataset) -> None:
    """Say which labels would be taken for those of other classes."""
    numbers = {name: n for n, name in enumerate(data.classes or ())}
    other = [f"{name} is {n}" for name, n in numbers.items() if
             name.isdecimal() and int(name) != n and int(name) < len(numbers)]  # fmt: skip
    if other:
        warnings.warn(
            f"{data.name}: classes are numbered by what occurs, so label {', '.join(other[:3])}; "
            "give evaluation these numbers, as in from_arrays(x, labels).test.labels",
            stacklevel=4,
        )


def from_arrays(
    x: Any,
    labels: Any | None = None,
    *,
    weights: Any | None = None,
    name: str = "array",
    levels: int | None = None,
    seed: int = 0,
    missing: float | Sequence[float] = (),
    axes: Axes = as_images,
) -> Dataset:
    """Split a user's array 80/10/10 by a permutation that depends on `seed` and N alone.

    Booleans and floats that are all 0 or 1 become uint8 with one level; other integers `>= 0` keep
    an integer type, with as many levels as their largest value. Whole numbers `>= 0` of images have
    255 levels, or those of 9 to 16 bits, whatever their type; so have uint8 arrays with a value
    above 127. Everything else becomes float32, real-valued.

    NaN is a missing value, and so are masked values of numpy, None, pandas' NA, and `missing`.
    Whole numbers `>= 0` beside missing ones count as integers, which an array with NaN cannot hold.

    Args:
        x: `(N, D)`, `(N, H, W)` or `(N, C, H, W)` with 1, 3 or 4 channels: a numpy array, tensor,
            nested list, sparse rows, or a table of pandas, polars or Arrow. It is neither modified
            nor shared. `(N, H, W)` becomes `(N, 1, H, W)`. Or a container: a dictionary of x, y and
            weights, or of train, validation and test; a list `[x, y]`; a map-style data set or a
            `DataLoader` of torch, each of whose items is read once.
        labels: `(N,)` integers `>= 0`, whole floats, booleans or text; the classes that occur are
            numbered in order, and keep their names.
        weights: `(N,)` numbers `>= 0`, what each row counts in training: an objective is maximised
            as the sum over rows of weight times bound. They are taken as they are, not normalised.
        name: what messages and tables call it.
        levels: the largest value that the data can take; found from the data if not given.
        seed: of the permutation.
        missing: numbers that stand for a missing value, such as -9999.
        axes: how axes are read; `as_given` takes rows of any shape as they are.

    Raises:
        ValueError: text or objects, a wrong shape, no or too few rows, infinite values, nothing
            but missing values, values outside `0..levels`, labels or weights that do not fit; what
            holds no rows, such as a generator.
    """
    fields = unpacked(x, name)
    if isinstance(fields, dict):
        _refuse_twice(name, "labels", labels, True)
        return from_splits(name, fields, levels, missing=missing, axes=axes)
    _refuse_twice(name, "labels", labels, fields.labels is not None)
    _refuse_twice(name, "weights", weights, fields.weights is not None)
    labels = fields.labels if labels is None else labels
    weights = fields.weights if weights is None else weights
    codes = Codes(missing)
    rows = _rows(fields.x, name, axes, codes)
    (numbers,), classes = number_classes({name: (labels, len(rows))})
    counts = checked_weights(weights, len(rows), name)
    if len(rows) < 3:
        count = "one datum" if len(rows) == 1 else f"{len(rows)} data"
        raise ValueError(
            f"{name}: {count}, but training, validation and test need a row each: give 3 or more"
        )
    _warn_of_unmet(codes, name)
    dtype, found = stored_as(name, {name: rows}, levels)
    beside = Data(torch.empty(len(rows), 0), numbers, counts)
    train, validation, test = (
        replace(beside[part], x=tensor(rows, dtype, part))
        for part in _split(len(rows), seed, in_order=is_mapped(rows))
    )
    return Dataset(name, train, validation, test, found, classes)


def _refuse_twice(name: str, what: str, given: Any, held: bool) -> None:
    if held and given is not None:
        raise ValueError(f"{name}: {what} are given, and x holds some, too; give them once")


def _warn_of_unmet(codes: Codes, name: str) -> None:
    if codes.unmet:
        listed = ", ".join(f"{value:g}" for value in codes.unmet)
        warnings.warn(
            f"{name}: no value is {listed}, which was to stand for a missing one", stacklevel=4
        )


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
    *,
    missing: float | Sequence[float] = (),
    axes: Axes = as_images,
) -> Dataset:
    """A data set from given `train`, `validation` and `test`: rows, labels and weights of each.

    Labels and weights may be None, or left out. Levels and classes are those of all parts, unless
    given: `classes` are then the names of the labels, which are their numbers.
    """
    codes = Codes(missing)
    rows = {
        f"{name} {part}": _rows(x, f"{name} {part}", axes, codes) for part, (x, *_) in parts.items()
    }
    _warn_of_unmet(codes, name)
    labels, counts = {}, []
    for (where, array), (_, *beside) in zip(rows.items(), parts.values(), strict=True):
        of_rows, weights, *_ = *beside, None, None
        labels[where] = of_rows, len(array)
        counts.append(checked_weights(weights, len(array), where))
    if len({of_rows is None for of_rows, _ in labels.values()}) > 1:
        raise ValueError(f"{name}: labels for some splits only; give all three or none")
    numbers, names = number_classes(labels, classes)
    shapes = {where: array.shape[1:] for where, array in rows.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{where} {shape}" for where, shape in shapes.items())
        raise ValueError(f"{name}: the splits differ in shape: {listed}; make them the same")
    dtype, found = stored_as(name, rows, levels)
    stored = [tensor(array, dtype, slice(None)) for array in rows.values()]
    train, validation, test = map(Data, stored, numbers, counts)
    return Dataset(name, train, validation, test, found, names)


def _rows(values: Any, where: str, axes: Axes, codes: Codes) -> np.ndarray:
    """The values as `(N, *event_shape)`; a view where possible."""
    array = axes(numeric(values, where, codes), where)
    if array.size == 0:
        raise ValueError(
            f"{where}: empty, shape {array.shape}; give at least 3 rows of at least 1 value"
        )
    return array


def checked_weights(weights: Any | None, num_rows: int, where: str) -> Tensor | None:
    """Weights of rows as float32 `(N,)`, or None; ValueError where they do not fit the rows."""
    if weights is None:
        return None
    array = numeric(weights, f"weights of {where}", Codes())
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
