"""Read containers of data: pairs, dictionaries, torch's data sets, lists of items."""

from __future__ import annotations

import array
import inspect
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)
from torch.utils.data import Dataset as Rows

from pyro_vae.datasets.data import Data
from pyro_vae.datasets.names import parts_by_name
from pyro_vae.datasets.values import is_picture, num_axes

__all__ = ["Given", "unpacked"]

Given = dict[str, Any]
"""Fields by name, as they are given: x, and what belongs to its rows."""

_IN_TURN = ("x", "labels", "weights")
_OF_ARRAYS = ("__array__", "__array_interface__", "__dlpack__", "dtype", "toarray", "iloc",
              "get_columns", "itercolumns")  # fmt: skip


def unpacked(data: Any, where: str) -> dict[str, Given]:
    """The fields of each split that a container holds; of "" where it is not split.

    Args:
        data: an array, a pair `(x, labels)`, a dictionary of fields, or of splits of either; a
            map-style data set or a `DataLoader` of torch, or a list of items `x` or `(x, label)`.
        where: what messages call it.

    Raises:
        ValueError: what is none of these, named for what it is; a dictionary without x.
    """
    _refuse(data, where)
    if isinstance(data, Data):
        return {"": dict(data.fields)}
    if isinstance(data, Mapping):
        return _of_mapping(data, where)
    if isinstance(data, DataLoader):
        return unpacked(_of_loader(data, where), where)
    return {"": _of_rows(data, where)}


def _of_rows(data: Any, where: str) -> Given:
    if isinstance(data, TensorDataset):
        return _positional(data.tensors, where)
    if _is_map_style(data):
        return _of_items([data[row] for row in range(len(data))], where)
    if isinstance(data, (list, tuple)) and len(data):
        first = data[0]
        is_rows = num_axes(first) >= 2 or _are_texts(first)
        if len(data) in (2, 3) and is_rows and _is_column(data[1]):
            return _positional(data, where)
        if _is_item(first):
            return _of_items(data, where)
    return _positional([data], where)


def _refuse(data: Any, where: str) -> None:
    """Name what holds no rows for what it is."""
    cure = "give an array, one row per datum"
    said = None
    if data is None:
        said = f"None; {cure}"
    elif isinstance(data, (str, bytes, Path)):
        said = f"the text {str(data)!r}; datasets.load reads named data sets and files"
    elif isinstance(data, (set, frozenset)):
        said = f"a set, whose rows have no order; {cure}: sorted(...) makes a list of it"
    elif isinstance(data, IterableDataset):
        said = (
            "an IterableDataset, which has no length and no order to come back to; "
            f"{cure}: torch.stack(list(...)) makes one"
        )
    elif hasattr(data, "__next__"):
        kind = "a generator" if inspect.isgenerator(data) else "an iterator"
        said = f"{kind}, which can be read once only; {cure}: numpy.stack(list(...)) makes one"
    elif is_picture(data):
        said = "one picture; give all of them, (N, H, W) or (N, C, H, W), or their folder to load"
    elif isinstance(data, type) or inspect.isroutine(data) or inspect.ismodule(data):
        said = f"{getattr(data, '__name__', data)!r}, which is no data but code; {cure}"
    elif isinstance(data, torch.nn.Module):
        said = f"a {type(data).__name__}, which is a module; {cure}"
    if said is not None:
        raise ValueError(f"{where}: {said}")


def _is_column(value: Any) -> bool:
    return value is None or (num_axes(value) == 1 and not isinstance(value, str))


def _are_texts(value: Any) -> bool:
    return num_axes(value) == 1 and len(value) > 0 and isinstance(value[0], str)


def _is_map_style(data: Any) -> bool:
    if isinstance(data, Rows):
        return True
    if isinstance(data, (list, tuple, range, memoryview, bytearray, array.array, deque)):
        return False
    if any(hasattr(data, name) for name in _OF_ARRAYS):
        return False
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


def _is_item(value: Any) -> bool:
    """Whether a member of a list is a datum with what belongs to it, rather than a datum alone."""
    if isinstance(value, Mapping) or is_picture(value):
        return True
    pair = isinstance(value, tuple) and len(value) == 2
    return pair and (_is_datum(value[0]) or is_picture(value[0]))


def _is_datum(value: Any) -> bool:
    """Whether it is an array or a text, rather than a number alone."""
    return num_axes(value) >= 1 or isinstance(value, str)


def _of_loader(loader: DataLoader[Any], where: str) -> Any:
    """The data set behind a loader that leaves its rows as they are."""
    own = None
    if isinstance(loader.dataset, IterableDataset):
        return loader.dataset
    if loader.batch_size is not None and loader.collate_fn is not default_collate:
        own = "a collate_fn"
    if isinstance(loader.sampler, RandomSampler):
        own = "a sampler with replacement" if loader.sampler.replacement else own
    elif loader.batch_size is not None and not isinstance(loader.sampler, SequentialSampler):
        own = "a sampler"
    if own is None and loader.batch_size is not None:
        return loader.dataset
    raise ValueError(
        f"{where}: a DataLoader with {own or 'batches'} of its own; give the rows that it makes, "
        "as an array: fit draws batches itself"
    )


def _of_items(items: Sequence[Any], where: str) -> Given:
    """Items `x`, `(x,)`, `(x, label)` or dictionaries of these, stacked."""
    if not len(items):
        raise ValueError(f"{where}: empty; give at least 3 rows")
    first = items[0]
    if isinstance(first, Mapping):
        return _of_mapping({key: [item[key] for item in items] for key in first}, where)[""]
    is_record = isinstance(first, (tuple, list)) and _is_datum(first[0])
    columns = [list(column) for column in zip(*items, strict=True)] if is_record else [items]
    return _positional(columns, where)


def _positional(columns: Sequence[Any], where: str) -> Given:
    if len(columns) > len(_IN_TURN):
        raise ValueError(
            f"{where}: {len(columns)} fields a row; expected x, (x, label) or (x, label, weight), "
            "or a dictionary of fields by name"
        )
    return _whole(dict(zip(_IN_TURN, columns, strict=False)), where)


def _whole(fields: Given, where: str) -> Given:
    """The fields with lists of arrays as one array, and without those that are None."""
    return {
        name: _stacked(values, where)
        if isinstance(values, (list, tuple))
        and len(values)
        and (is_picture(values[0]) or hasattr(values[0], "shape"))
        else values
        for name, values in fields.items()
        if values is not None or name == "x"
    }


def _stacked(rows: Sequence[Any], where: str) -> Any:
    """Rows of one shape as one array; pictures channel-first."""
    if any(map(is_picture, rows)):
        from pyro_vae.datasets.images import pixels

        rows = [pixels(row, where) if is_picture(row) else row for row in rows]
    shapes = [tuple(getattr(row, "shape", ())) for row in rows]
    other = next((n for n, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        raise ValueError(
            f"{where}: rows of different lengths: row {other} has the shape {shapes[other]}, row 0 "
            f"{shapes[0]}; give a rectangular array"
        )
    if all(isinstance(row, Tensor) for row in rows):
        return torch.stack([row.detach() for row in rows])
    if any(isinstance(row, np.ma.MaskedArray) for row in rows):
        return np.ma.stack(rows)
    return np.stack(rows) if shapes[0] else list(rows)


def _of_mapping(data: Mapping[Any, Any], where: str) -> dict[str, Given]:
    keys = {str(key): key for key in data}
    parts = parts_by_name(keys, where)
    _refuse_others(keys, parts, where)
    if "" in parts:
        return {"": _whole({field: data[keys[name]] for field, name in parts[""].items()}, where)}
    found = {}
    for part, names in parts.items():
        held = unpacked(data[keys[names["x"]]], f"{where} {part}")
        if "" not in held:
            raise ValueError(f"{where} {part}: a split that is split again; give its rows")
        beside = {field: data[keys[name]] for field, name in names.items() if field != "x"}
        found[part] = {**held[""], **_whole(beside, where)}
    return found


def _refuse_others(
    keys: Collection[str], parts: Mapping[str, Mapping[str, str]], where: str
) -> None:
    if any("x" not in names for names in parts.values()):
        raise ValueError(
            f"{where}: a dictionary of {', '.join(map(repr, keys)) or 'nothing'}; expected x (or "
            "images, data) with y (labels), weights and other fields, or train, validation and "
            "test; columns of a table are one array by numpy.column_stack(list(columns.values()))"
        )
    used = [name for names in parts.values() for name in names.values()]
    others = [name for name in keys if name not in used]
    if others:
        raise ValueError(
            f"{where}: a dictionary with {', '.join(map(repr, others))} beside "
            f"{', '.join(map(repr, used))}; leave out what is not to be used"
        )
