"""Codebooks: which code vectors there are, how they are found, and how they learn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.budget import refuse_numbers

__all__ = ["Codebook", "FiniteGrid", "LearnedCodebook", "MovingCodebook"]

_DEAD = 0.05  # of the vectors that a code would have if all had as many


class Codebook(nn.Module):
    """K vectors of D numbers; a leaf says how they follow the encoder.

    Args:
        num_codes: K.
        num_channels: D.
    """

    embedding: Tensor

    @at_the_door
    def __init__(self, num_codes: int, num_channels: int) -> None:
        super().__init__()
        if num_codes < 2:
            raise ValueError(f"num_codes={num_codes}: a codebook has two vectors or more")
        refuse_numbers(4, (num_codes, num_channels), "code vectors", "give fewer")
        self.num_codes, self.num_channels = num_codes, num_channels

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the indices ``[*batch]`` of the codes next to vectors ``[*batch, D]``."""
        # |v - e|^2 without |v|^2, which is the same for every code.
        square = self.embedding.square().sum(-1)
        return (square - 2 * vectors @ self.embedding.T).argmin(-1)

    def vectors(self, indices: Tensor) -> Tensor:
        """Return the codes ``[*batch, D]`` of indices ``[*batch]``."""
        return nn.functional.embedding(indices, self.embedding)

    def follow(self, vectors: Tensor, indices: Tensor) -> Tensor | None:
        """Learn from encoder outputs ``[N, D]`` and their codes ``[N]``, in training.

        Returns:
            What is to be added to the loss of each vector, ``[N]``; None if nothing.
        """
        raise NotImplementedError


class MovingCodebook(Codebook):
    r"""Each code is the moving average of the encoder outputs that are next to it.

    .. math:: n_k \gets \gamma n_k + (1 - \gamma) |S_k|, \quad
        m_k \gets \gamma m_k + (1 - \gamma) \sum_{i \in S_k} v_i, \quad e_k = m_k / n_k

    A code of which hardly any output is next is dead, and starts anew at one of the batch's. So do
    all at the first step. The averages are buffers: a checkpoint holds them, and a batch that is
    split over processes has to sum the counts and the sums first.

    Args:
        num_codes: K.
        num_channels: D.
        decay: :math:`\gamma`, in [0, 1).

    References:
        Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017),
        appendix A.1
    """

    counts: Tensor
    sums: Tensor

    @at_the_door
    def __init__(self, num_codes: int, num_channels: int, decay: float = 0.99) -> None:
        super().__init__(num_codes, num_channels)
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: the share of an average that is kept is in [0, 1)")
        self.decay = decay
        self.register_buffer("embedding", _spread(num_codes, num_channels))
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, num_channels))

    @torch.no_grad()
    def follow(self, vectors: Tensor, indices: Tensor) -> None:
        """Move the averages towards the outputs ``[N, D]`` of codes ``[N]``, if in training."""
        if not self.training:
            return
        nearest = nn.functional.one_hot(indices, self.num_codes).to(vectors)
        self.counts.lerp_(nearest.sum(0), 1 - self.decay)
        self.sums.lerp_(nearest.T @ vectors, 1 - self.decay)
        share = len(vectors) / self.num_codes
        dead = self.counts < _DEAD * share
        chosen = (torch.rand(self.num_codes, device=vectors.device) * len(vectors)).long()
        found = vectors[chosen.clamp(max=len(vectors) - 1)]
        self.counts.copy_(torch.where(dead, share, self.counts))
        self.sums.copy_(torch.where(dead.unsqueeze(-1), share * found, self.sums))
        self.embedding.copy_(self.sums / self.counts.unsqueeze(-1))


class LearnedCodebook(Codebook):
    r"""Codes that are parameters, drawn to the encoder outputs next to them.

    .. math:: \sum_i \| \mathrm{sg}(v_i) - e_{k(i)} \|^2

    A code that is next to no output has no gradient and stays where it is.

    Args:
        num_codes: K.
        num_channels: D.

    References:
        Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017)
    """

    @at_the_door
    def __init__(self, num_codes: int, num_channels: int) -> None:
        super().__init__(num_codes, num_channels)
        self.embedding = nn.Parameter(_spread(num_codes, num_channels))

    def follow(self, vectors: Tensor, indices: Tensor) -> Tensor:
        """Return the squared distance of each vector's code from it, ``[N]``."""
        return (vectors.detach() - self.vectors(indices)).square().sum(-1)


class FiniteGrid(nn.Module):
    r"""All vectors whose numbers lie on grids of L levels in [-1, 1]: no codebook is learned.

    .. math:: K = \prod_d L_d

    Args:
        levels: L for each number of a vector.

    References:
        Finite Scalar Quantization: VQ-VAE Made Simple (Mentzer, Minnen, Agustsson & Tschannen,
        2024)
    """

    steps: Tensor
    places: Tensor

    @at_the_door
    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        if min(self.levels) < 2:
            raise ValueError(f"levels={list(self.levels)}: a number has two levels or more")
        self.num_codes = math.prod(self.levels)
        if self.num_codes > 2**31 - 1:
            raise ValueError(f"levels={list(self.levels)}: {self.num_codes:,} codes are too many")
        self.num_channels = len(self.levels)
        places = [math.prod(self.levels[:d]) for d in range(self.num_channels)]
        steps = torch.tensor(self.levels, dtype=torch.get_default_dtype()) - 1
        self.register_buffer("steps", steps, persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def bounded(self, raw: Tensor) -> Tensor:
        """Return raw numbers ``[*batch, D]`` within (-1, 1)."""
        return raw.tanh()

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the indices ``[*batch]`` of the codes next to vectors ``[*batch, D]``."""
        level = ((vectors + 1) / 2 * self.steps).round().clamp(min=0)
        return (torch.minimum(level, self.steps).long() * self.places).sum(-1)

    def vectors(self, indices: Tensor) -> Tensor:
        """Return the codes ``[*batch, D]`` of indices ``[*batch]``."""
        level = indices.unsqueeze(-1) // self.places % (self.steps.long() + 1)
        return 2 * level.to(self.steps) / self.steps - 1


def _spread(num_codes: int, num_channels: int) -> Tensor:
    return torch.randn(num_codes, num_channels) / math.sqrt(num_channels)
