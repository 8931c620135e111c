"""Load the data that the options name: their axes, codes of missing values, and weights."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae import datasets
from pyro_vae.datasets import Dataset, Reading, Table, TableReading, Vocabulary
from pyro_vae.datasets.arrays import weighted
from pyro_vae.datasets.columns import column
from pyro_vae.datasets.labels import few_labels
from pyro_vae.datasets.text_files import TABLES
from pyro_vae.files import reason, show

__all__ = ["load_data", "make_paths_absolute", "with_weights"]


_OF_TEXT = {
    "symbols": "symbols",
    "max_symbols": "max_symbols",
    "max_length": "max_length",
    "longer": "longer",
    "text_column": "column",
    "label_column": "label_column",
    "min_documents": "min_documents",
    "stop_words": "stop_words",
    "invalid": "invalid",
}
"""Options of text, and what they are called where it is read."""


def load_data(
    given: str | Path,
    config: Any,
    *,
    vocabulary: Vocabulary | None = None,
    length: int = 1,
    words: tuple[str, ...] | None = None,
    table: Table | None = None,
) -> Dataset:
    """Load data for a program: as tables and images for ours, of any shape as it is for others.

    Args:
        given: A name, or the path of a file or a folder.
        config: Of a run: ``data_root``, ``data_weights``, ``missing``, ``num_labels``, ``seed`` and
            ``model``; how text is read: ``symbols`` and its kin.
        vocabulary: Of a trained run, for texts.
        length: That of its rows.
        words: Those that a trained run counts in texts.
        table: Of a trained run, for tables.
    """
    codes = [float(word) for word in str(config.missing).split(",")] if config.missing else []
    own = config.model is not None and not config.model.path.startswith("pyro_vae.models.")
    axes = datasets.as_given if own else datasets.as_images
    apart = () if config.data_weights is None else (config.data_weights,)
    root = Path(config.data_root)
    text = _reading(config, vocabulary, length)
    if (vocabulary is not None or words is not None) and not _is_table(given):
        # The columns of the table that a run was trained on are none of another file's.
        text = None if text is None else replace(text, column=None, label_column=None)
    named = getattr(config, "vocabulary", None)
    data = datasets.load(
        given, root=root, missing=codes, axes=axes, apart=apart, text=text,
        words=words or (None if named is None else Path(named).expanduser()),
        table=_table_reading(config, table),
    )  # fmt: skip
    return _with_few_labels(data, config)


def _is_table(given: str | Path) -> bool:
    return Path(given).suffix.lower() in TABLES


def _reading(config: Any, vocabulary: Vocabulary | None, length: int) -> Reading | None:
    """Return how text is read; None where neither the options nor a run say anything of it."""
    asked = {ours: getattr(config, name, None) for name, ours in _OF_TEXT.items()}
    known: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if vocabulary is not None:
        known |= {"vocabulary": vocabulary, "max_length": length}
    return Reading(**known) if known else None


def _table_reading(config: Any, table: Table | None) -> TableReading | None:
    """Return how a table is read; None where neither the options nor a run say anything of it."""
    if table is not None:
        return TableReading(table=table)
    kinds, ignored = (getattr(config, name, None) for name in ("columns", "ignore"))
    if not kinds and not ignored:
        return None
    return TableReading(_kinds(kinds or ""), tuple(_words(ignored or "")))


def _kinds(given: str) -> dict[str, str]:
    pairs = [word.rpartition("=") for word in _words(given)]
    wrong = next((kind for name, _, kind in pairs if not name), None)
    if wrong is not None:
        raise ValueError(
            f"--columns {given}: give names and kinds, such as age=real,zip=categorical"
        )
    return {name.strip(): kind.strip() for name, _, kind in pairs}


def _words(given: str) -> list[str]:
    """Return the words between commas; a name that holds one is in double quotes."""
    return [word.strip() for word in next(csv.reader([given], skipinitialspace=True)) if word]


def _with_few_labels(data: Dataset, config: Any) -> Dataset:
    """Hide all labels of training rows but as many as ``--num-labels`` says."""
    number = getattr(config, "num_labels", None)
    if number is None:
        return data
    if data.train.labels is None:
        raise ValueError(f"--num-labels {number}: {data.name} has no labels; leave it out")
    kept = few_labels(data.train.labels, number, seed=config.seed or 0)
    return replace(data, train=data.train.replace(labels=kept))


def make_paths_absolute(config: Any) -> None:
    """Let a configuration's paths hold wherever it is read from; in place."""
    is_path = {
        "data": lambda path: path.exists() and not _is_name(config.data),
        "data_weights": Path.is_file,  # or the name of an array
        "symbols": Path.is_file,  # or their name
        "vocabulary": lambda path: True,
        "init_from": lambda path: True,
        "refit": lambda path: True,
        "data_root": lambda path: True,
    }
    for name, check in is_path.items():
        value = getattr(config, name, None)
        if value is not None and check(path := Path(value).expanduser()):
            setattr(config, name, type(value)(path.resolve()))


def _is_name(given: str) -> bool:
    return given.lower().replace("-", "_") in datasets.NAMES


def with_weights(config: Any, data: Dataset) -> Dataset:
    """Return the data with the weights of the training rows that ``--data-weights`` names, if any.

    Args:
        config: The parsed options.
        data: The data set; weights of all of its rows are split as they are.

    Raises:
        ValueError: If there are no such weights or they do not fit the data.
    """
    given = config.data_weights
    if given is None:
        return data
    where = f"--data-weights {given}"
    values, rows = np.asarray(_read(where, given, config.data)), data.train.rows
    if values.shape != (len(data.train),) and rows is not None:
        num_rows = sum(map(len, data.parts.values()))
        values = column("weights", values, np.empty((num_rows, 0)), where)[np.asarray(rows)]
    return weighted(data, values, where)


def _read(where: str, given: str, data: str) -> Any:
    path = Path(given).expanduser()
    archive = Path(data).expanduser()
    try:
        if path.suffix == ".npy" or path.is_file():
            return np.load(path, allow_pickle=False)
        if archive.suffix == ".npz":
            with np.load(archive, allow_pickle=False) as arrays:
                if given in arrays.files:
                    return arrays[given]
                held = ", ".join(arrays.files)
                raise KeyError(f"{show(archive)} holds {held}")
        raise KeyError("there is no such file")
    except KeyError as error:
        raise ValueError(
            f"{where}: {error.args[0]}; name a .npy file of one number per row, or an array of the "
            ".npz file that --data names"
        ) from None
    except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged file
        raise ValueError(
            f"{where}: cannot be read ({reason(error)}); name a .npy file of one number per row"
        ) from None
