"""Split data into batches that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vae import memory
from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import Layout
from pyro_vae.inference.terms import site_terms

__all__ = [
    "CHUNK_ELEMENTS",
    "batches",
    "check_counts",
    "cycled",
    "double",
    "pairs_at_once",
    "refuse_sampled",
]

CHUNK_ELEMENTS = 2**22
"""Of the largest tensor of a chunk: 16 MB of float32, past which larger ones are no faster."""


def check_counts(**counts: int | None) -> None:
    """Check that the counts that are given are positive.

    Raises:
        ValueError: If one is less than 1; names it.
    """
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name}={count}: at least 1 is needed")


def refuse_sampled(layout: Layout, what: str) -> None:
    """Refuse what takes p(x, z) to a power where a plate inside a datum is subsampled.

    Raises:
        ValueError: If one is; names the plate.
    """
    reason = layout.sampled_weights(what)
    if reason is not None:
        raise ValueError(reason)


def batches(args: tuple[Tensor, ...], batch_size: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield ``args`` in pieces of ``batch_size`` rows; the last piece is what is left."""
    for start in range(0, len(args[0]), batch_size):
        yield tuple(arg[start : start + batch_size] for arg in args)


def cycled(args: tuple[Tensor, ...], num_rows: int) -> tuple[Tensor, ...]:
    """Return ``num_rows`` rows of ``args``, which are repeated in turn.

    Raises:
        TooLargeError: If they and what is computed of them take more memory than there is.
    """
    needed = 2 * num_rows * sum(arg[0].nbytes for arg in args)
    memory.refuse_beyond(needed, f"{num_rows:,} data, with what is drawn of them,", "take fewer")
    return tuple(arg[torch.arange(num_rows, device=arg.device) % len(arg)] for arg in args)


def pairs_at_once(program: Program, layout: Layout, *args: Tensor) -> int:
    """Return how many pairs of a datum and a sample fit a chunk, by the largest tensor of a run.

    Weights and other tensors that do not grow with the batch do not count: a run on four data is
    held against one on two.
    """
    with program.evaluating(seed=0):
        two, four = (_sizes(program, layout, cycled(args, num_rows)) for num_rows in (2, 4))
    largest = max(((b - a) // 2 for a, b in zip(two, four, strict=False)), default=1)
    return max(1, CHUNK_ELEMENTS // max(1, largest))


class _Sizes(TorchDispatchMode):
    """Note the number of elements of every tensor that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.found += [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        return out


def _sizes(program: Program, layout: Layout, args: tuple[Tensor, ...]) -> list[int]:
    with _Sizes() as sizes:
        site_terms(program, layout, *args, bounded=False)
    return sizes.found


def double(values: Tensor) -> Tensor:
    """Return values in float64."""
    # Apple's devices have no float64.
    return values.cpu().double() if values.device.type == "mps" else values.double()
