"""A weight for each row: a field of the data, carried by every batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_vae import datasets
from pyro_vae.datasets import Data, Dataset, from_arrays, load

X = np.arange(60.0, dtype=np.float32).reshape(20, 3) + 0.5
ROWS = np.arange(20)


def rows_of(part: Data) -> torch.Tensor:
    """Return which of the rows of `X` a part holds."""
    return (part.x[:, 0] - 0.5) / 3


def held_together(dataset: Dataset) -> bool:
    parts = (dataset.train, dataset.validation, dataset.test)
    return all(torch.equal(part.weights, rows_of(part)) for part in parts)


KINDS = {
    "floats": ROWS.astype(np.float64),
    "integers": ROWS,
    "a list": ROWS.tolist(),
    "a tensor": torch.arange(20, dtype=torch.float16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_follow_their_rows(kind):
    dataset = from_arrays(X, weights=KINDS[kind])
    assert held_together(dataset)
    assert dataset.train.weights.dtype == torch.float32


def test_booleans_are_weights_of_one_and_none():
    weights = from_arrays(X, weights=ROWS > 3).train.weights
    assert set(weights.tolist()) == {0.0, 1.0}


REFUSED = {
    "a negative one": (np.where(ROWS == 7, -0.5, 1.0), "-0.5 at row 7"),
    "NaN": (np.where(ROWS == 0, np.nan, 1.0), "nan at row 0"),
    "infinity": (np.where(ROWS == 19, np.inf, 1.0), "inf at row 19"),
    "beyond float32": (np.where(ROWS == 2, 1e300, 1.0), "inf at row 2"),
    "too few": (np.ones(19), r"shape \(19,\), expected \(20,\)"),
    "a column": (np.ones((20, 1)), r"shape \(20, 1\), expected \(20,\)"),
    "text": (np.array(["heavy"] * 20), "not numeric"),
    "nothing but zeros": (np.zeros(20), "all are 0"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_weights_that_do_not_fit_are_refused_with_the_row(case):
    weights, words = REFUSED[case]
    with pytest.raises(ValueError, match=f"weights of array.*{words}"):
        from_arrays(X, weights=weights)


def test_npz_holds_weights_beside_its_rows(tmp_path):
    for name in ("x", "anything"):
        np.savez(tmp_path / "a.npz", **{name: X, "weights": ROWS})
        assert held_together(load(tmp_path / "a.npz"))


def test_npz_holds_weights_of_splits(tmp_path):
    parts = {"train": X[:10], "validation": X[10:15], "test": X[15:]}
    np.savez(tmp_path / "a.npz", **parts, train_weights=ROWS[:10])
    dataset = load(tmp_path / "a.npz")
    assert torch.equal(dataset.train.weights, rows_of(dataset.train))
    assert dataset.test.weights is None


def test_the_fingerprint_sees_weights_and_is_what_it_was_without():
    weighted = from_arrays(X, weights=ROWS)
    plain = Dataset("a", *(Data(part.x) for part in _parts(weighted)), None)
    assert plain.fingerprint() == from_arrays(X).fingerprint() != weighted.fingerprint()
    assert weighted.fingerprint() != from_arrays(X, weights=ROWS + 1).fingerprint()


def _parts(dataset: Dataset) -> list[Data]:
    return [dataset.train, dataset.validation, dataset.test]


def test_rows_taken_out_keep_what_belongs_to_them():
    data = datasets.Data(torch.arange(4.0)[:, None], torch.arange(4), torch.arange(4.0))
    for index in (slice(1, 3), torch.tensor([2, 0])):
        few = data[index]
        assert torch.equal(few.weights, few.x[:, 0])
        assert torch.equal(few.labels, few.weights.long())
