"""Invertible maps of flows that Pyro lacks, and the log-determinants of their Jacobians."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import Transform
from torch import Tensor, nn
from torch.distributions import ReshapeTransform, constraints

from pyro_vae.distributions.constraining import below_diagonal, positive
from pyro_vae.wording import part

__all__ = [
    "Planar",
    "Radial",
    "Reflection",
    "SplineCoupling",
    "Sylvester",
    "reshaping",
    "shaped",
    "upper_triangular",
]

# The product of two diagonal entries stays above -1, and its logarithm above -6.3 nats.
_LARGEST_DIAGONAL = 0.999
_BISECTIONS = 80
# Of a spline: what is steeper loses its inverse in float32.
_BINS = {"min_bin_width": 0.01, "min_bin_height": 0.01}


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
        """Return the log-determinant, ``[*batch]``; of the last value, as remembered."""
        before, log_slope = self._last
        return log_slope if x is before else self._move(x)[1]


class Planar(_Flow):
    """Moves along u by the height of a wave across w, which b shifts, ``[*batch, D or 1]``."""

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


class Radial(_Flow):
    """Stretches away from a centre, ``[*batch, D]``, by alpha and alpha + beta, both positive."""

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


class Reflection(_Flow):
    """Reflects at the plane across a vector, ``[*batch, D]``, that is not zero."""

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.unit = nn.functional.normalize(vector, dim=-1)

    def _move(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x - 2 * (self.unit * x).sum(-1, keepdim=True) * self.unit
        return y, torch.zeros_like(y[..., 0])

    def _inverse(self, y: Tensor) -> Tensor:
        return self._move(y)[0]


class Sylvester(_Flow):
    """Moves within M orthonormal columns, ``[*batch, D, M]``, by two triangles and a shift b."""

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


def upper_triangular(diagonal: Tensor, above: Tensor) -> Tensor:
    """Return triangles of raw numbers, ``[*batch, M, M]``, with diagonals in (-1, 1)."""
    size = diagonal.shape[-1]
    upper = below_diagonal(above, size).mT
    return upper + torch.diag_embed(_LARGEST_DIAGONAL * torch.tanh(diagonal))


class SplineCoupling(Transform):
    """Splines of the second part of a vector given the first and a context.

    Pyro's own coupling of splines takes no context, and would draw weights at every call.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, spline: Any, num_given: int, context: Tensor) -> None:
        super().__init__(cache_size=1)
        self.spline, self.num_given, self.context = spline, num_given, context

    def _call(self, x: Tensor) -> Tensor:
        return self._apply(x, inverse=False)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._apply(y, inverse=True)

    def _apply(self, value: Tensor, *, inverse: bool) -> Tensor:
        given, rest = value.split([self.num_given, value.shape[-1] - self.num_given], -1)
        # Outside it is the identity; the spline's own formula there, unused, may divide by zero.
        inside = rest.clamp(-self.spline.bound, self.spline.bound)
        spline = self.spline.condition((given, self.context))
        moved, log_slope = spline.spline_op(inside, inverse=inverse, **_BINS)
        within = rest == inside
        log_slope = torch.where(within, log_slope, 0.0).sum(-1)
        self._cached_log_det = -log_slope if inverse else log_slope
        return torch.cat([given, torch.where(within, moved, rest)], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant, ``[*batch]``; of the last value, as remembered."""
        known_x, known_y = self._cached_x_y
        if x is not known_x or y is not known_y:
            self(x)
        return self._cached_log_det


def reshaping(size: int, event_shape: tuple[int, ...]) -> ReshapeTransform:
    """Return the map of vectors to tensors of ``event_shape``, which remembers its last value."""
    return ReshapeTransform(torch.Size((size,)), torch.Size(event_shape), cache_size=1)


def shaped(distribution: Any, event_shape: tuple[int, ...]) -> Any:
    """Return a distribution over vectors as one over ``event_shape``, of as many numbers."""
    if len(event_shape) == 1:
        return distribution
    # With a cache, a flow inside is asked for the density of the very tensor that it drew.
    reshape = reshaping(distribution.event_shape.numel(), event_shape)
    return dist.TransformedDistribution(distribution, [reshape])
