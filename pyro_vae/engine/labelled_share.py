"""Batches with a fixed share of labelled rows, whatever share of all rows is labelled."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from pyro_vae.wording import option

__all__ = ["LabelledShare"]


class LabelledShare:
    """Draws the labelled and the other rows apart, so many of each for every batch.

    An epoch goes through the larger part once, in a random order, and through the other again and
    again, each time in a new order. All its batches are whole.

    Args:
        labels: Of the training rows, ``[N]``; -1 where there is none.
        share: Of each batch, above 0 and below 1.
        batch_size: Rows a batch.

    Attributes:
        num_batches: How many an epoch has.

    Raises:
        ValueError: If the share leaves no row for one of both, or there is none.
    """

    def __init__(self, labels: Tensor | None, share: float, batch_size: int) -> None:
        said = option("labelled_share", share)
        if not 0 < share < 1:
            raise ValueError(f"{said}: the labelled part of a batch lies between 0 and 1")
        if labels is None:
            raise ValueError(f"{said}: the data have no labels; give them, or leave it out")
        labelled = labels.cpu() >= 0
        self._pools = [where.nonzero().flatten() for where in (labelled, ~labelled)]
        first = round(share * batch_size)
        self._sizes = [first, batch_size - first]
        for pool, size, which in zip(self._pools, self._sizes, ("a", "no"), strict=True):
            if not len(pool):
                raise ValueError(
                    f"{said}: no training row has {which} label; leave it out, or give some rows "
                    f"{'labels' if which == 'a' else 'the label -1'}"
                )
            if not size:
                raise ValueError(
                    f"{said} of a batch of {batch_size} leaves no place for rows with {which} "
                    "label; give another share, or larger batches"
                )
        pairs = zip(self._pools, self._sizes, strict=True)
        self.num_batches = max(-(-len(pool) // size) for pool, size in pairs)

    def order(self, seed: int, epoch: int) -> Tensor:
        """Return the rows of an epoch, batch after batch; it depends on (seed, epoch) alone."""
        parts = [
            self._stream(pool, size * self.num_batches, f"{place} {seed} {epoch}").reshape(-1, size)
            for place, (pool, size) in enumerate(zip(self._pools, self._sizes, strict=True))
        ]
        return torch.cat(parts, 1).flatten()

    def _stream(self, pool: Tensor, num_rows: int, name: str) -> Tensor:
        digest = hashlib.sha256(f"labelled share {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        times = -(-num_rows // len(pool))
        passes = [pool[torch.randperm(len(pool), generator=generator)] for _ in range(times)]
        return torch.cat(passes)[:num_rows]
