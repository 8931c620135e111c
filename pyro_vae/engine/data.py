"""Observe the fields of stored rows, and draw batches of them.

Rows stay as they are stored (usually uint8) on the training device; each batch is gathered there
and then its x is *observed*. Training rows are observed anew at every visit, validation and test
rows once, with a seed of their own (`observe_once`).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_vae.datasets.data import Data, in_default_type, joined
from pyro_vae.engine.labelled_share import LabelledShare
from pyro_vae.engine.observations import AsFloat, Binarize, Dequantize, Observation
from pyro_vae.memory import MAPPED_BYTES, room, touched
from pyro_vae.wording import option

__all__ = [
    "OBSERVATION_SEED",
    "Batches",
    "in_chunks",
    "observe_once",
    "representative",
]

OBSERVATION_SEED = 0
"""Seed of the training rows that are drawn once: of the data, not of a run, so that runs compare.
The validation and test rows take the next two, so that no two parts share their noise."""

_CHUNK_BYTES = 2**26
_PAGES_AROUND = 2**19  # bytes of a file that Linux maps around a row that is read
_REPRESENTATIVE_ROWS = 10_000
_REPRESENTATIVE_ELEMENTS = 2**25


def observe_once(
    data: Data,
    observation: Observation,
    *,
    seed: int,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
) -> Data:
    """All rows, observed once and moved to a device.

    Drawn on the CPU from a generator state of its own, so the result depends on the rows and the
    seed alone, not on the device, and no global generator moves. Memory stays bounded, also for
    rows that are mapped from disk: a large result lies in a temporary file.

    Args:
        data: the stored rows.
        observation: how they become what the model sees.
        seed: of the draws; another one for each part of a data set.
        device: where the observed rows go.
        dtype: type to keep them in; the observation's own if not given.

    Returns:
        Rows `[N, *event_shape]`, which share no memory with `data.x`, and the other fields.

    Raises:
        ValueError: rows outside the levels of the observation.
    """
    _check_levels(data.x, observation)
    observed: Tensor | None = None
    begin = 0
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed the accelerators, which fork_rng does not restore.
        torch.default_generator.manual_seed(seed)
        for rows in in_chunks(data.x):
            chunk = observation(rows.cpu())
            if observed is None:
                observed = _room(data.x.shape, dtype or chunk.dtype)
            observed[begin : begin + len(rows)] = chunk
            begin += len(rows)
            touched(chunk.nbytes)
    assert observed is not None
    fields = {name: in_default_type(values) for name, values in data.fields.items()}
    fields["x"] = observed
    return data.replace(**{name: values.to(device) for name, values in fields.items()})


def in_chunks(x: Tensor) -> Iterator[Tensor]:
    """Some rows at a time, so that mapped ones are looked at without filling memory."""
    for rows in x.split(max(1, _CHUNK_BYTES // max(1, x[:1].numel() * 8))):
        yield rows
        touched(rows.nbytes)


def _room(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    filled = room((shape.numel() * dtype.itemsize,), np.dtype("u1"))
    return torch.from_numpy(filled).view(dtype).view(shape)


def representative(
    data: Data, observation: Observation, *, device: torch.device | str = "cpu"
) -> Data:
    """Training rows that stand for all, evenly spaced and observed once, to start programs from.

    Args:
        data: the stored training rows.
        observation: how they become what the model sees.
        device: where the observed rows go.

    Returns:
        All rows, or up to 10,000 of them, and no more than 2**25 numbers.
    """
    wanted = min(_REPRESENTATIVE_ROWS, _REPRESENTATIVE_ELEMENTS // max(1, data.x[0].numel()))
    if len(data) > max(2, wanted):
        index = torch.linspace(0, len(data) - 1, max(2, wanted), dtype=torch.float64).long()
        data = _gathered(data, index)
    return observe_once(data, observation, seed=OBSERVATION_SEED, device=device)


def _gathered(data: Data, index: Tensor) -> Data:
    """Rows by index, some at a time, so that the pages around them are dropped on the way."""
    found = [data[few] for few in _a_few(index, *data.fields.values())]
    rows = torch.cat([torch.as_tensor(one.rows) for one in found])
    return Data(**joined(found).fields, rows=rows)


def _a_few(index: Tensor, *tensors: Tensor) -> Iterator[Tensor]:
    """Indices of as many rows as may be read before the pages around them are dropped."""
    around = _bytes_around(*tensors)
    for few in index.split(max(1, MAPPED_BYTES // 4 // around)):
        yield few
        touched(around * len(few))


def _bytes_around(*tensors: Tensor) -> int:
    """How many bytes of mapped files reading one row brings into memory."""
    return max(sum(tensor[:1].nbytes for tensor in tensors), _PAGES_AROUND)


def _check_levels(x: Tensor, observation: Observation) -> None:
    levels = getattr(observation, "levels", None)
    if levels is None:
        return
    seen = (rows[~rows.isnan()] if x.is_floating_point() else rows for rows in in_chunks(x))
    ranges = [(rows.min().item(), rows.max().item()) for rows in seen if rows.numel()]
    low, high = (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else (0, 0)
    if low < 0 or high > levels:
        raise ValueError(
            f"{observation!r} takes values from 0 to {levels}, the data go from {low} to {high}; "
            "give it the data's own number of levels"
        )
    _check_whole(x, observation, high)


def _check_whole(x: Tensor, observation: Observation, high: float) -> None:
    """Refuse values within [0, 1] where integers up to `levels` are due: nearly all would be 0."""
    levels = getattr(observation, "levels", None) or 1
    scaled = isinstance(observation, Dequantize) or (levels > 1 and high <= 1)
    if not (scaled and x.is_floating_point()):
        return
    for rows in in_chunks(x):
        seen = rows[~rows.isnan()]
        broken = seen[seen != seen.floor()]
        if len(broken):
            raise ValueError(
                f"{observation} takes the integers from 0 to {levels}, the data hold "
                f"{broken[0].item():g}; give them as integers, such as (x * {levels}).round()"
            )


class Batches:
    """The training rows on the device, drawn in a permutation that depends on (seed, epoch) alone.

    Rows of up to `memory_budget` bytes live on the device. Beyond that, or where the device has no
    room for them, they are streamed from where they are: the same batches and, under the same state
    of the global generator, the same bits.

    Args:
        data: the stored training rows.
        observation: how each batch becomes what the model sees, on the device. One that observes
            `once` is applied here to all rows, which then need host memory, streamed or not.
        batch_size: rows a batch; the last batch of an epoch may be smaller.
        seed: of the permutations; with the epoch it fixes them.
        device: where batches are wanted.
        memory_budget: bytes of stored rows up to which they are kept on the device; 2 GiB.
        fields: what a batch is made of, x first.
        labelled_share: the part of each batch whose rows have a label; None: as it comes.

    Attributes:
        batch_size: as given.
        watched: the observation, on which a recorded step depends besides the rows.
        joins_single: whether a last batch of a single row joins the one before it, for programs
            that cannot be trained on one row, such as those with batch normalisation.
        resident: whether the rows live on the device.

    Raises:
        ValueError: a batch size outside 1..N; a field that is not there; rows outside the levels
            of the observation.
    """

    def __init__(
        self,
        data: Data,
        observation: Observation,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        memory_budget: int = 2 * 2**30,
        fields: Sequence[str] = ("x",),
        labelled_share: float | None = None,
    ) -> None:
        if not 1 <= batch_size <= len(data):
            raise ValueError(
                f"{option('batch_size', batch_size)} with {len(data)} training rows; "
                f"choose one from 1 to {len(data)}"
            )
        if observation.once:
            missing = any(bool(rows.isnan().any()) for rows in in_chunks(data.x))
            dtype = torch.uint8 if isinstance(observation, Binarize) and not missing else None
            data, observation = (
                observe_once(data, observation, seed=OBSERVATION_SEED, device="cpu", dtype=dtype),
                AsFloat(),
            )
        else:
            _check_levels(data.x, observation)
        self.watched, self.batch_size = observation, batch_size
        self._seed = seed
        self._share = None
        if labelled_share is not None:
            self._share = LabelledShare(data.labels, labelled_share, batch_size)
        self._device = torch.device(device)
        self._tensors = data.tensors(fields)
        self.joins_single = False
        num_bytes = sum(tensor.nbytes for tensor in self._tensors)
        self.resident = num_bytes <= memory_budget and self._move()

    def share(self, other: Batches) -> None:
        """Keep the same copy of the same data as other batches do."""
        self._tensors = other._tensors

    def rows_before(self, position: int) -> int:
        """Return how many rows the batches of an epoch before ``position`` hold."""
        last = position == self.num_batches
        return self._num_drawn if last else position * self.batch_size

    @property
    def _num_drawn(self) -> int:
        """How many rows the batches of an epoch hold."""
        share = self._share
        return len(self._tensors[0]) if share is None else share.num_batches * self.batch_size

    @property
    def num_batches(self) -> int:
        """How many batches an epoch has, a smaller last one included."""
        num_batches = -(-self._num_drawn // self.batch_size)
        return num_batches - (self.joins_single and self.ends_in_single)

    @property
    def ends_in_single(self) -> bool:
        """Whether a single row is left over at the end of an epoch."""
        return self.batch_size > 1 and self._num_drawn % self.batch_size == 1

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Batches `start`, `start + 1`, ... of an epoch: the fields in turn, x observed.

        Batches before `start` cost nothing and draw nothing: given the global generator's state at
        that point, the rest of the epoch is what it would have been.

        Raises:
            ValueError: a start outside `0..num_batches`.
        """
        return (self(*draw) for draw in self.draws(epoch, start=start))

    def draws(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Which rows each batch of `epoch` consists of, not yet gathered where they are resident.

        Raises:
            ValueError: a start outside `0..num_batches`.
        """
        if not 0 <= start <= self.num_batches:
            raise ValueError(f"start {start} of an epoch of {self.num_batches} batches")
        order = self._order(epoch)[start * self.batch_size :]
        if start == self.num_batches:
            return iter(())
        return self._drawn(order.to(self._device) if self.resident else order)

    def _order(self, epoch: int) -> Tensor:
        if self._share is not None:
            return self._share.order(self._seed, epoch)
        return _permutation(len(self._tensors[0]), self._seed, epoch)

    def _drawn(self, order: Tensor) -> Iterator[tuple[Tensor, ...]]:
        for index in order.split(self._sizes(len(order))):
            if self.resident:
                yield (index,)
                touched(_bytes_around(*self._tensors) * len(index))
            else:
                found = [self._gathered(few) for few in _a_few(index, *self._tensors)]
                parts = zip(*found, strict=True)
                yield tuple(torch.cat(rows).to(self._device) for rows in parts)

    def _gathered(self, index: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.index_select(0, index) for tensor in self._tensors)

    def __call__(self, *draw: Tensor) -> tuple[Tensor, ...]:
        """Turn what `draws` gives into a batch: gather the rows and observe them."""
        x, *beside = self._gathered(*draw) if self.resident else draw
        return (self.watched(x), *map(in_default_type, beside))

    def _sizes(self, num_rows: int) -> list[int]:
        """Return how many of the last rows of an epoch each batch takes."""
        whole, rest = divmod(num_rows, self.batch_size)
        sizes = [self.batch_size] * whole
        if rest == 1 and self.joins_single and self.ends_in_single:
            sizes[-1] += 1
        elif rest:
            sizes.append(rest)
        return sizes

    def _move(self) -> bool:
        try:
            self._tensors = tuple(tensor.to(self._device) for tensor in self._tensors)
        except torch.OutOfMemoryError:
            size = self._tensors[0].nbytes / 2**30
            warnings.warn(
                f"no room on {self._device} for {size:.2f} GiB of training rows: they are streamed "
                "from the host, with the same results",
                stacklevel=3,
            )
            return False
        return True


def _permutation(num_rows: int, seed: int, epoch: int) -> Tensor:
    # Hashed, since seed + epoch would give neighbouring seeds the same permutations; drawn on the
    # CPU, so that every device sees the same order.
    digest = hashlib.sha256(f"permutation {seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    return torch.randperm(num_rows, generator=generator)
