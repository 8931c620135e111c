r"""Flows without networks of their own: every datum's parameters are raw numbers of its posterior.

A normal with independent coordinates is drawn first, and each flow in turn makes
:math:`z \mapsto f(z)` of its sample; the density follows from the Jacobian,
:math:`\log q(f(z)) = \log q(z) - \log |\det \partial f / \partial z|`. Raw numbers of zero leave
the normal as it is (up to signs, under reflections).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import Transform
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.components.conditional import Distribution, Family, Shape, positive
from pyro_vae.components.posteriors import below_diagonal, shaped
from pyro_vae.wording import part

__all__ = ["Householder", "Planar", "Radial", "Sylvester"]

# The product of two diagonal entries stays above -1, and its logarithm above -6.3 nats.
_LARGEST_DIAGONAL = 0.999
_BISECTIONS = 80
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

    def forward(self, raw: Tensor | None = None) -> Distribution:
        """Return the flow of ``raw``: location, raw scale, and the numbers of each flow in turn."""
        if raw is None:
            raise ValueError(f"{type(self).__name__} needs its raw parameters")
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

    def __init__(self, event_shape: Shape, *, num_flows: int = 4) -> None:
        size = math.prod(event_shape)
        super().__init__(event_shape, [size, size, 1], num_flows=num_flows)

    def _flow(self, number: int, *numbers: Tensor) -> Transform:
        u, raw_w, b = numbers
        return _Planar(u, self._direction(raw_w, number), b)


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

    def __init__(self, event_shape: Shape, *, num_flows: int = 4) -> None:
        super().__init__(event_shape, [math.prod(event_shape), 1, 1], num_flows=num_flows)

    def _flow(self, number: int, *numbers: Tensor) -> Transform:
        center, raw_alpha, raw_sum = numbers
        return _Radial(center, positive(raw_alpha), positive(raw_sum))


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

    def __init__(self, event_shape: Shape, *, num_flows: int = 4) -> None:
        super().__init__(event_shape, [math.prod(event_shape)], num_flows=num_flows)

    def _flow(self, number: int, *numbers: Tensor) -> Transform:
        return _Reflection(self._direction(numbers[0], number))


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
        rank: M, from 1 to D; None: D.
        num_reflections: How many reflections make Q; each takes D raw numbers.

    Raises:
        ValueError: If a number is out of range; or later, by the distribution, if it is asked for
            the density of another value than its last sample.

    References:
        Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018)
    """

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
        return _Sylvester(
            self._columns(number, vectors),
            _upper_triangular(diagonal, above),
            _upper_triangular(diagonal_twin, above_twin),
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


class _Flow(Transform):
    """A flow that remembers the logarithm of its last slope; a leaf defines ``_move``.

    What it remembers of a sample that was drawn without gradients does not serve for a density
    that is to have them: it is then inverted.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)
        self._last: tuple[Any, Any] = (None, None)
        self._had_gradients = False

    def _move(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return f(x) and the logarithm of its Jacobian's determinant."""
        raise NotImplementedError

    def _call(self, x: Tensor) -> Tensor:
        y, log_slope = self._move(x)
        self._last = (x, log_slope)
        self._had_gradients = torch.is_grad_enabled()
        return y

    def _inv_call(self, y: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not self._had_gradients:
            self._cached_x_y = None, None
        return super()._inv_call(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        before, log_slope = self._last
        return log_slope if x is before else self._move(x)[1]


class _Planar(_Flow):
    def __init__(self, u: Tensor, w: Tensor, b: Tensor) -> None:
        super().__init__()
        length = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        unit = w / length
        along = (unit * u).sum(-1, keepdim=True)
        # w^T u-hat by itself, not as a product of vectors, whose rounding would take it below -1.
        self.slope = positive(along * length) - 1
        self.u = u - along * unit + self.slope / length * unit
        self.w, self.b = w, b

    def _move(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bent = torch.tanh((self.w * x).sum(-1, keepdim=True) + self.b)
        log_slope = torch.log1p(self.slope * (1 - bent.square()))
        return x + self.u * bent, log_slope.squeeze(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        # With t = w^T x + b this is t + slope tanh(t) = w^T y + b, which rises with t.
        target = (self.w * y).sum(-1, keepdim=True) + self.b
        with torch.no_grad():
            low, high = target - self.slope.abs(), target + self.slope.abs()
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                above = middle + self.slope * torch.tanh(middle) > target
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        # A step of Newton's gives the root the derivatives that it has.
        bent = torch.tanh(high)
        gap = high + self.slope * bent - target
        bent = torch.tanh(high - gap / (1 + self.slope * (1 - bent.square())))
        return y - self.u * bent


class _Radial(_Flow):
    def __init__(self, center: Tensor, alpha: Tensor, total: Tensor) -> None:
        super().__init__()
        self.center, self.alpha = center, alpha
        self.total = total  # alpha + beta

    def _move(self, x: Tensor) -> tuple[Tensor, Tensor]:
        away = x - self.center
        radius = torch.linalg.vector_norm(away, dim=-1, keepdim=True)
        below = self.alpha + radius
        stretch = (radius + self.total) / below
        along = (radius * (radius + 2 * self.alpha) + self.alpha * self.total) / below.square()
        log_slope = (away.shape[-1] - 1) * stretch.log() + along.log()
        return self.center + stretch * away, log_slope.squeeze(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        # r^2 + (total - |y - z_0|) r = alpha |y - z_0|, of which the positive root is wanted.
        away = y - self.center
        distance = torch.linalg.vector_norm(away, dim=-1, keepdim=True)
        gap = distance - self.total
        root = (gap.square() + 4 * self.alpha * distance).sqrt()
        sum_ = gap.abs() + root
        radius = torch.where(gap > 0, sum_ / 2, 2 * self.alpha * distance / sum_)
        return self.center + (self.alpha + radius) / (radius + self.total) * away


class _Reflection(_Flow):
    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.unit = nn.functional.normalize(vector, dim=-1)

    def _move(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x - 2 * (self.unit * x).sum(-1, keepdim=True) * self.unit
        return y, torch.zeros_like(y[..., 0])

    def _inverse(self, y: Tensor) -> Tensor:
        return self._move(y)[0]


class _Sylvester(_Flow):
    def __init__(self, columns: Tensor, upper: Tensor, twin: Tensor, b: Tensor) -> None:
        super().__init__()
        self.columns, self.upper, self.twin, self.b = columns, upper, twin, b

    def _move(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = torch.einsum("...dm,...d->...m", self.columns, x)
        bent = torch.tanh(torch.einsum("...km,...m->...k", self.twin, inner) + self.b)
        outer = torch.einsum("...km,...m->...k", self.upper, bent)
        y = x + torch.einsum("...dm,...m->...d", self.columns, outer)
        diagonals = self.upper.diagonal(dim1=-2, dim2=-1) * self.twin.diagonal(dim1=-2, dim2=-1)
        return y, torch.log1p(diagonals * (1 - bent.square())).sum(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        raise _NoInverseError(
            "a Sylvester flow has no inverse: it is no prior, and scores only the sample that it "
            "drew last, with the gradients that it has; take "
            f"{part('prior', 'StandardNormal')}, or an objective that scores no other sample"
        )


class _NoInverseError(NotImplementedError, ValueError):
    """Both what a transform without an inverse raises, and a user's mistake."""


def _upper_triangular(diagonal: Tensor, above: Tensor) -> Tensor:
    size = diagonal.shape[-1]
    upper = below_diagonal(above, size).mT
    return upper + torch.diag_embed(_LARGEST_DIAGONAL * torch.tanh(diagonal))
