"""Posteriors over real latents: normals of every covariance, and one for each datum."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.arguments import at_the_door
from pyro_vae.components.conditional import Distribution, Family, Shape
from pyro_vae.distributions import below_diagonal, positive
from pyro_vae.distributions.bijections import shaped

__all__ = [
    "DiagonalNormal",
    "FullNormal",
    "LowRankNormal",
    "PerDatum",
]

# Of a factor beside the unit diagonal: beyond it a covariance has no Cholesky factor in float32.
_LARGEST_FACTOR = 10.0


class DiagonalNormal(Family):
    r"""A normal with independent coordinates, :math:`N(z; \mu, \mathrm{diag}(\sigma^2))`.

    The mean-field encoder of Kingma & Welling; as a prior, its location and scale are learned.
    Raw numbers of zero give the standard normal.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    """

    roles = ("posterior", "prior", "likelihood")
    synonyms = ("Gaussian", "MeanField")

    @at_the_door
    def __init__(self, event_shape: Shape) -> None:
        super().__init__(event_shape, raw_shape=(2, *event_shape))

    def forward(self, raw: Tensor) -> Distribution:
        """Return the normal of ``raw``, ``[*batch, 2, *event_shape]``: location and raw scale."""
        loc, raw_scale = raw.unbind(-1 - len(self.event_shape))
        return dist.Normal(loc, positive(raw_scale)).to_event(len(self.event_shape))


class LowRankNormal(Family):
    r"""A normal with correlations of low rank, :math:`N(z; \mu, S (I + F F^\top) S)`.

    S is diagonal and F is D x R, with entries within +-10. Raw numbers of zero give the standard
    normal. With R = D it reaches nearly every covariance; it costs D R numbers instead of D^2 / 2.

    Args:
        event_shape: The shape of one event, of D numbers.
        rank: R, the number of directions beside the coordinates.

    Raises:
        ValueError: If ``rank`` is less than 1.

    References:
        Stochastic Backpropagation and Approximate Inference in Deep Generative Models
        (Rezende, Mohamed & Wierstra, 2014), for a covariance of rank one beside a diagonal
    """

    @at_the_door
    def __init__(self, event_shape: Shape, *, rank: int = 2) -> None:
        if rank < 1:
            raise ValueError(f"rank={rank}: a LowRankNormal has one direction or more")
        size = math.prod(event_shape)
        super().__init__(event_shape, raw_shape=((2 + rank) * size,))
        self.rank = rank

    def forward(self, raw: Tensor) -> Distribution:
        """Return the normal of ``raw``, ``[*batch, (2 + R) D]``: location, raw scale, and F."""
        loc, raw_scale, *columns = raw.unflatten(-1, (2 + self.rank, -1)).unbind(-2)
        scale = positive(raw_scale)
        factor = scale.unsqueeze(-1) * _bounded(torch.stack(columns, -1))
        return shaped(distributions.LowRankNormal(loc, factor, scale.square()), self.event_shape)

    def extra_repr(self) -> str:
        """Show the event's shape and the rank."""
        return f"event_shape={self.event_shape}, rank={self.rank}"


class FullNormal(Family):
    r"""A normal of any covariance, :math:`N(z; \mu, S V V^\top S)`.

    S is diagonal and holds the standard deviations; V is lower triangular with rows of length one,

    .. math:: V_{ij} = \frac{c_{ij}}{\sqrt{1 + \sum_{k < i} c_{ik}^2}}, \qquad c_{ii} = 1,

    so that :math:`V V^\top` holds the correlations. The c below the diagonal lie within +-10.
    Raw numbers of zero give the standard normal.

    References:
        Unconstrained Parametrizations for Variance-Covariance Matrices (Pinheiro & Bates, 1996)
    """

    @at_the_door
    def __init__(self, event_shape: Shape) -> None:
        size = math.prod(event_shape)
        super().__init__(event_shape, raw_shape=(size * (size + 3) // 2,))

    def forward(self, raw: Tensor) -> Distribution:
        """Return the normal of ``raw``, ``[*batch, D (D + 3) / 2]``: location, raw scale, and c."""
        size = math.prod(self.event_shape)
        loc, raw_scale, below = raw.split([size, size, raw.shape[-1] - 2 * size], -1)
        rows = below_diagonal(_bounded(below), size)
        length = (1 + rows.square().sum(-1, keepdim=True)).sqrt()
        rows = rows + torch.eye(size, dtype=raw.dtype, device=raw.device)
        scale_tril = positive(raw_scale).unsqueeze(-1) * rows / length
        return shaped(distributions.FullNormal(loc, scale_tril=scale_tril), self.event_shape)


class PerDatum(nn.Module):
    r"""Free raw numbers for every training datum: :math:`n \mapsto \mathrm{family}(r_n)`.

    Variational inference without amortisation. It has nothing to say of data that it was not
    trained on: those need raw numbers of their own, found by gradient steps.

    Args:
        family: How raw numbers become a distribution.
        num_data: N, the number of training data.
        spread: Standard deviation of the raw numbers at the start.
        rate_factor: What the learning rate is multiplied by for the raw numbers: each is moved in
            one step of an epoch alone, where an encoder's weights are moved in all of them.

    Raises:
        ValueError: If ``num_data`` is less than 1, or the family has no raw numbers.

    References:
        Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud, 2018)
    """

    @at_the_door
    def __init__(
        self, family: Family, *, num_data: int, spread: float = 0.01, rate_factor: float = 100.0
    ) -> None:
        super().__init__()
        if not 0 < rate_factor < math.inf:
            raise ValueError(f"rate_factor={rate_factor}: give a finite number above 0")
        if num_data < 1:
            raise ValueError(f"num_data={num_data}: give the number of training data, 1 or more")
        if family.is_fixed:
            raise ValueError(
                f"PerDatum({type(family).__name__}): this family has no raw numbers to learn; "
                "take one that has, such as DiagonalNormal"
            )
        self.family = family
        self.rate_factor = rate_factor
        self.raw = nn.Parameter(spread * torch.randn(num_data, *family.raw_shape))

    def forward(self, context: Tensor | None = None) -> Distribution:
        """Return the distributions of the data in rows ``context``, integers ``[*batch]``."""
        if context is None:
            raise ValueError("PerDatum needs the row numbers of the data: call it with them")
        try:
            return self.family(self.raw[context])
        except IndexError as error:
            raise ValueError(
                f"PerDatum has raw numbers for the rows 0 to {len(self.raw) - 1}: give integers "
                f"among them, the rows that the data have in the training set ({error})"
            ) from None


def _bounded(raw: Tensor) -> Tensor:
    return _LARGEST_FACTOR * torch.tanh(raw / _LARGEST_FACTOR)
