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
_NO_SIZES = (
    "seed",
    "epochs",
    "num_samples",
    "patience",
    "clip_norm",
    "lr",
    "momentum",
    "num_labels",
)


@contextmanager
def naming_options(config: Any) -> Iterator[None]:
    """Say of what memory cannot hold which option asks for it.

    Raises:
        ValueError: Names the option whose value the size of a tensor is a multiple of.
    """
    try:
        yield
    except OverBudgetError as error:
        sizes = _counts(config) if error.of_operations else _sizes(config)
        option, size = _asking(error.shape, dict(sizes))
        what, _, cure = str(error).rpartition("; ")
        cure = cure if cure.startswith("lower batch_size") else f"lower {option}"
        cure = cure.replace("batch_size", "--batch-size")
        shown = size if option != "--latent" or error.of_operations else config.latent
        shown = (
            f"with {size:,} sizes" if error.of_operations and _is_list(option, config) else shown
        )
        raise ValueError(f"{option} {shown}: {what}; {cure}") from error


def _asking(shape: tuple[int, ...], sizes: dict[str, int]) -> tuple[str, int]:
    fitting = {
        option: size for option, size in sizes.items()
        if size > 1 and any(length % size == 0 for length in shape)
    }  # fmt: skip
    largest = max(sizes.items(), key=lambda item: item[1])
    likely = max((fitting or sizes).items(), key=lambda item: item[1])
    return largest if largest[1] > _FAR_LARGER * likely[1] else likely


def _is_list(option: str, config: Any) -> bool:
    return option == "--latent" or isinstance(dict(_options(config)).get(option), list | tuple)


def _counts(config: Any) -> Iterator[tuple[str, int]]:
    """How many layers, flows and the like the options ask for."""
    if config.latent is not None:
        yield "--latent", len(latent_shapes(config.latent))
    for option, value in _options(config):
        if isinstance(value, list | tuple):
            yield option, len(value)
        elif isinstance(value, int) and "num_" in option:
            yield option, value


def _options(config: Any) -> Iterator[tuple[str, Any]]:
    """The options but those that say nothing of sizes, and their values."""
    for name, value in leaves(as_dict(config)).items():
        first, *rest = name.split(".")
        if first not in _NO_SIZES and first not in ("batch_size", "latent"):
            yield "--" + ".".join([first.replace("_", "-"), *rest]), value


def _sizes(config: Any) -> Iterator[tuple[str, int]]:
    """The counts and sizes among the options, latents by their number in all."""
    yield "--batch-size", config.batch_size or 1
    if config.latent is not None:
        yield "--latent", max(map(math.prod, latent_shapes(config.latent)))
    for option, value in _options(config):
        numbers = value if isinstance(value, (list, tuple)) else [value]
        whole = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool)]
        if whole:
            yield option, max(whole)
