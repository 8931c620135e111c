"""Find rows of validation and test data that also occur in the training data."""

from __future__ import annotations

import math
import warnings
from collections import Counter

from torch import Tensor

from pyro_vae.datasets.data import Dataset

__all__ = ["warn_of_shared_rows"]

_STANDARD_ERRORS = 3


def warn_of_shared_rows(data: Dataset) -> None:
    """Warn of held-out rows that also stand in the training data, where that is no coincidence.

    Rows of few values, such as those of a small binary table, coincide by themselves: of held-out
    rows, about as large a share has a twin in the training data as of the training rows.
    """
    counts = Counter(_hashes(data.train.x))
    alike = sum(count for count in counts.values() if count > 1) / len(data.train)
    for name, part in (("validation", data.validation), ("test", data.test)):
        num_shared = sum(row in counts for row in _hashes(part.x))
        error = math.sqrt(alike * (1 - alike) / len(part))
        if num_shared and num_shared / len(part) > alike + _STANDARD_ERRORS * error:
            warnings.warn(
                f"{data.name}: {num_shared:,} of {len(part):,} {name} rows stand in the training "
                "data, too: what is measured on them is not held out; leave them out of one",
                stacklevel=5,
            )


def _hashes(x: Tensor) -> list[int]:
    return [hash(row.tobytes()) for row in x.numpy()]
