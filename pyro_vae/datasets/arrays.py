"""A user's arrays as a data set: checked, stored compactly, split."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from pyro_vae.datasets.axes import Axes, as_given, as_images
from pyro_vae.datasets.columns import check_alike, column
from pyro_vae.datasets.containers import Given, unpacked
from pyro_vae.datasets.data import Data, Dataset
from pyro_vae.datasets.documents import counted, rows_with_words
from pyro_vae.datasets.labels import number_classes
from pyro_vae.datasets.storage import is_mapped, stored_as, tensor
from pyro_vae.datasets.table_kinds import TableReading, numbered_tables
from pyro_vae.datasets.tables import Table
from pyro_vae.datasets.text import Reading, no_texts, numbered, texts_of
from pyro_vae.datasets.values import Codes, numeric
from pyro_vae.datasets.vocabulary import Vocabulary

__all__ = ["as_dataset", "from_arrays", "weighted"]


def as_dataset(data: Any, *, name: str = "array", weights: Any | None = None) -> Dataset:
    """What `fit` takes as a data set: one, or whatever `from_arrays` takes, of any shape as it is.

    A tuple is `(x,)`, `(x, labels)` or `(x, labels, weights)`; a dictionary has fields by name.

    Args:
        data: rows, or a data set.
        name: what messages call it.
        weights: `(N,)`, what each row counts in training, in place of those that the data have;
            of a data set, one for each of its training rows.

    Raises:
        ValueError: as `from_arrays` does.
    """
    if isinstance(data, Dataset):
        return data if weights is None else weighted(data, weights)
    given = data if isinstance(data, tuple) and 0 < len(data) <= 3 else (data,)
    x, labels, held = (*given, None, None)[:3]
    weights = held if weights is None else weights
    found = from_arrays(x, labels, weights=weights, name=name, axes=as_given)
    _warn_of_renumbered(found)
    return found


def weighted(data: Dataset, weights: Any, where: str | None = None) -> Dataset:
    """The data set with these weights of its training rows, one for each.

    Raises:
        ValueError: weights that do not fit; they are called those of ``where``.
    """
    where = where or f"{data.name} (its training rows)"
    array = column("weights", weights, np.empty((len(data.train), 0)), where)
    return replace(data, train=data.train.replace(weights=torch.from_numpy(array)))


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
    classes: Sequence[str] | None = None,
    seed: int = 0,
    missing: float | Sequence[float] = (),
    axes: Axes = as_images,
    text: Reading | None = None,
    table: TableReading | None = None,
) -> Dataset:
    """Split a user's array 80/10/10 by a permutation that depends on `seed` and N alone.

    Booleans and floats that are all 0 or 1 become uint8 with one level; other integers `>= 0` keep
    an integer type, with as many levels as their largest value. Whole numbers `>= 0` of images have
    255 levels, or those of 9 to 16 bits, whatever their type; so have uint8 arrays with a value
    above 127. Everything else becomes float32, real-valued.

    NaN is a missing value, and so are masked values of numpy, None, pandas' NA, and `missing`.
    Whole numbers `>= 0` beside missing ones count as integers, which an array with NaN cannot hold.

    Texts become rows `(N, L)` of the numbers of their symbols, padded with 0; `Dataset.vocabulary`
    has the symbols. With `text=Reading(symbols="bag")` they become bags `(N, V)` of words, which
    `Dataset.words` has; texts without a word that is counted are left out, as a warning says.

    Args:
        x: `(N, D)`, `(N, H, W)` or `(N, C, H, W)` with 1, 3 or 4 channels: a numpy array, tensor,
            nested list, sparse rows, or a table of pandas, polars or Arrow; or `N` texts. It is
            neither modified nor shared. `(N, H, W)` becomes `(N, 1, H, W)`. Or a container: a
            dictionary of fields by name (x, labels, weights, mask, covariates, any other), or of
            train, validation and test; a list `[x, y]`; a map-style data set or a `DataLoader` of
            torch, each of whose items is read once.
        labels: `(N,)` integers `>= 0`, whole floats, booleans or text; the classes that occur are
            numbered in order, and keep their names. -1, None, NaN and masked ones are missing.
        weights: `(N,)` numbers `>= 0`, what each row counts in training: an objective is maximised
            as the sum over rows of weight times bound. They are taken as they are, not normalised.
        name: what messages and tables call it.
        levels: the largest value that the data can take; found from the data if not given.
        classes: what the classes are called, where the labels are their numbers already.
        seed: of the permutation.
        missing: numbers that stand for a missing value, such as -9999.
        axes: how axes are read; `as_given` takes rows of any shape as they are.
        text: how texts become symbols; characters unless given.
        table: how a frame of pandas, polars or Arrow is read whose columns have kinds, which
            `Dataset.table` names; found from the data unless given. A frame that holds numbers
            alone is an array unless it is given.

    Raises:
        ValueError: objects, a wrong shape, no or too few rows, infinite values, nothing
            but missing values, values outside `0..levels`, labels or weights that do not fit; what
            holds no rows, such as a generator.
    """
    parts = {f"{name} {part}".rstrip(): given for part, given in unpacked(x, name).items()}
    for field, values in (("labels", labels), ("weights", weights)):
        if values is not None and (name not in parts or field in parts[name]):
            raise ValueError(f"{name}: {field} are given, and x holds some, too; give them once")
        if values is not None:
            parts[name][field] = values
    is_split = name not in parts
    codes = Codes(missing)
    parts, columns = numbered_tables(parts, name, table, codes)
    if columns is not None:
        _warn_of_unmet(codes, name)
        codes = Codes()  # of cells, not of the numbers that they become
    few = _is_of_a_run(text, table)

    def training(num: int) -> Sequence[int]:
        return range(num) if is_split else _split(num, seed, name=name, few=few)[0]

    parts, names = _of_texts(parts, name, text, training)
    names = names._replace(table=columns)
    if names.vocabulary is not None:
        levels = len(names.vocabulary) - 1
    axes = axes if names == _NO_NAMES else as_given
    fields, stored = _read(name, parts, levels, classes, codes, axes)
    stored = stored.called(names)
    in_order = names == _NO_NAMES and is_mapped(fields[0]["x"])
    index: list[Any] = [None] * 3
    if not is_split:
        index = _split(len(fields[0]["x"]), seed, in_order=in_order, name=name, few=few)
    chosen = [*zip(fields if is_split else fields * 3, index, strict=True)]
    if names.words is not None and not few:  # a trained run is asked of each row
        chosen = [(part, rows_with_words(part["x"], rows, name)) for part, rows in chosen]
    return stored.dataset(name, chosen)


def _is_of_a_run(text: Reading | None, table: TableReading | None) -> bool:
    """Whether rows are read as a trained run reads them, which may be asked of a single one."""
    of_texts = text is not None and (text.vocabulary or text.words) is not None
    return of_texts or (table is not None and table.table is not None)


class _Names(NamedTuple):
    """What numbers stand for: symbols of sequences, words that bags count, columns of a table."""

    vocabulary: Vocabulary | None = None
    words: tuple[str, ...] | None = None
    table: Table | None = None


_NO_NAMES = _Names()


def _of_texts(
    parts: dict[str, Given],
    name: str,
    reading: Reading | None,
    training: Callable[[int], Sequence[int]],
) -> tuple[dict[str, Given], _Names]:
    """The parts with numbers in the place of texts, and what these are of."""
    found = {where: texts_of(given["x"], where) for where, given in parts.items()}
    texts = {where: rows for where, rows in found.items() if rows is not None}
    if not texts:
        if reading is not None and reading.vocabulary is None:
            raise no_texts(reading, name)
        return parts, _NO_NAMES  # of a trained run, x may be the numbers of its symbols
    other = next((where for where in parts if where not in texts), None)
    if other is not None:
        raise ValueError(f"{name}: {other} holds no texts, and another part does; give all as text")
    if reading is None and all(map(_is_number, itertools.chain(*texts.values()))):
        raise ValueError(
            f"{name}: numbers as text; x.astype(float) makes numbers of them, and text=Reading() "
            "takes them as text"
        )
    parts = {where: {**given, "x": texts[where]} for where, given in parts.items()}
    return _read_texts(parts, name, reading or Reading(), training)


def _read_texts(
    parts: Mapping[str, Given],
    name: str,
    reading: Reading,
    training: Callable[[int], Sequence[int]],
) -> tuple[dict[str, Given], _Names]:
    if reading.is_bag:
        counts, words = counted(parts, name, reading, training)
        return counts, _Names(words=words)
    numbers, vocabulary = numbered(parts, name, reading, training)
    return numbers, _Names(vocabulary)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def unsplit(
    x: Any,
    *,
    name: str = "array",
    levels: int | None = None,
    axes: Axes = as_images,
    text: Reading | None = None,
    table: TableReading | None = None,
) -> Dataset:
    """All rows of a user's array as they are, in their order: each part has them all.

    Args:
        x: rows, or fields by name, as `from_arrays` takes them.
        name: what messages call them.
        levels: the largest value that integers can take; found from the data if not given.
        axes: how axes are read.
        text: how texts are read, with their vocabulary; where x is no text, it is not used.
        table: how a table is read, with the columns of another.

    Raises:
        ValueError: as `from_arrays` does, but a single row will do.
    """
    parts = {f"{name} {part}".rstrip(): given for part, given in unpacked(x, name).items()}
    if name not in parts:
        raise ValueError(f"{name}: parts of a data set are given; give the rows of one")
    parts, columns = numbered_tables(parts, name, table, Codes())
    names = _Names(table=columns)
    axes = axes if columns is None else as_given
    if text is not None and (texts := texts_of(parts[name]["x"], name)) is not None:
        parts, names = _read_texts({name: {**parts[name], "x": texts}}, name, text, range)
        axes = as_given
    fields, stored = _read(name, parts, levels, None, Codes(), axes)
    return stored.called(names).dataset(name, [(fields[0], None)] * 3)


def _warn_of_unmet(codes: Codes, name: str) -> None:
    if codes.unmet:
        listed = ", ".join(f"{value:g}" for value in codes.unmet)
        warnings.warn(
            f"{name}: no value is {listed}, which was to stand for a missing one", stacklevel=4
        )


def _split(
    num_rows: int, seed: int, *, name: str, in_order: bool = False, few: bool = False
) -> list[Any]:
    """Index of the training, validation and test rows; where few will do, each part has them all.

    Raises:
        ValueError: fewer than three rows.
    """
    if num_rows < 3 and few:
        return [torch.arange(num_rows)] * 3
    if num_rows < 3:
        count = "one datum" if num_rows == 1 else f"{num_rows} data"
        raise ValueError(
            f"{name}: {count}, but training, validation and test need a row each: give 3 or more"
        )
    held = max(1, round(num_rows / 10))
    first, second = num_rows - 2 * held, num_rows - held
    if in_order:
        return [slice(first), slice(first, second), slice(second, None)]
    # The legacy generator: numpy promises that its stream never changes, so splits do not either.
    order = np.random.RandomState(seed).permutation(num_rows)
    return [torch.from_numpy(part) for part in np.split(order, [first, second])]


class _Stored(NamedTuple):
    """What the parts of a data set have in common: how x is stored, its levels, the classes."""

    dtype: np.dtype
    levels: int | None
    classes: tuple[str, ...] | None
    names: _Names = _NO_NAMES

    def called(self, names: _Names) -> _Stored:
        """The same of what has names; the columns of a table are of several kinds: floats."""
        if names.table is None:
            return self._replace(names=names)
        return _Stored(np.dtype("f4"), None, self.classes, names)

    def dataset(self, name: str, parts: Sequence[tuple[Mapping[str, np.ndarray], Any]]) -> Dataset:
        """The data set of some rows of the fields for each part; None: all of them."""
        train, validation, test = (self._data(*part) for part in parts)
        return Dataset(name, train, validation, test, self.levels, self.classes, *self.names)

    def _data(self, fields: Mapping[str, np.ndarray], index: Any) -> Data:
        taken = slice(None) if index is None else index
        found = {
            name: tensor(values, self.dtype if name == "x" else values.dtype, taken)
            for name, values in fields.items()
        }
        rows = range(len(fields["x"]))[index] if isinstance(index, slice) else index
        return Data(**found, rows=rows)


def _read(
    name: str,
    parts: Mapping[str, Given],
    levels: int | None,
    classes: Sequence[str] | None,
    codes: Codes,
    axes: Axes,
) -> tuple[list[dict[str, np.ndarray]], _Stored]:
    """The fields of each part as arrays, by what messages call the part."""
    x = {where: _rows(given["x"], where, axes, codes) for where, given in parts.items()}
    _warn_of_unmet(codes, name)
    labels = {where: (given.get("labels"), len(x[where])) for where, given in parts.items()}
    numbers, names = number_classes(labels, classes)
    read = {}
    for (where, given), of_rows in zip(parts.items(), numbers, strict=True):
        fields = {"x": x[where]} | ({} if of_rows is None else {"labels": of_rows})
        beside = (field for field in given if field not in ("x", "labels"))
        read[where] = fields | {f: column(f, given[f], x[where], where) for f in beside}
    check_alike(name, read)
    return [*read.values()], _Stored(*stored_as(name, x, levels), names)


def _rows(values: Any, where: str, axes: Axes, codes: Codes) -> np.ndarray:
    """The values as `(N, *event_shape)`; a view where possible."""
    array = axes(numeric(values, where, codes), where)
    if array.size == 0:
        raise ValueError(
            f"{where}: empty, shape {array.shape}; give at least 3 rows of at least 1 value"
        )
    return array
