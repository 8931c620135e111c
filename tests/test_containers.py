"""What people hold data in: containers, masks and tables; what is taken, and as which rows."""

from __future__ import annotations

import re
import warnings
from collections import namedtuple
from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from pyro_vae.datasets import Dataset, as_dataset, as_given, from_arrays

X = np.random.RandomState(0).randn(30, 4).astype("f4")
Y = np.arange(30) % 3
T, L = torch.from_numpy(X), torch.from_numpy(Y)
HOLES = np.random.RandomState(1).rand(30, 4) < 0.2
COUNTS = np.random.RandomState(2).randint(0, 5, (30, 4))


class Items:
    """A data set of one's own, which inherits nothing."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        return self.items[row]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(T)


class Missing:
    """pandas' NA, by the name of its type."""


Missing.__name__ = "NAType"
NA = Missing()


class Column:
    """A column of a table, as pandas gives it to numpy."""

    def __init__(self, values):
        self.values = np.asarray(values, object)

    def __array__(self, dtype=None, copy=None):
        return self.values


class Table:
    """What is asked of a DataFrame of pandas."""

    def __init__(self, **columns):
        self.columns = list(columns)
        self.held = list(columns.values())
        self.iloc = self

    def __getitem__(self, place):
        return self.held[place[1]]


def table(values):
    return Table(**{f"c{n}": Column(column) for n, column in enumerate(np.asarray(values).T)})


def to_csr(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that it is new
        return x.to_sparse_csr()


def parts(data: Dataset):
    return data.train, data.validation, data.test


Pair = namedtuple("Pair", "x y")
ROWS = {
    "TensorDataset": TensorDataset(T),
    "Subset": Subset(TensorDataset(torch.cat([T, T])), list(range(30))),
    "ConcatDataset": ConcatDataset([TensorDataset(T[:10]), TensorDataset(T[10:])]),
    "DataLoader": DataLoader(TensorDataset(T), 7),
    "DataLoader, shuffled": DataLoader(TensorDataset(T), 7, shuffle=True),
    "items": Items(list(X)),
    "list of arrays": list(X),
    "list of tensors": list(T),
    "list of lists": X.tolist(),
    "dictionary": {"x": X},
    "list of dictionaries": [{"x": row} for row in X],
    "csr": sp.csr_matrix(X),
    "csc": sp.csc_matrix(X),
    "coo": sp.coo_matrix(X),
    "sparse array": sp.csr_array(X),
    "sparse tensor": T.to_sparse(),
    "sparse csr tensor": to_csr(T),
    "conjugate": (T + 0j).conj().real,
    "table": table(X),
    "structured": np.array([tuple(row) for row in X], [(name, "f4") for name in "abcd"]),
    "matrix": X.view(np.matrix) if hasattr(np, "matrix") else X,
    "masked nowhere": np.ma.array(X),
    "objects": X.astype(object),
}  # fmt: skip
PAIRS = {
    "TensorDataset": TensorDataset(T, L),
    "Subset": Subset(TensorDataset(T, L), range(30)),
    "DataLoader": DataLoader(TensorDataset(T, L), 7),
    "items": Items(list(zip(X, Y, strict=True))),
    "items with numbers": Items([(row, int(y)) for row, y in zip(T, Y, strict=True)]),
    "list": [X, Y],
    "list of tensors": [T, L],
    "list of lists": [X.tolist(), Y.tolist()],
    "tuple": (X, Y),
    "namedtuple": Pair(X, Y),
    "list of pairs": list(zip(X, Y.tolist(), strict=True)),
    "dictionary": {"x": X, "y": Y},
    "dictionary of others": {"images": X, "Labels": Y},
    "list of dictionaries": [{"x": row, "label": y} for row, y in zip(X, Y, strict=True)],
    "dictionary of items": {"x": list(T), "target": list(Y)},
    "text": [X, np.array(["0", "1", "2"])[Y]],
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_in_any_container_are_those_of_the_array(kind):
    assert from_arrays(ROWS[kind]).fingerprint() == from_arrays(X).fingerprint()


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("take", [from_arrays, as_dataset])
def test_rows_with_labels_in_any_container_are_those_of_the_pair(kind, take):
    assert take(PAIRS[kind]).fingerprint() == from_arrays(X, Y).fingerprint()


def test_splits_in_a_dictionary_are_the_splits():
    for splits in (
        {"train": X[:20], "validation": X[20:25], "test": X[25:]},
        {"Train": {"x": X[:20]}, "val": (X[20:25], None), "TEST": TensorDataset(T[25:])},
    ):
        found = from_arrays(splits)
        assert [len(part) for part in parts(found)] == [20, 5, 5]
        assert torch.equal(torch.cat([part.x for part in parts(found)]), T)
    labelled = {"train": (X[:20], Y[:20]), "dev": [X[20:25], Y[20:25]], "test": [X[25:], Y[25:]]}
    assert from_arrays(labelled).test.labels.tolist() == Y[25:].tolist()


def test_pictures_of_PIL_are_images_and_their_folder_names_classes():
    pictures = [Image.fromarray(np.full((5, 4, 3), 50 + row, "u1")) for row in range(12)]
    names = ["cat", "dog"] * 6
    for held in (Items(list(zip(pictures, names, strict=True))), [pictures, names]):
        found = from_arrays(held)
        assert (found.event_shape, found.levels, found.classes) == ((3, 5, 4), 255, ("cat", "dog"))
        for part in parts(found):
            assert part.labels.tolist() == [(int(x) - 50) % 2 for x in part.x[:, 0, 0, 0]]


REFUSED = {
    "none": (None, "array: None"),
    "text": ("mnist", "the text 'mnist'; datasets.load reads"),
    "generator": ((row for row in X), "a generator"),
    "iterator": (iter(X), "an iterator"),
    "set": ({1.0, 2.0}, "a set, whose rows have no order"),
    "stream": (Stream(), "an IterableDataset"),
    "stream in a loader": (DataLoader(Stream()), "an IterableDataset"),
    "loader with collate_fn": (DataLoader(TensorDataset(T), collate_fn=list), "a collate_fn of"),
    "loader with sampler": (
        DataLoader(TensorDataset(T), sampler=WeightedRandomSampler([1.0] * 30, 30)),
        "a DataLoader with a sampler of its own",
    ),
    "picture": (Image.new("L", (4, 4)), "one picture"),
    "function": (print, "'print', which is no data but code"),
    "class": (dict, "'dict', which is no data but code"),
    "module": (torch.nn.Linear(2, 2), "a Linear, which is a module"),
    "number": (3, "shape ()"),
    "object": (object(), "one object, which holds no rows"),
    "values of a dictionary": ({"a": X}.values(), "one dict_values, which holds no rows"),
    "text of rows": ([["a", "b"]] * 9, "dtype <U1 is not numeric"),
    "0-d tensor": (torch.tensor(3.0), "shape ()"),
    "other keys": ({"a": X, "b": X}, "a dictionary of 'a', 'b'; expected x"),
    "two names of a field": ({"x": X, "y": Y, "labels": Y}, "'labels' beside 'x', 'y'; leave out"),
    "no keys": ({}, "a dictionary of nothing"),
    "two splits": ({"train": X, "test": X}, "no validation split"),
    "two names": ({"train": X, "val": X, "valid": X, "test": X}, "are names of one split"),
    "ragged": ([X[0], X[1, :3], X[2]], "rows of different lengths"),
    "ragged tensors": ([T[0], T[1, :3]], "row 1 has the shape (3,), row 0 (4,)"),
    "ragged items": (Items([(X[0], 1), (X[1, :3], 1)]), "row 1 has the shape (3,)"),
    "different arrays": ([X, X[:10]], "rows of different lengths"),
    # Made when it is asked for: it imports half of torch.
    "nested tensor": (
        partial(torch.nested.nested_tensor, [T[0], T[1, :3]], layout=torch.jagged),
        "a nested tensor",
    ),
    "column of lists": (Table(a=Column([1.0, 2.0]), b=Column([[1], [2]])), "'[1]' is a list"),
    "four fields": (TensorDataset(T, L, L, L), "4 fields a row"),
    "labels short": ([X, Y[:29]], "29 labels for 30 rows"),
    "empty": (Items([]), "empty"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("take", [from_arrays, as_dataset])
def test_what_holds_no_rows_is_named_for_what_it_is(kind, take):
    data, words = REFUSED[kind]
    data = data() if isinstance(data, partial) else data
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        take(data)
    assert "\n" not in str(caught.value)


def test_labels_are_given_once():
    with pytest.raises(ValueError, match="labels are given, and x holds some, too"):
        from_arrays([X, Y], Y)


# --------------------------------------------------------------------------------------- masks


def with_none(values):
    found = np.asarray(values).astype(object)
    found[HOLES] = None
    return found


def with_na(values):
    found = np.asarray(values).astype(object)
    found[HOLES] = NA
    return found


def masked_tensor(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that they are new
        return torch.masked.masked_tensor(torch.as_tensor(x), torch.as_tensor(~HOLES))


MASKED = {
    # values, with what is missing where HOLES are -> options of from_arrays
    "floats": (X, lambda x: np.ma.array(np.where(HOLES, -9999.0, x), mask=HOLES), {}),
    "integers": (COUNTS, lambda x: np.ma.array(np.where(HOLES, -1, x), mask=HOLES), {}),
    "bytes": (COUNTS, lambda x: np.ma.array(np.where(HOLES, 255, x).astype("u1"), mask=HOLES), {}),
    "booleans": (COUNTS > 2, lambda x: np.ma.array(x, mask=HOLES), {}),
    "list of masked": (X, lambda x: list(np.ma.array(x, mask=HOLES)), {}),
    "None": (COUNTS, with_none, {}),
    "NA": (COUNTS, with_na, {}),
    "NA in a table": (COUNTS, lambda x: table(with_na(x)), {}),
    "NA of floats in a table": (X, lambda x: table(with_na(x)), {}),
    "structured": (
        COUNTS,
        lambda x: np.ma.array(
            [tuple(row) for row in x], mask=[tuple(row) for row in HOLES],
            dtype=[(name, "i8") for name in "abcd"],
        ),
        {},
    ),
    "a masked tensor": (X, masked_tensor, {}),
    "a masked tensor of integers": (COUNTS, masked_tensor, {}),
    "a code": (X, lambda x: np.where(HOLES, -9999, x).astype("f4"), {"missing": -9999}),
    "a code of float32": (
        X, lambda x: np.where(HOLES, -99.9, x).astype("f4"), {"missing": [-99.9]}
    ),
    "a code of integers": (COUNTS, lambda x: np.where(HOLES, -1, x), {"missing": -1}),
    "a code of bytes": (COUNTS, lambda x: np.where(HOLES, 99, x).astype("u1"), {"missing": 99}),
    "a large code": (
        COUNTS.astype("u8"), lambda x: np.where(HOLES, np.uint64(2**63), x), {"missing": 2**63}
    ),
    "two codes": (
        X, lambda x: np.where(HOLES, np.where(x > 0, -8888.0, 1e30), x).astype("f4"),
        {"missing": (-8888, 1e30)},
    ),
    "a mask and NaN": (
        X, lambda x: np.ma.array(np.where(HOLES & (x > 0), np.nan, x), mask=HOLES & (x <= 0)), {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MASKED)
def test_a_missing_value_is_missing_however_it_is_marked(kind):
    values, mark, options = MASKED[kind]
    want = from_arrays(np.where(HOLES, np.nan, values.astype("f8")))
    found = from_arrays(mark(values), **options)
    assert found.fingerprint() == want.fingerprint()
    assert found.levels == want.levels


def test_a_code_that_stands_nowhere_is_told():
    with pytest.warns(UserWarning, match="no value is -9999, which was to stand for a missing"):
        from_arrays(X, missing=-9999)
    with pytest.raises(ValueError, match="missing='NA': give numbers"):
        from_arrays(X, missing="NA")


# -------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    "shape", [(30,), (30, 5, 4), (30, 7, 5, 4), (30, 2, 3, 4, 5), (30, 5, 4, 3)]
)
@pytest.mark.parametrize("dtype", ["f4", "u1", "i8"])
def test_rows_given_to_fit_keep_their_shape(shape, dtype):
    x = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    found = as_dataset(x)
    assert found.event_shape == shape[1:]
    assert found.fingerprint() == from_arrays(x, axes=as_given).fingerprint()
    rows = torch.cat([part.x for part in parts(found)]).double().flatten(1 if x.ndim > 1 else 0)
    want = torch.from_numpy(x.astype("f8")).flatten(1 if x.ndim > 1 else 0)
    assert torch.equal(rows.sort(0).values, want.sort(0).values)
