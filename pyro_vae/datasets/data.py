"""Named fields of equal length, and a data set of three parts of them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.datasets.tables import Table
from pyro_vae.datasets.values import chunks
from pyro_vae.datasets.vocabulary import Vocabulary
from pyro_vae.fields import KNOWN
from pyro_vae.memory import room

__all__ = ["Data", "Dataset", "Shape", "in_default_type", "in_order", "joined"]

Shape = tuple[int, ...]

# By name: the field that each needs, and what it is.
_DERIVED: dict[str, tuple[str, Callable[[Data], Tensor]]] = {
    "labelled": ("labels", lambda data: data.labels >= 0),
    "row": ("x", lambda data: torch.as_tensor(np.asarray(_all_rows(data)))),
}
# Without their names in the fingerprint, which is that of runs before other fields were known.
_NAMELESS = ("x", "labels", "weights")


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Data:
    """Rows as stored, unscaled: tensors of equal length by name.

    Every field is an attribute, and None if it is not there. Two are derived: ``labelled``, True
    where a row has a label, and ``row``, which row of the user's array or file it is.

    Args:
        x: `[N, *event_shape]`; uint8, int16 or int32 for integer data, else float32. Data with
            missing values, which are NaN, are float32 in any case. Rows of a mapped file stay in
            it, of the type that they have there.
        labels: `[N]` int64 class numbers from 0, and -1 where a row has none.
        weights: `[N]` float32, what each row counts in training; 1 each unless given. What is
            measured on validation and test rows is an unweighted mean in any case.
        rows: which rows of the user's array or file these are, `[N]`; None: all of them, in order.
        others: further fields `[N, ...]`: ``mask``, ``covariates``, or of any other name.

    Attributes:
        fields: all of them by name, x first.
        rows: as given.

    Raises:
        ValueError: fields of different lengths.
    """

    fields: Mapping[str, Tensor]
    rows: range | Tensor | None

    def __init__(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        rows: range | Tensor | None = None,
        **others: Tensor | None,
    ) -> None:
        given = {"x": x, "labels": labels, "weights": weights, **others}
        fields = {name: values for name, values in given.items() if values is not None}
        for name, values in fields.items():
            if len(values) != len(x):
                raise ValueError(f"{len(values)} {name} for {len(x)} rows; give one for each")
        object.__setattr__(self, "fields", fields)
        object.__setattr__(self, "rows", rows)

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("fields", {})
        if name in fields or name in KNOWN:
            return fields.get(name)
        needed, derive = _DERIVED.get(name, (None, None))
        if derive is not None:
            return derive(self) if needed in fields else None
        raise AttributeError(f"no field {name!r}: the data have {', '.join(fields)}")

    def __repr__(self) -> str:
        x, *others = self.fields
        kind = str(self.x.dtype).removeprefix("torch.")
        return f"Data({', '.join([f'{x}: {kind} {tuple(self.x.shape)}', *others])})"

    def __len__(self) -> int:
        return len(self.fields["x"])

    def __getitem__(self, index: Any) -> Data:
        """Rows by a slice or by a tensor of indices, with all that belongs to them."""
        rows = _all_rows(self)
        if isinstance(rows, range) and not isinstance(index, slice):
            rows = torch.arange(rows.start, rows.stop, rows.step)
        return Data(**{n: values[index] for n, values in self.fields.items()}, rows=rows[index])

    @property
    def names(self) -> tuple[str, ...]:
        """All fields that a program can take: those stored, and those derived from them."""
        derived = [name for name, (needed, _) in _DERIVED.items() if needed in self.fields]
        return tuple(dict.fromkeys([*self.fields, *derived]))

    def tensors(self, names: Sequence[str]) -> tuple[Tensor, ...]:
        """Fields by name.

        Raises:
            ValueError: one that is not there.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise ValueError(
                f"the data have no {missing[0]}: their fields: {', '.join(self.fields)}"
            )
        return tuple(getattr(self, name) for name in names)

    def replace(self, **fields: Tensor | None) -> Data:
        """The same rows with other values of some fields; None takes one away."""
        changed: dict[str, Any] = {**self.fields, **fields}
        return Data(**changed, rows=self.rows)


def _all_rows(data: Data) -> range | Tensor:
    return range(len(data)) if data.rows is None else data.rows


def joined(parts: Sequence[Data]) -> Data:
    """All rows of several data, with the fields that all have; many lie in a temporary file."""
    shared = [name for name in parts[0].fields if all(name in part.fields for part in parts)]
    return Data(**{name: _joined([part.fields[name] for part in parts]) for name in shared})


def in_order(data: Dataset) -> Data:
    """All rows of a data set that was split, once each, in the order of their array or file."""
    parts = [*data.parts.values()]
    if any(part.rows is None for part in parts):
        return joined(parts)
    _, first = np.unique(np.concatenate([np.asarray(p.rows) for p in parts]), return_index=True)
    return joined(parts)[torch.from_numpy(first)]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    arrays = [part.cpu().numpy() for part in parts]
    shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
    found, begin = room(shape, np.result_type(*arrays)), 0
    for _, rows in itertools.chain.from_iterable(map(chunks, arrays)):
        found[begin : begin + len(rows)] = rows
        begin += len(rows)
    return torch.from_numpy(found)


def in_default_type(values: Tensor) -> Tensor:
    """A field beside x as programs take it: floats, of any type in a file, of the default type."""
    return values.to(torch.get_default_dtype()) if values.is_floating_point() else values


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
        vocabulary: of the symbols whose numbers x holds, where the data are text; else None.
        words: what each column of x counts, where the data are bags of words; else None.
        table: names and kinds of the columns of x, where the data are a table that has them.
    """

    name: str
    train: Data
    validation: Data
    test: Data
    levels: int | None
    classes: tuple[str, ...] | None = None
    vocabulary: Vocabulary | None = None
    words: tuple[str, ...] | None = None
    table: Table | None = None

    def __repr__(self) -> str:
        parts = "".join(f"\n  {name}: {part!r}" for name, part in self.parts.items())
        known = "" if self.classes is None else f", {len(self.classes)} classes"
        known += "" if self.vocabulary is None else f", {self.vocabulary!r}"
        known += "" if self.words is None else f", counts of {len(self.words)} words"
        known += "" if self.table is None else f", {self.table!r}"
        return f"Dataset({self.name!r}, levels={self.levels}{known}){parts}"

    @property
    def parts(self) -> dict[str, Data]:
        """The three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def event_shape(self) -> Shape:
        """Shape of one datum; images are channel-first, `(1, 28, 28)`."""
        return tuple(self.train.x.shape[1:])

    def map(self, function: Callable[[Data], Data]) -> Dataset:
        """The same data set with each part replaced by what a function makes of it."""
        changed: Any = {name: function(part) for name, part in self.parts.items()}
        return replace(self, **changed)

    def fingerprint(self) -> str:
        """SHA-256 over name, dtype, shape and bytes of all fields, classes' names and symbols."""
        digest = hashlib.sha256()
        if self.vocabulary is not None:
            digest.update(self.vocabulary.to_json().encode())
        if self.words is not None:
            digest.update(repr(self.words).encode())
        if self.table is not None:
            digest.update(self.table.to_json().encode())
        if self.classes != tuple(map(str, range(len(self.classes or ())))):
            digest.update(repr(self.classes).encode())
        for part in self.parts.values():
            for name in dict.fromkeys(["x", "labels", *sorted(part.fields, key=_in_order)]):
                held = part.fields.get(name)
                if held is None:
                    digest.update(b"none")
                    continue
                called = "" if name in _NAMELESS else f"{name} "
                digest.update(f"{called}{held.dtype} {tuple(held.shape)}".encode())
                for _, chunk in chunks(held.detach().cpu().numpy()):
                    digest.update(np.ascontiguousarray(chunk).data)
        return digest.hexdigest()


def _in_order(name: str) -> tuple[bool, str]:
    return name not in _NAMELESS, name
