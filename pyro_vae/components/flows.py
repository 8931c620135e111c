"""Flows: families of a normal sent through invertible transforms with networks of their own.

Each serves as p(z), with everything learned, and as q(z | x): the raw numbers, functions of x,
hold a location, a raw scale, and a context that every transform of the flow listens to,

    z = loc + scale * f_L(... f_1(e; context) ...; context),    e ~ N(0, I).

Location and scale come last, so that what the networks of the flow see has a scale of about one.
At the start the transforms are the identity but for a hundredth, and the flow a normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from pyro.nn import ConditionalDenseNN
from torch import Tensor, nn
from torch.distributions import AffineTransform

from pyro_vae.arguments import at_the_door
from pyro_vae.components.conditional import Distribution, Family, Shape
from pyro_vae.distributions import AutoregressiveStep, positive
from pyro_vae.distributions.autoregressive import FAR, Masked
from pyro_vae.distributions.bijections import SplineCoupling, reshaping

__all__ = [
    "AffineCoupling",
    "Flow",
    "InverseAutoregressive",
    "MaskedAutoregressive",
    "NeuralSpline",
    "widths",
]

# Of one transform; a scale of the whole has no such bounds.
_LOG_SCALES = {"log_scale_min_clip": -3.0, "log_scale_max_clip": 3.0}
_START = 0.01
# Of a spline: what is steeper loses its inverse in float32.
_MAX_RAW = 8.0


class Flow(Family):
    r"""A normal sent through ``num_flows`` steps; a leaf makes one step, by ``_step``.

    .. math:: \log p(z) = \log N(e; 0, I) - \log |\det \partial z / \partial e|

    Raw numbers are ``[*batch, 2 * D + num_context]`` for D numbers an event: location, raw scale,
    context. The event is flattened and shaped again.

    Args:
        event_shape: The shape of one event, of D >= 2 numbers.
        num_flows: How many steps; with one coupling, half of the dimensions stay normal.
        hidden_dims: The widths of each network's hidden layers, D or more each in autoregressive
            steps; None: one layer of 3 D, but 64 at least.
        num_context: The size of h, on which the networks are conditioned; h is a function of the
            data where this is a posterior.

    Raises:
        ValueError: If there are fewer than two dimensions or no steps, a layer is too narrow, or
            ``num_context`` is negative.
    """

    zeros: Tensor
    ones: Tensor
    _masked = False

    @at_the_door
    def __init__(
        self,
        event_shape: Shape,
        *,
        num_flows: int = 2,
        hidden_dims: Sequence[int] | None = None,
        num_context: int = 16,
    ) -> None:
        num_dims, hidden = widths(
            self, event_shape, hidden_dims, num_context, masked=self._masked,
            instead="DiagonalNormal",
        )  # fmt: skip
        if num_flows < 1:
            raise ValueError(f"num_flows={num_flows}: {type(self).__name__} has one step or more")
        super().__init__(event_shape, raw_shape=(2 * num_dims + num_context,))
        self.num_context = num_context
        self.layers = nn.ModuleList(
            self._step(num_dims, hidden, turned=place % 2 == 1) for place in range(num_flows)
        )
        self.register_buffer("zeros", torch.zeros(num_dims), persistent=False)
        self.register_buffer("ones", torch.ones(num_dims), persistent=False)

    def _step(self, num_dims: int, hidden: list[int], *, turned: bool) -> nn.Module:
        """Return a module that makes transforms over ``[*batch, D]`` of ``[*batch, num_context]``.

        Args:
            num_dims: D.
            hidden: The widths of its network's hidden layers.
            turned: Whether the dimensions, or their halves, change places, as in every other step.
        """
        raise NotImplementedError

    def forward(self, raw: Tensor) -> Distribution:
        """Return the flow of ``raw``, ``[*batch, 2 * D + num_context]``."""
        num_dims = len(self.zeros)
        loc, raw_scale, context = raw.split([num_dims, num_dims, self.num_context], -1)
        # New ones at every call: each remembers its last value, so that the density of a sample
        # needs no inverse.
        steps = [step for layer in self.layers for step in layer(context)]
        steps.append(AffineTransform(loc, positive(raw_scale), event_dim=1, cache_size=1))
        if len(self.event_shape) > 1:
            steps.append(reshaping(num_dims, self.event_shape))
        base = dist.Normal(self.zeros, self.ones).to_event(1)
        return dist.TransformedDistribution(base, steps)

    def extra_repr(self) -> str:
        """Show the event's shape and the size of the context."""
        return f"event_shape={self.event_shape}, num_context={self.num_context}"


class InverseAutoregressive(Flow):
    r"""Affine autoregressive steps that sample fast: IAF, the flow of a posterior.

    .. math:: y_d = x_d \, \sigma_d(x_{<d}, h) + \mu_d(x_{<d}, h)

    with the order of the dimensions reversed from step to step and :math:`\sigma` between
    :math:`e^{-3}` and :math:`e^3`. A sample and its density cost one pass of each network. The
    density of any other value takes D operations in turn, one pass in all: slower, so for a prior
    take :class:`MaskedAutoregressive`.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma, Salimans,
        Jozefowicz, Chen, Sutskever & Welling, 2016)
        MADE: Masked Autoencoder for Distribution Estimation (Germain, Gregor, Murray &
        Larochelle, 2015)
    """

    synonyms = ("IAF",)

    _masked = True

    def _step(self, num_dims: int, hidden: list[int], *, turned: bool) -> nn.Module:
        return _Autoregressive(num_dims, self.num_context, hidden, reverse=turned, inverse=False)


class MaskedAutoregressive(Flow):
    r"""Affine autoregressive steps whose density is fast: MAF, the flow of a prior.

    .. math:: p(z) = \prod_d N\big(z_d; \mu_d(z_{<d}, h), \sigma_d(z_{<d}, h)^2\big)

    in one step, which is the autoregressive prior; further steps go on from its residuals, in
    the reversed order. A density costs one pass of each network, a sample D passes in turn: right
    but slow as a posterior, where :class:`InverseAutoregressive` is at home.

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios, Pavlakou & Murray, 2017)
        Variational Lossy Autoencoder (Chen, Kingma, Salimans, Duan, Dhariwal, Schulman, Sutskever
        & Abbeel, 2017)
    """

    synonyms = ("MAF",)
    near: ClassVar = {
        "MADE": "of real numbers it is MaskedAutoregressive(num_flows=1), of bits "
        "AutoregressiveBernoulli",
    }

    _masked = True

    def _step(self, num_dims: int, hidden: list[int], *, turned: bool) -> nn.Module:
        return _Autoregressive(num_dims, self.num_context, hidden, reverse=turned, inverse=True)


class AffineCoupling(Flow):
    r"""Affine steps of one half of the dimensions given the other: RealNVP, fast both ways.

    .. math:: y_A = x_A, \qquad y_B = x_B \, \sigma(x_A, h) + \mu(x_A, h)

    with the halves changing places from step to step and :math:`\sigma` between :math:`e^{-3}`
    and :math:`e^3`.

    Args:
        event_shape: The shape of one event, of two numbers or more.
        num_flows: How many steps; with one, half of the dimensions stay normal.
        sizes: ``hidden_dims`` and ``num_context``, as of every flow.

    References:
        Density Estimation Using Real NVP (Dinh, Sohl-Dickstein & Bengio, 2017)
    """

    synonyms = ("RealNVP",)

    @at_the_door
    def __init__(self, event_shape: Shape, *, num_flows: int = 4, **sizes: Any) -> None:
        super().__init__(event_shape, num_flows=num_flows, **sizes)

    def _step(self, num_dims: int, hidden: list[int], *, turned: bool) -> nn.Module:
        half = num_dims // 2
        network = _Dense(half, self.num_context, hidden, [num_dims - half] * 2)
        coupling = transforms.ConditionalAffineCoupling(half, network, **_LOG_SCALES)
        return _Coupling(coupling, num_dims, swap=turned)


class NeuralSpline(Flow):
    r"""Monotonic splines of one half of the dimensions given the other, fast both ways.

    .. math:: y_A = x_A, \qquad y_b = s_{\theta_b(x_A, h)}(x_b) \quad \text{for } b \in B

    where each s is a rational linear spline with ``num_bins`` bins on [-bound, bound] and the
    identity outside. The halves change places from step to step.

    Args:
        event_shape: The shape of one event, of two numbers or more.
        num_bins: The number of bins of a spline, from 2 to 50.
        bound: Where the splines end, in units of the flow's scale.
        sizes: ``num_flows``, ``hidden_dims`` and ``num_context``, as of every flow.

    Raises:
        ValueError: If a size, the number of bins or the bound is out of range.

    References:
        Neural Spline Flows (Durkan, Bekasov, Murray & Papamakarios, 2019)
        Invertible Generative Modeling using Linear Rational Splines (Dolatabadi, Erfani &
        Leckie, 2020)
    """

    synonyms = ("NSF",)

    @at_the_door
    def __init__(
        self, event_shape: Shape, *, num_bins: int = 8, bound: float = 4.0, **sizes: Any
    ) -> None:
        if not 2 <= num_bins <= 50:
            raise ValueError(f"num_bins={num_bins}: a spline has from 2 to 50 bins")
        if not 0 < bound < math.inf:
            raise ValueError(f"bound={bound}: a spline ends at a positive, finite number")
        self._spline = (num_bins, bound)
        super().__init__(event_shape, **sizes)

    def _step(self, num_dims: int, hidden: list[int], *, turned: bool) -> nn.Module:
        half = num_dims // 2
        spline = _SplineCoupling(half, num_dims - half, self.num_context, hidden, *self._spline)
        return _Coupling(spline, num_dims, swap=turned)


def widths(
    family: nn.Module,
    event_shape: Shape,
    hidden_dims: Sequence[int] | None,
    num_context: int,
    *,
    masked: bool,
    instead: str,
) -> tuple[int, list[int]]:
    """Return the number of dimensions and the widths of a network whose outputs see others.

    Args:
        family: Whose network it is, for messages.
        event_shape: The shape of one event.
        hidden_dims: The widths of the hidden layers; None: one of 3 D, but 64 at least.
        num_context: How many numbers it listens to.
        masked: Whether each unit sees some of the dimensions only.
        instead: The family to take for a single dimension.

    Raises:
        ValueError: If there are fewer than two dimensions, a layer is too narrow, or
            ``num_context`` is negative.
    """
    name, num_dims = type(family).__name__, math.prod(event_shape)
    if num_dims < 2:
        raise ValueError(
            f"{name} over event_shape={tuple(event_shape)}: its dimensions depend on each other, "
            f"so it needs two or more; take {instead} for one"
        )
    if num_context < 0:
        raise ValueError(f"num_context={num_context}: give the size of the context, 0 or more")
    hidden = [max(64, 3 * num_dims)] if hidden_dims is None else list(hidden_dims)
    if not hidden or min(hidden) < 1:
        raise ValueError(
            f"hidden_dims={tuple(hidden)}: a network of {name} has one hidden layer or more, each "
            "at least one wide"
        )
    if masked and min(hidden) < num_dims:
        raise ValueError(
            f"hidden_dims={tuple(hidden)}: a layer of {name} has a unit or more for each of the "
            f"{num_dims} dimensions"
        )
    return num_dims, hidden


class _Autoregressive(nn.Module):
    """One affine autoregressive step, in the dimensions' order or against it."""

    def __init__(
        self, num_dims: int, num_context: int, hidden: list[int], *, reverse: bool, inverse: bool
    ) -> None:
        super().__init__()
        order = torch.arange(num_dims)
        order = order.flip(0) if reverse else order
        network = Masked(num_dims, num_context, hidden, permutation=order, nonlinearity=nn.SiLU())
        _shrink(network.layers[-1])
        self.step = transforms.ConditionalAffineAutoregressive(network, **_LOG_SCALES)
        # A list, by which an inverse can be recorded, unlike a tensor.
        self.order: list[int] = order.tolist()
        self.inverse = inverse

    def forward(self, context: Tensor) -> list[Any]:
        step = AutoregressiveStep(self.step.nn, self.order, context, **_LOG_SCALES)
        return [step.inv if self.inverse else step]


class _Coupling(nn.Module):
    """One coupling, of the second half given the first or the other way round."""

    swapped: Tensor

    def __init__(self, coupling: Any, num_dims: int, *, swap: bool) -> None:
        super().__init__()
        self.coupling = coupling
        self.swap = swap
        self.register_buffer("swapped", torch.arange(num_dims).flip(0), persistent=False)

    def forward(self, context: Tensor) -> list[Any]:
        coupling = self.coupling.condition(context)
        if not self.swap:
            return [coupling]
        return [transforms.Permute(self.swapped), coupling, transforms.Permute(self.swapped)]


class _SplineCoupling(nn.Module):
    """A spline of some dimensions given others and a context."""

    def __init__(
        self, given: int, rest: int, num_context: int, hidden: list[int], bins: int, bound: float
    ) -> None:
        super().__init__()
        self.num_given = given
        sizes = [rest * bins, rest * bins, rest * (bins - 1), rest * bins]
        network = _Dense(given, num_context, hidden, sizes)
        last: Any = network.layers[-1]
        with torch.no_grad():  # derivatives of one between the bins
            last.bias.split(sizes)[2].fill_(math.log(math.e - 1))
        self.spline = transforms.ConditionalSpline(_Bounded(network), rest, bins, bound)

    def condition(self, context: Tensor) -> SplineCoupling:
        return SplineCoupling(self.spline, self.num_given, context)


class _Dense(ConditionalDenseNN):
    """Pyro's, near zero at the start, with outputs as precise as its inputs."""

    def __init__(self, size: int, num_context: int, hidden: list[int], outputs: list[int]) -> None:
        super().__init__(size, num_context, hidden, outputs, nonlinearity=nn.SiLU())
        _shrink(self.layers[-1])

    def forward(self, x: Tensor, context: Tensor) -> Any:
        seen = x.clamp(-FAR, FAR)
        return tuple(out.to(x.dtype) for out in super().forward(seen, context))


class _Bounded(nn.Module):
    """A network of two inputs as one of their pair, with outputs of a limited size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Any:
        return tuple(_MAX_RAW * (out / _MAX_RAW).tanh() for out in self.network(*inputs))


@torch.no_grad()
def _shrink(layer: Any) -> None:
    layer.weight.mul_(_START)
    layer.bias.zero_()
