"""``--data-weights``: the weight of each row in training, from a file or from the data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.datasets import Dataset
from pyro_vae.datasets.arrays import weighted
from pyro_vae.datasets.columns import column
from pyro_vae.files import reason, show

__all__ = ["make_path_absolute", "with_weights"]


def make_path_absolute(config: Any) -> None:
    """Let the path of a configuration's weights hold wherever it is read from; in place."""
    if config.data_weights is not None and Path(config.data_weights).expanduser().is_file():
        config.data_weights = str(Path(config.data_weights).expanduser().resolve())


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
