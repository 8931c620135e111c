r"""Flows without networks of their own: the encoder predicts every parameter of the flow.

A normal with independent coordinates is drawn first, and each flow in turn makes
:math:`z \mapsto f(z)` of its sample; the density follows from the Jacobian,
:math:`\log q(f(z)) = \log q(z) - \log |\det \partial f / \partial z|`. Raw numbers of zero leave
the normal as it is (up to signs, under reflections).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import Transform
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.conditional import Distribution, Family, Shape
from pyro_vae.distributions import bijections, positive
from pyro_vae.distributions.bijections import shaped

__all__ = ["Householder", "Planar", "Radial", "Sylvester"]

# The product of two diagonal entries stays above -1, and its logarithm above -6.3 nats.
_SMALLEST_SQUARE = 1e-12


class _Flows(Family):
    """A diagonal normal and flows; a leaf makes one flow of its numbers."""

    axes: Tensor

    def __init__(self, event_shape: Shape, sizes: Sequence[int], *, num_flows: int) -> None:
        if num_flows < 1:
            raise ValueError(
                f"num_flows={num_flows}: give 1 or more; without a flow it is a DiagonalNormal"
            )
        size = math.prod(event_shape)
        super().__init__(event_shape, raw_shape=(2 * size + num_flows * sum(sizes),))
        self.num_flows = num_flows
        self._sizes = list(sizes)
        self.register_buffer("axes", torch.eye(size), persistent=False)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the flow of ``raw``: location, raw scale, and the numbers of each flow in turn."""
        size = len(self.axes)
        loc, raw_scale, *numbers = raw.split([size, size, *self._sizes * self.num_flows], -1)
        num_each = len(self._sizes)
        flows = [
            self._flow(number, *numbers[number * num_each : (number + 1) * num_each])
            for number in range(self.num_flows)
        ]
        normal = dist.Normal(loc, positive(raw_scale)).to_event(1)
        return shaped(dist.TransformedDistribution(normal, flows), self.event_shape)

    def _flow(self, number: int, *numbers: Tensor) -> Transform:
        raise NotImplementedError

    def _direction(self, raw: Tensor, number: int) -> Tensor:
        """Return vectors that are never zero, ``[*batch, D]``; raw zeros give an axis."""
        axis = self.axes[number % len(self.axes)]
        vector = raw + axis
        return torch.where(vector.square().sum(-1, keepdim=True) > _SMALLEST_SQUARE, vector, axis)

    def extra_repr(self) -> str:
        """Show the event's shape and the number of flows."""
        return f"event_shape={self.event_shape}, num_flows={self.num_flows}"


class Planar(_Flows):
    r"""A normal and planar flows, :math:`f(z) = z + \hat u \tanh(w^\top z + b)`.

    .. math:: \hat u = u - \frac{w^\top u - m(w^\top u)}{w^\top w} w, \qquad m > -1,

    so that f is invertible; the inverse is found by bisection along w. Each flow has 2D + 1 raw
    numbers.

    Args:
        event_shape: The shape of one event, of D numbers.
        num_flows: How many flows follow the normal.

    Raises:
        ValueError: If ``num_flows`` is less than 1.

    References:
        Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015)
    """

    @at_the_door
    def __init__(self, event_shape: Shape, *, num_flows: int = 4) -> None:
        size = math.prod(event_shape)
        super().__init__(event_shape, [size, size, 1], num_flows=num_flows)

    def _flow(self, number: int, *numbers: Tensor) -> Transform:
        u, raw_w, b = numbers
        return bijections.Planar(u, self._direction(raw_w, number), b)


class Radial(_Flows):
    r"""A normal and radial flows, :math:`f(z) = z + \beta \, (z - z_0) / (\alpha + |z - z_0|)`.

    :math:`\alpha > 0` and :math:`\beta > -\alpha`, so that f is invertible. Each flow has D + 2
    raw numbers.

    Args:
        event_shape: The shape of one event, of D numbers.
        num_flows: How many flows follow the normal.

    Raises:
        ValueError: If ``num_flows`` is less than 1.

    References:
        Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015)
    """

    @at_the_door
    def __init__(self, event_shape: Shape, *, num_flows: int = 4) -> None:
        super().__init__(event_shape, [math.prod(event_shape), 1, 1], num_flows=num_flows)

    def _flow(self, number: int, *numbers: Tensor) -> Transform:
        center, raw_alpha, raw_sum = numbers
        return bijections.Radial(center, positive(raw_alpha), positive(raw_sum))


class Householder(_Flows):
    r"""A normal and reflections, :math:`f(z) = z - 2 v v^\top z / v^\top v`: a rotated normal.

    Volumes stay as they are. D reflections reach every covariance. Each has D raw numbers.

    Args:
        event_shape: The shape of one event, of D numbers.
        num_flows: How many reflections follow the normal.

    Raises:
        ValueError: If ``num_flows`` is less than 1.

    References:
        Improving Variational Auto-Encoders using Householder Flow (Tomczak & Welling, 2016)
    """

    @at_the_door
    def __init__(self, event_shape: Shape, *, num_flows: int = 4) -> None:
        super().__init__(event_shape, [math.prod(event_shape)], num_flows=num_flows)

    def _flow(self, number: int, *numbers: Tensor) -> Transform:
        return bijections.Reflection(self._direction(numbers[0], number))


class Sylvester(_Flows):
    r"""A normal and Sylvester flows, :math:`f(z) = z + Q R \tanh(\tilde R Q^\top z + b)`.

    R and its twin are upper triangular, M x M, with diagonals in (-1, 1), and Q has M orthonormal
    columns: those of a product of reflections or, without reflections, axes in alternating order
    (the triangular kind). As many reflections as columns reach every Q, the orthogonal kind.

    It has no inverse, and thus scores only the sample that it drew last: it is a posterior, for
    objectives that score no other sample with it, and no prior.

    Args:
        event_shape: The shape of one event, of D numbers.
        num_flows: How many flows follow the normal.
        rank: The rank M of each flow, from 1 to D; None: D.
        num_reflections: How many reflections make Q; each takes D raw numbers.

    Raises:
        ValueError: If a number is out of range; or later, by the distribution, if it is asked for
            the density of another value than its last sample.

    References:
        Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018)
    """

    roles = ("posterior",)

    @at_the_door
    def __init__(
        self,
        event_shape: Shape,
        *,
        num_flows: int = 4,
        rank: int | None = None,
        num_reflections: int = 4,
    ) -> None:
        size = math.prod(event_shape)
        rank = size if rank is None else rank
        if not 1 <= rank <= size:
            raise ValueError(f"rank={rank}: Q has from 1 to {size} columns, as event_shape says")
        if num_reflections < 0:
            raise ValueError(f"num_reflections={num_reflections}: give 0 or more")
        above = rank * (rank - 1) // 2
        sizes = [rank, rank, rank, above, above, *[size] * num_reflections]
        super().__init__(event_shape, sizes, num_flows=num_flows)
        self.rank = rank

    def _flow(self, number: int, *numbers: Tensor) -> Transform:
        b, diagonal, diagonal_twin, above, above_twin, *vectors = numbers
        return bijections.Sylvester(
            self._columns(number, vectors),
            bijections.upper_triangular(diagonal, above),
            bijections.upper_triangular(diagonal_twin, above_twin),
            b,
        )

    def _columns(self, number: int, vectors: Sequence[Tensor]) -> Tensor:
        """Return Q, ``[*batch, D, M]``."""
        axes = self.axes.flip(0) if number % 2 and not vectors else self.axes
        columns = axes[:, : self.rank]
        for place, raw in enumerate(vectors):
            v = nn.functional.normalize(self._direction(raw, place), dim=-1).unsqueeze(-1)
            columns = columns - 2 * v * (v * columns).sum(-2, keepdim=True)
        return columns

    def extra_repr(self) -> str:
        """Show the event's shape, the number of flows and the rank."""
        return f"{super().extra_repr()}, rank={self.rank}"
