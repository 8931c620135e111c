"""Labels of any kind as class numbers with names, settled over all parts of a data set at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["number_classes"]

_CURE = "expected integers, or names (text)"


def number_classes(
    labels: Mapping[str, tuple[Any | None, int]], names: Sequence[str] | None = None
) -> tuple[list[Tensor | None], tuple[str, ...] | None]:
    """Number the classes that occur in any part, in the order of their values, from 0.

    Labels 0, 1000 and 2000 are the classes 0, 1 and 2, named "0", "1000" and "2000", in a part
    where one of them is missing, too. Integers, whole floats, booleans, text, and pandas' columns
    of them are labels.

    Args:
        labels: what the labels are of, by part: the labels `(N,)`, or None, and N.
        names: what the classes are called, where the labels are their numbers already.

    Returns:
        The class numbers of each part, int64 `(N,)` or None, and the names of the classes.

    Raises:
        ValueError: labels that are missing, -1, fractions, dates or objects; another number
            of labels than of rows; numbers in one part and text in another; a number without name.
    """
    given = {
        where: None if values is None else _plain(values, num_rows, where)
        for where, (values, num_rows) in labels.items()
    }
    present = {where: values for where, values in given.items() if values is not None}
    if not present:
        return [None for _ in given], None
    _check_one_kind(present)
    found = _ordered(set().union(*(np.unique(values).tolist() for values in present.values())))
    if names is None:
        number, classes = {value: n for n, value in enumerate(found)}, tuple(map(str, found))
    else:
        number, classes = {value: value for value in found}, tuple(names)
        if found[-1] >= len(names) or found[0] < 0:
            wrong = found[0] if found[0] < 0 else found[-1]
            raise ValueError(
                f"labels of {next(iter(present))}: {wrong}, where {len(names)} classes are "
                "numbered from 0"
            )
    numbered = [None if values is None else _numbered(values, number) for values in given.values()]
    return numbered, classes


def _ordered(found: set[Any]) -> list[Any]:
    """Classes in order; names that are numbers, such as those of folders, by number."""
    if all(isinstance(name, str) and name.isdecimal() for name in found):
        return sorted(found, key=lambda name: (int(name), name))
    return sorted(found)


def _numbered(values: np.ndarray, number: Mapping[Any, int]) -> Tensor:
    found, place = np.unique(values, return_inverse=True)
    table = np.array([number[value] for value in found.tolist()], np.int64)
    return torch.from_numpy(table[place.reshape(-1)])


def _check_one_kind(present: Mapping[str, np.ndarray]) -> None:
    """Refuse text beside numbers, which have no common order."""
    kinds = {where: "text" if values.dtype.kind == "U" else "numbers" for where, values in
             present.items()}  # fmt: skip
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"of {where} {kind}" for where, kind in kinds.items())
        raise ValueError(f"labels {listed}; give all as numbers or all as text")


def _plain(values: Any, num_rows: int, where: str) -> np.ndarray:
    """The labels as one column of booleans, integers or text."""
    array = _column(values, where)
    if array.ndim != 1:
        one_hot = array.ndim == 2 and array.dtype.kind in "biuf" and (array.sum(1) == 1).all()
        cure = ": one-hot rows are numbered by labels.argmax(1)" if one_hot else ""
        raise ValueError(f"labels of {where}: shape {array.shape}, expected ({num_rows},){cure}")
    if len(array) != num_rows:
        raise ValueError(f"{where}: {len(array)} labels for {num_rows} rows; give one label a row")
    if array.dtype.kind == "O":
        array = _of_objects(array, where)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "backslashreplace")
    if array.dtype.kind == "T":
        array = array.astype(str)
    if array.dtype.kind == "f":
        array = _of_floats(array, where)
    if array.dtype.kind not in "biuU":
        raise ValueError(f"labels of {where}: dtype {array.dtype} names no classes; {_CURE}")
    if array.dtype.kind == "i" and (unlabelled := np.flatnonzero(array == -1)).size:
        raise ValueError(
            f"labels of {where}: {len(unlabelled)} are -1, which stands for a row without a label, "
            f"the first in row {unlabelled[0]}; leave rows without a class out, or name it where "
            "it is one: labels.astype(str)"
        )
    return array


def _column(values: Any, where: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"labels of {where}: not one label a row; {_CURE}") from None
    if mask is not None and mask.any():
        raise _missing(np.argwhere(mask)[:, 0], where)
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _of_objects(array: np.ndarray, where: str) -> np.ndarray:
    """Python's own values, and pandas' columns with a mask or of categories, as one numpy type."""
    values = array.tolist()
    absent = [row for row, value in enumerate(values) if _is_missing(value)]
    if absent:
        raise _missing(np.array(absent), where)
    for kinds in ((bool, np.bool_), (int, np.integer), (str,), (int, float, np.number)):
        if all(isinstance(value, kinds) for value in values):
            return np.array(values)
    kinds_found = sorted({type(value).__name__ for value in values})
    raise ValueError(f"labels of {where}: objects of {', '.join(kinds_found)}; {_CURE}")


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and math.isnan(value)


def _of_floats(array: np.ndarray, where: str) -> np.ndarray:
    absent = np.flatnonzero(np.isnan(array))
    if len(absent):
        raise _missing(absent, where)
    broken = np.flatnonzero((array != np.floor(array)) | (np.abs(array) >= 2**63))
    if len(broken):
        row = broken[0]
        raise ValueError(f"labels of {where}: {array[row]:g} in row {row} is no class; {_CURE}")
    return array.astype(np.int64)


def _missing(rows: np.ndarray, where: str) -> ValueError:
    return ValueError(
        f"labels of {where}: {len(rows)} missing, the first in row {rows[0]}; {_CURE}: leave rows "
        "without a label out, or give them a name of their own"
    )
