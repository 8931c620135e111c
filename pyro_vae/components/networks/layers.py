"""Shared by networks: checked shapes, rows, and the layers between sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from pyro_vae.arguments import built

__all__ = [
    "Build",
    "Initialise",
    "Normalise",
    "Rows",
    "Shape",
    "check_size",
    "check_sizes",
    "dense",
    "finished",
]

Shape = tuple[int, ...]
Build = Callable[[], nn.Module]
"""Builds a nonlinearity."""
Normalise = Callable[[int], nn.Module]
"""Builds a normalisation of rows from the number of their features, as ``nn.BatchNorm1d``."""
Initialise = Callable[[nn.Module], None]
"""Sets the weights of one layer, as ``nn.Module.apply`` asks for."""


class Rows:
    """The rows of an input: leading dimensions become one, and come back with the output.

    Args:
        network: Whose shapes they are; its name is in the errors.
        in_shape: The shape of one input.
        out_shape: The shape of one output.

    Raises:
        ValueError: If a shape holds what is no size.
    """

    def __init__(self, network: nn.Module, in_shape: Shape, out_shape: Shape) -> None:
        name = type(network).__name__
        self.in_shape = _checked_shape(name, "in_shape", in_shape, least=1)
        self.out_shape = _checked_shape(name, "out_shape", out_shape, least=0)
        self.in_size, self.out_size = math.prod(self.in_shape), math.prod(self.out_shape)

    def of(self, x: Tensor, *shape: int) -> Tensor:
        """Return ``[*batch, *in_shape]`` as ``[rows, *shape]``; as vectors without a shape."""
        num_rows = math.prod(self._batch(x))
        return x.reshape((num_rows, *(shape or (self.in_size,))))

    def back(self, rows: Tensor, x: Tensor) -> Tensor:
        """Return the outputs of the rows of ``x``, ``[rows, ...]``, as ``[*batch, *out_shape]``."""
        return rows.reshape((*self._batch(x), *self.out_shape))

    def _batch(self, x: Tensor) -> Shape:
        return tuple(x.shape[: x.dim() - len(self.in_shape)])


def dense(
    before: int, after: int, activation: Build, normalise: Normalise | None = None
) -> Iterable[nn.Module]:
    """Yield a linear layer, its normalisation and its nonlinearity.

    A normalisation has an offset of its own, or wants none: with one, no layer has a bias.
    """
    yield nn.Linear(before, after, bias=normalise is None)
    yield from activated(after, activation, normalise)


def activated(
    size: int, activation: Build, normalise: Normalise | None = None
) -> Iterable[nn.Module]:
    """Yield the normalisation of so many features, or channels, and a nonlinearity."""
    if normalise is not None:
        yield built("normalise", normalise, nn.Module, size)
    yield built("activation", activation, nn.Module)


def finished(network: nn.Module, initialise: Initialise | None) -> None:
    """Set the weights of a network that is built."""
    if initialise is not None:
        network.apply(initialise)


def check_size(name: str, size: Any) -> None:
    """Refuse what is no positive integer."""
    if not _is_size(size):
        raise ValueError(f"{name}={size!r}: give a positive integer")


def check_sizes(name: str, sizes: Any, *, empty: bool = False) -> None:
    """Refuse what is no sequence of positive integers, or an empty one unless it may be."""
    is_sequence = isinstance(sizes, Sequence) and not isinstance(sizes, str)
    if not is_sequence or not all(_is_size(size) for size in sizes):
        shown = tuple(sizes) if is_sequence else sizes
        raise ValueError(f"{name}={shown!r}: layer sizes are positive integers, such as (64, 32)")
    if not empty and not sizes:
        raise ValueError(f"{name}=(): at least one layer is needed, such as (64,)")


def _is_size(size: Any, least: int = 1) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= least


def _checked_shape(network: str, name: str, shape: Any, *, least: int) -> Shape:
    found = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else None
    if found is None or not all(_is_size(size, least) for size in found):
        raise ValueError(
            f"{network}: {name}={shape!r} is no shape: give a tuple of positive integers"
        )
    return found
