"""Distributions over the vectors of a codebook: a single one, and any over its indices.

A value is a grid of code vectors, the channels first, ``[*batch, D, *grid]``; a codebook says which
vectors there are and which index each has.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["CodePoint", "CodeVectors", "Codes", "UniformCodeVectors"]

_NEAR = 1e-4  # of a vector's length: what rounding moves a code by


class Codes(Protocol):
    """What a codebook knows.

    Attributes:
        num_codes: K, how many vectors there are.
    """

    num_codes: int

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the indices ``[*batch]`` of the vectors next to ``[*batch, D]``."""

    def vectors(self, indices: Tensor) -> Tensor:
        """Return the vectors ``[*batch, D]`` of indices ``[*batch]``."""


class _OneOf(constraints.Constraint):
    """The grids of vectors that a codebook has."""

    is_discrete = True

    def __init__(self, codes: Codes, event_dim: int) -> None:
        self.codes, self.event_dim = codes, event_dim
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Return whether all vectors of each event are of the codebook."""
        vectors = channels_last(value, self.event_dim)
        code = self.codes.vectors(self.codes.nearest(vectors))
        off = (vectors - code).norm(dim=-1) > _NEAR * (1 + code.norm(dim=-1))
        return ~off.flatten(1 - self.event_dim).any(-1) if self.event_dim > 1 else ~off


class CodePoint(TorchDistribution):
    """A single grid of code vectors, of probability one.

    Args:
        value: ``[*batch, D, *grid]``, with what gradients it has.
        indices: Of the codes, ``[*batch, *grid]``.
        codes: The codebook.
        event_dim: The number of the last dimensions of a value that are one event.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_rsample = True
    is_certain = True  # its log-probability has no gradient to train an encoder by

    def __init__(self, value: Tensor, indices: Tensor, codes: Codes, event_dim: int) -> None:
        self.value, self.indices, self.codes = value, indices, codes
        split = value.dim() - event_dim
        super().__init__(value.shape[:split], value.shape[split:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CodePoint:
        """Return the same distribution with this batch shape."""
        value = self.value.expand(*batch_shape, *self.event_shape)
        indices = self.indices.expand(*batch_shape, *self.event_shape[1:])
        return type(self)(value, indices, self.codes, len(self.event_shape))

    @property
    def support(self) -> Any:
        """The grids of vectors of the codebook."""
        return _OneOf(self.codes, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """The value, ``[*batch, *event_shape]``."""
        return self.value

    @property
    def variance(self) -> Tensor:
        """Zero, ``[*batch, *event_shape]``."""
        return torch.zeros_like(self.value)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return the value, with its gradients."""
        drawn: Any = self.value.expand(*sample_shape, *self.value.shape)
        # A codebook may have moved until the value is scored: it keeps the codes that it was.
        drawn.indices_of_codes = self.indices.expand(*sample_shape, *self.indices.shape)
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Return 0 where the value is this one, and minus infinity elsewhere, ``[*batch]``."""
        same = (value == self.value).flatten(-len(self.event_shape)).all(-1)
        return torch.where(same, 0.0, -math.inf).to(self.value.dtype)


class CodeVectors(TorchDistribution):
    r"""Grids of code vectors whose indices follow a distribution, :math:`p(e_k) = p(k)`.

    Args:
        indices: Over grids of indices from 0 to K - 1, an event of shape ``grid``.
        codes: The codebook.
        num_channels: D, the length of a vector.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, indices: Any, codes: Codes, num_channels: int) -> None:
        self.indices, self.codes, self.num_channels = indices, codes, num_channels
        event_shape = torch.Size((num_channels, *indices.event_shape))
        super().__init__(indices.batch_shape, event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CodeVectors:
        """Return the same distribution with this batch shape."""
        return type(self)(self.indices.expand(batch_shape), self.codes, self.num_channels)

    @property
    def support(self) -> Any:
        """The grids of vectors of the codebook."""
        return _OneOf(self.codes, len(self.event_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw indices, and return their vectors, ``[*sample_shape, *batch, D, *grid]``."""
        with torch.no_grad():
            vectors = self.codes.vectors(self.indices.sample(sample_shape).long())
        return channels_first(vectors, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the indices of a value, ``[*batch]``."""
        kept = getattr(value, "indices_of_codes", None)
        if kept is None:
            kept = self.codes.nearest(channels_last(value, len(self.event_shape)).detach())
        return self.indices.log_prob(kept)


class UniformCodeVectors(CodeVectors):
    r"""All K vectors alike in each of M places: :math:`\log p = -M \log K`, without a search."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of any value, ``[*batch]``."""
        batch = value.shape[: value.dim() - len(self.event_shape)]
        num_places = math.prod(self.event_shape[1:])
        shape = torch.broadcast_shapes(batch, self.batch_shape)
        return value.new_full(shape, -num_places * math.log(self.codes.num_codes))


def channels_last(value: Tensor, event_dim: int) -> Tensor:
    """Return vectors ``[*batch, *grid, D]`` of ``[*batch, D, *grid]``, an event of that many."""
    return value.movedim(value.dim() - event_dim, -1)


def channels_first(vectors: Tensor, event_dim: int) -> Tensor:
    """Return ``[*batch, D, *grid]`` of vectors ``[*batch, *grid, D]``, an event of that many."""
    return vectors.movedim(-1, vectors.dim() - event_dim)
