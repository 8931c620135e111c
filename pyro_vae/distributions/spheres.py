r"""Directions: the uniform distribution on a sphere, and that of von Mises and Fisher.

.. math:: q(z) = C_D(\kappa) \exp(\kappa \mu^\top z), \qquad \|z\| = \|\mu\| = 1

Only :math:`w = \mu^\top z` depends on the concentration. It is drawn by inverting its distribution
function, so samples are smooth in :math:`\kappa` and take one uniform number; neither rejection nor
a series in the dimension is needed. What depends on :math:`\kappa` alone is computed in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributions import register_kl

__all__ = ["HypersphericalUniform", "VonMisesFisher"]


class HypersphericalUniform(TorchDistribution):
    r"""The uniform distribution on the unit sphere of D dimensions.

    .. math:: p(z) = \frac{\Gamma(D / 2)}{2 \pi^{D / 2}}, \qquad \|z\| = 1

    a density with respect to the sphere's own area, as that of von Mises and Fisher.

    Args:
        zeros: D zeros, ``[*batch, D]``: shape, type and device of an event.
        validate_args: As for every distribution of torch.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.sphere
    has_rsample = True

    def __init__(self, zeros: Tensor, validate_args: bool | None = None) -> None:
        self._zeros = zeros
        super().__init__(zeros.shape[:-1], zeros.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> HypersphericalUniform:
        """Return it with another batch shape."""
        zeros = self._zeros.expand(*batch_shape, self._zeros.shape[-1])
        return HypersphericalUniform(zeros, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        """The centre of the sphere."""
        return self._zeros

    @property
    def variance(self) -> Tensor:
        """That of each coordinate, 1 / D."""
        return self._zeros + 1 / self._zeros.shape[-1]

    def entropy(self) -> Tensor:
        """Return the logarithm of the sphere's area, ``[*batch]``."""
        half = self._zeros.shape[-1] / 2
        log_area = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        return self._zeros[..., 0] + log_area

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw normals and scale them to length one."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self._zeros.dtype, device=self._zeros.device)
        return nn.functional.normalize(noise, dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return minus the logarithm of the sphere's area, the same for every direction."""
        if self._validate_args:
            self._validate_sample(value)
        return 0.0 * value.sum(-1) - self.entropy()


class VonMisesFisher(TorchDistribution):
    """Directions around one.

    Args:
        loc: A unit vector, ``[*batch, D]``.
        concentration: Positive, ``[*batch]``.
        validate_args: As for every distribution of torch.
    """

    arg_constraints = {"loc": constraints.sphere, "concentration": constraints.positive}  # noqa: RUF012
    support = constraints.sphere
    has_rsample = True

    def __init__(
        self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None
    ) -> None:
        self.loc, self.concentration = loc, concentration
        super().__init__(concentration.shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> VonMisesFisher:
        """Return the same distribution with this batch shape."""
        shape = torch.Size(batch_shape)
        loc, concentration = self.loc.expand(shape + self.event_shape), self.concentration
        return VonMisesFisher(loc, concentration.expand(shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Within the sphere, not on it."""
        return self._cosine().to(self.loc.dtype).unsqueeze(-1) * self.loc

    def entropy(self) -> Tensor:
        """Return the entropy, in nats."""
        return self.nats().to(self.loc.dtype)

    def nats(self) -> Tensor:
        """Return the entropy in float64: differences from it may be small."""
        return self.concentration.double() * (1 - self._cosine()) - self._log_height()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density or log-probability, ``[*batch]``."""
        if self._validate_args:
            self._validate_sample(value)
        # 1 - cos, without the rounding of a cosine near one, which kappa would multiply.
        gap = 0.5 * (value - self.loc).square().sum(-1)
        return self._log_height().to(value.dtype) - self.concentration * gap

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw, with gradients."""
        shape = self._extended_shape(torch.Size(sample_shape))
        dtype, device = self.loc.dtype, self.loc.device
        uniform = torch.rand(shape[:-1], dtype=dtype, device=device)
        noise = torch.randn((*shape[:-1], shape[-1] - 1), dtype=dtype, device=device)
        around = nn.functional.normalize(noise, dim=-1)
        gap = _Gap.apply(self.concentration, uniform, shape[-1]).unsqueeze(-1)
        sign = torch.where(self.loc[..., :1] < 0, -1.0, 1.0)
        upright = torch.cat([sign * (gap - 1), (gap * (2 - gap)).sqrt() * around], -1)
        # The reflection that takes -sign e_1 to loc; that sign keeps its vector long.
        vector = torch.cat([self.loc[..., :1] + sign, self.loc[..., 1:]], -1)
        vector = nn.functional.normalize(vector, dim=-1)
        turned = upright - 2 * (vector * upright).sum(-1, keepdim=True) * vector
        return nn.functional.normalize(turned, dim=-1)

    def _cosine(self) -> Tensor:
        return _MeanCosine.apply(self.concentration.double(), self.loc.shape[-1])

    def _log_height(self) -> Tensor:
        """Return the largest log-density, log C + kappa."""
        return _LogHeight.apply(self.concentration.double(), self.loc.shape[-1])


@register_kl(VonMisesFisher, HypersphericalUniform)
def _kl_to_uniform(q: Any, p: Any) -> Tensor:
    half = q.loc.shape[-1] / 2
    log_area = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
    return (log_area - q.nats()).to(q.loc.dtype)


# -------------------------------------------------------------------------------- Bessel functions


def _debye_coefficients(num: int) -> Tensor:
    """Return c[k, j] of u_k(t) = t^k sum_j c[k, j] t^(2j); DLMF 10.41.9 gives u_k+1 from u_k."""
    t = np.polynomial.Polynomial([0.0, 1.0])
    u = [np.polynomial.Polynomial([1.0])]
    for _ in range(num):
        slope, area = u[-1].deriv(), ((1 - 5 * t**2) * u[-1]).integ()
        u.append(0.5 * t**2 * (1 - t**2) * slope + area / 8)
    table = np.zeros((num + 1, num + 1))
    for k, polynomial in enumerate(u):
        table[k, : k + 1] = polynomial.coef[k::2]
    return torch.from_numpy(table)


_NUM_TERMS = 6
_DEBYE = _debye_coefficients(_NUM_TERMS)
_POWERS = torch.arange(_NUM_TERMS + 1, dtype=torch.float64)
# From this order on the expansion is exact in float64; smaller orders follow by recurrence.
_LEAST_ORDER = 40.0


def _bessel(order: float, kappa: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\nu \log \kappa - \log I_\nu(\kappa) + \kappa` and :math:`I_{\nu+1} / I_\nu`.

    By Debye's uniform expansion at a large order (DLMF 10.41.3), and from there downwards by
    :math:`I_\nu / I_{\nu - 1} = (2 \nu / \kappa + I_{\nu + 1} / I_\nu)^{-1}`. Relative errors are
    below 1e-12 for all kappa from 0 to 1e6.
    """
    steps = max(0, math.ceil(_LEAST_ORDER - order))
    top = order + steps
    root = (top**2 + kappa.square()).sqrt()
    # Term k, j is s^k t^j with s = 1 / root and t = (top / root)^2.
    powers = root.unsqueeze(-1) ** -_POWERS.to(root.device)
    squares = (top / root).unsqueeze(-1) ** (2 * _POWERS.to(root.device))
    terms = _DEBYE.to(root.device) * powers.unsqueeze(-1) * squares.unsqueeze(-2)
    degrees = (_POWERS.unsqueeze(-1) + 2 * _POWERS).to(root.device)
    series, slope = terms.sum((-2, -1)), (degrees * terms).sum((-2, -1))
    # (I_v+1 / I_v) / kappa, from the derivative of the expansion.
    ratio = 1 / (root + top) - (0.5 + slope / series) / root.square()
    log_height = (
        0.5 * (2 * math.pi * root).log() + top * (root + top).log() - series.log()
        - top**2 / (root + kappa)
    )  # fmt: skip
    for step in range(steps):
        ratio = 1 / (2 * (top - step) + kappa.square() * ratio)
        log_height = log_height + ratio.log()
    return log_height, ratio * kappa


class _LogHeight(torch.autograd.Function):
    """log C_D(kappa) + kappa."""

    @staticmethod
    def forward(ctx: Any, kappa: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.size = size
        return _bessel(size / 2 - 1, kappa)[0] - size / 2 * math.log(2 * math.pi)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (kappa,) = ctx.saved_tensors
        return gradients[0] * (1 - _MeanCosine.apply(kappa, ctx.size)), None


class _MeanCosine(torch.autograd.Function):
    """E[mu^T z], the ratio of two Bessel functions."""

    @staticmethod
    def forward(ctx: Any, kappa: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.size = size
        return _bessel(size / 2 - 1, kappa)[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (kappa,) = ctx.saved_tensors
        cosine = _MeanCosine.apply(kappa, ctx.size)
        return gradients[0] * (1 - cosine.square() - (ctx.size - 1) * cosine / kappa), None


# ------------------------------------------------------------------------------- the cosine's draw

_NUM_CELLS = 32
_NUM_NEWTON = 6
_NODES, _WEIGHTS = (
    torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(6)
)  # on [-1, 1]
_WIDTHS = 9.0  # of the angle's range to either side, in units of its spread, where that is less


class _Gap(torch.autograd.Function):
    r"""1 - w at given values of the distribution function of :math:`w = \mu^\top z`.

    The gradient is the implicit one, :math:`\partial w / \partial \kappa = - (\partial F /
    \partial \kappa) / f`; it has no second derivative.

    References:
        Implicit Reparameterization Gradients (Figurnov, Mohamed & Mnih, 2018)
    """

    @staticmethod
    def forward(ctx: Any, kappa: Tensor, uniform: Tensor, size: int) -> Tensor:
        curve = _Curve(kappa.double().flatten(), size - 1)
        rows = uniform.double().reshape(-1, kappa.numel()).mT.contiguous()
        gap, slope = curve.draw(rows)
        ctx.save_for_backward(slope.mT.reshape(uniform.shape).to(uniform.dtype))
        ctx.shape = kappa.shape
        tiny = torch.finfo(uniform.dtype).tiny  # a gap of zero has a square root without slope
        return gap.mT.reshape(uniform.shape).to(uniform.dtype).clamp(min=tiny)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        (slope,) = ctx.saved_tensors
        return (gradients[0] * slope).sum_to_size(ctx.shape), None, None


class _Curve:
    r"""The density of w for N concentrations, over an angle in which it is smooth for all of them.

    .. math:: 1 - w = \frac{2 b y}{1 - (1 - b) y}, \quad y = \sin^2 \frac{\varphi}{2}, \quad
        b = \frac{m}{2 \kappa + \sqrt{4 \kappa^2 + m^2}}, \quad m = D - 1

    is Wood's envelope: whatever :math:`\kappa`, the angle has about the density
    :math:`\sin^{m - 1} \varphi`.

    References:
        Simulation of the von Mises Fisher Distribution (Wood, 1994)
    """

    def __init__(self, kappa: Tensor, m: int) -> None:
        self.m = m
        self.kappa = kappa.reshape(-1, 1, 1)
        self.b = m / (2 * self.kappa + (4 * self.kappa.square() + m**2).sqrt())
        half = min(math.pi / 2, _WIDTHS / math.sqrt(m))
        self.first, self.width = math.pi / 2 - half, 2 * half / _NUM_CELLS
        self.nodes = (_NODES.to(kappa.device) + 1) / 2
        self.weights = _WEIGHTS.to(kappa.device) * self.width / 2

    def gap(self, angle: Tensor) -> Tensor:
        y = (angle / 2).sin().square()
        return 2 * self.b * y / (1 - (1 - self.b) * y)

    def log_density(self, angle: Tensor) -> Tensor:
        below = 1 - (1 - self.b) * (angle / 2).sin().square()
        spread = (self.m - 1) * angle.sin().log() - self.m * below.log()
        return spread - self.kappa * self.gap(angle)

    def draw(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gaps at probabilities, ``[N, S]`` both, and their slopes in kappa."""
        starts = self.first + self.width * torch.arange(_NUM_CELLS).to(uniform)
        angles = starts.unsqueeze(-1) + self.width * self.nodes  # [cells, nodes]
        log_density, gaps = self.log_density(angles), self.gap(angles)  # [N, cells, nodes]
        self.shift = log_density.amax((-2, -1), keepdim=True)
        mass = (log_density - self.shift).exp() * self.weights
        mean = (mass * gaps).sum((-2, -1), keepdim=True) / mass.sum((-2, -1), keepdim=True)
        ends = mass.sum(-1).cumsum(-1)
        excess = (mass * (mean - gaps)).sum(-1)
        wanted = uniform * ends[:, -1:]
        cell = torch.searchsorted(ends, wanted).clamp(max=_NUM_CELLS - 1)
        begun = (ends - mass.sum(-1)).gather(-1, cell)
        part = self._part(starts[cell], wanted - begun, mass.sum(-1).gather(-1, cell))
        angle, nodes, density = self._inside(starts[cell], part)
        before = (excess.cumsum(-1) - excess).gather(-1, cell)
        before = before + part * (density * (mean - self.gap(nodes))).sum(-1)
        angle = angle.unsqueeze(-1)
        y = (angle / 2).sin().square()
        tilt = self.b * angle.sin() / (1 - (1 - self.b) * y).square()  # of the gap, by the angle
        at_angle = (self.log_density(angle) - self.shift).exp()
        return self.gap(angle).squeeze(-1), -(tilt / at_angle).squeeze(-1) * before

    def _part(self, start: Tensor, wanted: Tensor, whole: Tensor) -> Tensor:
        """Return which part of a cell has the wanted mass, by Newton's method."""
        part = (wanted / whole).clamp(0, 1)
        for _ in range(_NUM_NEWTON):
            angle, _, density = self._inside(start, part)
            at_angle = (self.log_density(angle.unsqueeze(-1)) - self.shift).exp().squeeze(-1)
            missing = wanted - part * density.sum(-1)
            part = (part + missing / (at_angle * self.width)).clamp(0, 1)
        return part

    def _inside(self, start: Tensor, part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the angle that ends a part of a cell, nodes in it, and their masses per part."""
        reach = self.width * part
        nodes = start.unsqueeze(-1) + reach.unsqueeze(-1) * self.nodes
        density = (self.log_density(nodes) - self.shift).exp() * self.weights
        return start + reach, nodes, density
