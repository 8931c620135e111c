"""Documents as bags of words in files: sparse counts, and the words of their columns."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.datasets.arrays import from_arrays
from pyro_vae.datasets.axes import as_given
from pyro_vae.datasets.data import Dataset
from pyro_vae.datasets.images import visible
from pyro_vae.datasets.names import split_names
from pyro_vae.datasets.overlap import warn_of_shared_rows
from pyro_vae.files import reason, show
from pyro_vae.wording import option, warn

__all__ = ["holds_counts", "is_counts", "load_counts", "read_words", "with_words"]

_VOCABULARIES = ("vocab.txt", "vocabulary.txt")
_OF_SCIPY = {"format.npy", "shape.npy", "data.npy"}


def is_counts(path: Path) -> bool:
    """Tell whether a file holds sparse rows, as ``scipy.sparse.save_npz`` writes them."""
    if path.suffix.lower() != ".npz" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {*archive.namelist()} >= _OF_SCIPY


def holds_counts(folder: Path) -> bool:
    """Tell whether a folder holds sparse rows, one file for each split."""
    return any(map(is_counts, folder.glob("*.npz")))


def load_counts(path: Path) -> Dataset:
    """Load bags of words from sparse rows: a file, or a folder of ``train.npz`` and ``test.npz``.

    A file ``vocab.txt`` beside them has the words of the columns, one a line. Documents without a
    word are left out, and counted in a warning. Of a folder without ``validation.npz``, the last
    tenth of the training documents is for validation, in a fixed order that is drawn.

    Raises:
        ValueError: If a file is damaged, holds what is no count, or a vocabulary has another size.
    """
    files = {"": path} if path.is_file() else _of_splits(path)
    rows = {part: _counts(file) for part, file in files.items()}
    given: Any = {part: {"x": counts} for part, counts in rows.items()}
    if "" not in given and "validation" not in given:
        given["train"]["x"], given["validation"] = _held_out(given["train"]["x"])
    found = from_arrays(given.get("", given), name=path.resolve().name, axes=as_given)
    if "" not in given:
        warn_of_shared_rows(found)
    folder = path if path.is_dir() else path.parent
    vocabulary = next((f for name in _VOCABULARIES if (f := folder / name).is_file()), None)
    return found if vocabulary is None else with_words(found, read_words(vocabulary), vocabulary)


def _of_splits(folder: Path) -> dict[str, Path]:
    files = {file.stem: file for file in visible(folder) if is_counts(file)}
    if len(files) == 1:
        return {"": next(iter(files.values()))}
    needs_validation = files.keys() >= {"train", "test"} and len(files) == 2
    parts = split_names([*files, *["validation"] * needs_validation], str(folder))
    if parts is None:
        raise ValueError(
            f"{show(folder)}: sparse rows in {', '.join(sorted(files))}; expected train.npz and "
            "test.npz, and validation.npz where there is one"
        )
    return {part: files[name] for part, name in parts.items() if name in files}


def _counts(path: Path) -> Any:
    """Return the rows of a file that have a word."""
    import scipy.sparse as sparse  # which changes the filters of warnings

    try:
        held = sparse.load_npz(path)
        if hasattr(held, "check_format"):
            held.check_format(full_check=True)
        rows = sparse.csr_matrix(held)
    except Exception as error:  # numpy, zipfile and scipy raise a dozen kinds for a damaged file
        raise ValueError(
            f"{show(path)}: no sparse rows ({reason(error)}); write them by scipy.sparse.save_npz"
        ) from None
    rows.sum_duplicates()
    _refuse_no_counts(rows, path)
    kept = np.flatnonzero(np.asarray(rows.sum(1)).ravel())
    if not len(kept):
        raise ValueError(f"{show(path)}: no document has a word; give some that have")
    if (num_empty := rows.shape[0] - len(kept)) > 0:
        warn(f"{show(path)}: {num_empty:,} of {rows.shape[0]:,} documents without a word left out")
    kind = np.dtype("i2" if rows.data.max() < 2**15 else "i4")
    return rows[kept].astype(kind)


def _refuse_no_counts(rows: Any, path: Path) -> None:
    data = rows.data
    wrong = ~np.isfinite(data) | (data < 0) | (data != np.floor(data))
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        row = int(np.searchsorted(rows.indptr, place, side="right")) - 1
        raise ValueError(
            f"{show(path)}: {data[place]:g} at row {row}, column {rows.indices[place]}: documents "
            "are counts of words, 0, 1, 2, ..., as of scikit-learn's CountVectorizer, not weights"
        )


def _held_out(rows: Any) -> tuple[Any, dict[str, Any]]:
    """Return training rows, and a tenth of them for validation."""
    if rows.shape[0] < 2:
        raise ValueError("one document for training and validation: give 2 or more")
    order = np.random.RandomState(0).permutation(rows.shape[0])
    first = rows.shape[0] - max(1, round(rows.shape[0] / 10))
    return rows[np.sort(order[:first])], {"x": rows[np.sort(order[first:])]}


# Words --------------------------------------------------------------------------------------------


def read_words(path: Path) -> tuple[str, ...]:
    """Read a vocabulary: the word of each column, one a line.

    Raises:
        ValueError: If it is no text, or a line is empty or there twice.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{show(path)}: no UTF-8 at byte {error.start}; save it as such") from None
    words = [line.strip() for line in lines]
    places: dict[str, int] = {}
    for number, word in enumerate(words, 1):
        if not word:
            raise ValueError(f"{show(path)}: line {number} is empty; give one word a line")
        if word in places:
            raise ValueError(
                f"{show(path)}: line {number} is {word!r}, and so is line {places[word]}; give "
                "each column a word of its own"
            )
        places[word] = number
    return tuple(words)


def with_words(data: Dataset, words: Sequence[str], source: Path | str) -> Dataset:
    """Return bags of words with what their columns count.

    Raises:
        ValueError: If there is not one word for each column.
    """
    if data.vocabulary is not None or len(data.event_shape) != 1:
        raise ValueError(
            f"{show(Path(source))}: {data.name} holds no bags of words, (N, V), whose columns "
            f"{option('vocabulary')} could name"
        )
    if len(words) != data.event_shape[0]:
        raise ValueError(
            f"{show(Path(source))}: {len(words):,} words for the {data.event_shape[0]:,} columns "
            f"of {data.name}; give one word a line, in the order of the columns"
        )
    return replace(data, words=tuple(words))
