"""Labels of any kind as class numbers with names, settled over all parts of a data set at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.datasets.values import is_missing

__all__ = ["few_labels", "number_classes"]

_CURE = "expected integers, or names (text); other numbers are given as covariates"


def number_classes(
    labels: Mapping[str, tuple[Any | None, int]], names: Sequence[str] | None = None
) -> tuple[list[np.ndarray | None], tuple[str, ...] | None]:
    """Number the classes that occur in any part, in the order of their values, from 0.

    Labels 0, 1000 and 2000 are the classes 0, 1 and 2, named "0", "1000" and "2000", in a part
    where one of them is missing, too. Integers, whole floats, booleans, text, and pandas' columns
    of them are labels. A row without one is marked by -1, None, NaN or a mask, and has number -1.

    Args:
        labels: what the labels are of, by part: the labels `(N,)`, or None, and N.
        names: what the classes are called, where the labels are their numbers already.

    Returns:
        The class numbers of each part, int64 `(N,)` or None, and the names of the classes.

    Raises:
        ValueError: labels that are fractions, dates or objects; no labels at all, or one class
            beside -1, which may be a class, too; another number of labels than of rows; numbers in
            one part and text in another; a number without name.
    """
    given = {
        where: None if values is None else _Labels.read(values, num_rows, where)
        for where, (values, num_rows) in labels.items()
    }
    present = {where: held for where, held in given.items() if held is not None}
    if not present:
        return [None for _ in given], None
    known = {where: held.values for where, held in present.items() if len(held.values)}
    first = next(iter(present))
    if not known:
        raise ValueError(f"labels of {first}: all are missing; leave them out, or give some")
    _check_one_kind(known)
    found = _ordered(set().union(*(np.unique(values).tolist() for values in known.values())))
    if len(found) == 1 and any(held.marked for held in present.values()):
        raise ValueError(
            f"labels of {first}: -1 and {found[0]} alone, and -1 stands for a row without a label; "
            "where it is a class, give names: labels.astype(str)"
        )
    if names is None:
        number, classes = {value: n for n, value in enumerate(found)}, tuple(map(str, found))
    else:
        number, classes = {value: value for value in found}, tuple(names)
        if found[-1] >= len(names) or found[0] < 0:
            wrong = found[0] if found[0] < 0 else found[-1]
            raise ValueError(
                f"labels of {first}: {wrong}, where {len(names)} classes are numbered from 0"
            )
    return [None if held is None else held.numbered(number) for held in given.values()], classes


def few_labels(labels: Tensor, num_labels: int, *, seed: int) -> Tensor:
    """Keep some of the labels, about as many of each class, and hide the others.

    Args:
        labels: `(N,)` class numbers from 0, and -1 where there is none.
        num_labels: how many are kept.
        seed: of the choice, which depends on the labels and on this alone.

    Returns:
        The same labels, -1 in place of those that are hidden.

    Raises:
        ValueError: more than there are, or fewer than classes.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order] >= 0]
    classes = labels[order].unique()
    if not len(classes) <= num_labels <= len(order):
        raise ValueError(
            f"num_labels={num_labels}: {len(order):,} training rows have a label, of "
            f"{len(classes)} classes; keep {len(classes)} or more, and {len(order):,} at most"
        )
    one_hot = labels[order].unsqueeze(1) == classes
    rank = (one_hot.cumsum(0) * one_hot).sum(1)  # among the rows of its own class
    kept = order[rank.argsort(stable=True)[:num_labels]]
    hidden = torch.full_like(labels, -1)
    hidden[kept] = labels[kept]
    return hidden


def _ordered(found: set[Any]) -> list[Any]:
    """Classes in order; names that are numbers, such as those of folders, by number."""
    if all(isinstance(name, str) and name.isdecimal() for name in found):
        return sorted(found, key=lambda name: (int(name), name))
    return sorted(found)


class _Labels(NamedTuple):
    """Labels of some rows: those that are known, whose they are, and whether -1 marks the others.

    Attributes:
        values: `(M,)` booleans, integers or text.
        is_known: which of the rows have one, `(N,)`.
        marked: whether there are rows with -1.
    """

    values: np.ndarray
    is_known: np.ndarray
    marked: bool

    @classmethod
    def read(cls, given: Any, num_rows: int, where: str) -> _Labels:
        """Read one label a row; see ``number_classes``."""
        array, is_known = _column(given, num_rows, where)
        if array.dtype.kind == "O":
            is_known = is_known & ~np.array([is_missing(value) for value in array.tolist()], bool)
        elif array.dtype.kind == "f":
            is_known = is_known & ~np.isnan(array)
        values = _plain(array[is_known], np.flatnonzero(is_known), where)
        marks = values == -1 if values.dtype.kind == "i" else np.zeros(len(values), bool)
        is_known[is_known] = ~marks
        return cls(values[~marks], is_known, bool(marks.any()))

    def numbered(self, number: Mapping[Any, int]) -> np.ndarray:
        """The number of each row's class, -1 where a row has none."""
        found, place = np.unique(self.values, return_inverse=True)
        table = np.array([number[value] for value in found.tolist()], np.int64)
        numbers = np.full(len(self.is_known), -1)
        numbers[self.is_known] = table[place.reshape(-1)]
        return numbers


def _column(given: Any, num_rows: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The labels as one array of a label a row, and which of them are not masked."""
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = (given.float() if given.dtype == torch.bfloat16 else given).numpy()
    is_known = ~np.ma.getmaskarray(given) if isinstance(given, np.ma.MaskedArray) else None
    try:
        array = np.asarray(given)
    except ValueError:
        raise ValueError(f"labels of {where}: not one label a row; {_CURE}") from None
    is_known = np.ones(array.shape, bool) if is_known is None else is_known
    if array.ndim == 2 and array.shape[1] == 1:
        array, is_known = array[:, 0], is_known[:, 0]
    if array.ndim != 1:
        one_hot = array.ndim == 2 and array.dtype.kind in "biuf" and (array.sum(1) == 1).all()
        cure = ": one-hot rows are numbered by labels.argmax(1)" if one_hot else ""
        raise ValueError(f"labels of {where}: shape {array.shape}, expected ({num_rows},){cure}")
    if len(array) != num_rows:
        raise ValueError(f"{where}: {len(array)} labels for {num_rows} rows; give one label a row")
    return array, is_known


def _check_one_kind(present: Mapping[str, np.ndarray]) -> None:
    """Refuse text beside numbers, which have no common order."""
    kinds = {where: "text" if values.dtype.kind == "U" else "numbers" for where, values in
             present.items()}  # fmt: skip
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"of {where} {kind}" for where, kind in kinds.items())
        raise ValueError(f"labels {listed}; give all as numbers or all as text")


def _plain(array: np.ndarray, rows: np.ndarray, where: str) -> np.ndarray:
    """The labels of some rows as booleans, integers or text."""
    if array.dtype.kind == "O":
        array = _of_objects(array, where)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "backslashreplace")
    if array.dtype.kind == "T":
        array = array.astype(str)
    if array.dtype.kind == "f":
        array = _of_floats(array, rows, where)
    if array.dtype.kind not in "biuU":
        raise ValueError(f"labels of {where}: dtype {array.dtype} names no classes; {_CURE}")
    return array


def _of_objects(array: np.ndarray, where: str) -> np.ndarray:
    """Python's own values, and pandas' columns with a mask or of categories, as one numpy type."""
    values = array.tolist()
    for kinds in ((bool, np.bool_), (int, np.integer), (str,), (int, float, np.number)):
        if all(isinstance(value, kinds) for value in values):
            return np.array(values)
    kinds_found = sorted({type(value).__name__ for value in values})
    raise ValueError(f"labels of {where}: objects of {', '.join(kinds_found)}; {_CURE}")


def _of_floats(array: np.ndarray, rows: np.ndarray, where: str) -> np.ndarray:
    broken = np.flatnonzero((array != np.floor(array)) | (np.abs(array) >= 2**63))
    if len(broken):
        value, row = array[broken[0]], rows[broken[0]]
        raise ValueError(f"labels of {where}: {value:g} in row {row} is no class; {_CURE}")
    return array.astype(np.int64)
