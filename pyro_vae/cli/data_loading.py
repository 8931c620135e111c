"""Load the data of a command line: their axes and their codes of missing values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_vae import datasets

__all__ = ["load_data"]


def load_data(given: str | Path, config: Any) -> datasets.Dataset:
    """Load data for a program: as tables and images for ours, of any shape as it is for others.

    Args:
        given: A name, or the path of a file or a folder.
        config: Of a run: ``data_root``, ``data_weights``, ``missing`` and ``model``.
    """
    codes = [float(word) for word in str(config.missing).split(",")] if config.missing else []
    own = config.model is not None and not config.model.path.startswith("pyro_vae.models.")
    axes = datasets.as_given if own else datasets.as_images
    apart = () if config.data_weights is None else (config.data_weights,)
    return datasets.load(given, root=Path(config.data_root), missing=codes, axes=axes, apart=apart)
