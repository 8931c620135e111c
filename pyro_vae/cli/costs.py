"""Memory estimates as errors that name the option to change."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro_vae.budget import OverBudgetError
from pyro_vae.cli.config_files import leaves
from pyro_vae.cli.parser import as_dict
from pyro_vae.cli.programs import latent_shapes

__all__ = ["MOST_OPERATIONS", "naming_options"]

MOST_OPERATIONS = 20_000
"""Operations on tensors that building a program may take; a hundred layers take a thousand."""

_FAR_LARGER = 1000
_NO_SIZES = ("seed", "epochs", "num_samples", "patience", "clip_norm", "lr")


@contextmanager
def naming_options(config: Any) -> Iterator[None]:
    """Say of what memory cannot hold which option asks for it.

    Raises:
        ValueError: Names the option whose value the size of a tensor is a multiple of.
    """
    try:
        yield
    except OverBudgetError as error:
        option, size = _asking(error.shape, dict(_sizes(config)))
        what, _, cure = str(error).rpartition("; ")
        cure = cure if cure.startswith("lower batch_size") else f"lower {option}"
        cure = cure.replace("batch_size", "--batch-size")
        shown = config.latent if option == "--latent" else size
        raise ValueError(f"{option} {shown}: {what}; {cure}") from error


def _asking(shape: tuple[int, ...], sizes: dict[str, int]) -> tuple[str, int]:
    fitting = {
        option: size for option, size in sizes.items()
        if size > 1 and any(length % size == 0 for length in shape)
    }  # fmt: skip
    largest = max(sizes.items(), key=lambda item: item[1])
    likely = max((fitting or sizes).items(), key=lambda item: item[1])
    return largest if largest[1] > _FAR_LARGER * likely[1] else likely


def _sizes(config: Any) -> Iterator[tuple[str, int]]:
    """The counts and sizes among the options, latents by their number in all."""
    yield "--batch-size", config.batch_size or 1
    if config.latent is not None:
        yield "--latent", max(map(math.prod, latent_shapes(config.latent)))
    for name, value in leaves(as_dict(config)).items():
        first, *rest = name.split(".")
        if first in _NO_SIZES or first in ("batch_size", "latent"):
            continue
        option = "--" + ".".join([first.replace("_", "-"), *rest])
        numbers = value if isinstance(value, (list, tuple)) else [value]
        whole = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool)]
        if whole:
            yield option, max(whole)
