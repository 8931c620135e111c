"""The one contract of every trainable part: a module that returns a Pyro distribution.

A *family* says how raw, unconstrained numbers become a distribution over an event, and how many
of them it needs. A *conditional* is a network followed by a family,

    context -> family(offset + network(context)),

and without a context the offset alone is learned: a prior with free parameters. One contract
serves every role: p(z) takes no context, p(x | z) takes z, q(z | x) takes x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor, nn

__all__ = [
    "Conditional",
    "Distribution",
    "Family",
    "Network",
    "Shape",
    "checked_shape",
    "inverse_softplus",
    "positive",
    "raw_at_scale",
    "unbound",
]

Shape = tuple[int, ...]
Distribution: TypeAlias = TorchDistributionMixin
Network = Callable[[Shape, Shape], nn.Module]
"""Builds a module from ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""

_SOFTPLUS_INVERSE_OF_ONE = math.log(math.e - 1.0)


def positive(raw: Tensor, *, floor: float = 1e-5) -> Tensor:
    r"""Map real numbers to positive ones, zero to (almost exactly) one.

    .. math:: \mathrm{softplus}(r + \log(e - 1)) + \epsilon

    Linear above and bounded away from zero below, so that neither value nor gradient overflows
    in float32, as ``exp`` does from raw numbers of 50 on.
    """
    return nn.functional.softplus(raw + _SOFTPLUS_INVERSE_OF_ONE) + floor


def raw_at_scale(scale: Tensor, *, floor: float = 1e-5) -> Tensor:
    """Return the raw numbers that ``positive`` maps to ``scale``, or to near its floor."""
    return inverse_softplus((scale - floor).clamp(min=1e-6)) - _SOFTPLUS_INVERSE_OF_ONE


def inverse_softplus(value: Tensor) -> Tensor:
    """Return log(exp(value) - 1) of positive values, without overflow."""
    return value + (-torch.expm1(-value)).log()


def unbound(family: Family, raw: Tensor | None) -> tuple[Tensor, ...]:
    """Return the ``[*batch, *event_shape]`` parts of an elementwise family's raw numbers."""
    if raw is None:
        raise ValueError(f"{type(family).__name__} needs its raw parameters")
    return raw.unbind(-1 - len(family.event_shape))


class Family(nn.Module):
    """How ``raw_shape`` unconstrained numbers become a distribution over ``event_shape``.

    A leaf sets the two shapes and defines ``forward``; ``raw_at`` and ``meet`` are optional.
    """

    event_shape: Shape
    raw_shape: Shape

    def __init__(self, event_shape: Shape, raw_shape: Shape) -> None:
        super().__init__()
        self.event_shape = checked_shape("event_shape", event_shape)
        self.raw_shape = tuple(raw_shape)

    def forward(self, raw: Tensor | None = None) -> Distribution:
        """Return the distribution whose raw parameters are ``raw``, ``[*batch, *raw_shape]``."""
        raise NotImplementedError

    def raw_at(self, mean: Tensor) -> Tensor | None:
        """Return raw numbers whose distribution has about this mean; None where none is known."""
        return None

    def meet(self, posterior: Conditional | None, data: Tensor | None) -> None:
        """Take what the family needs beyond its shapes; nothing, unless a leaf says otherwise.

        ``assemble`` calls it once, before the family is used: p(z)'s with q(z | x), and
        p(x | z)'s with None.

        Args:
            posterior: The model's q(z | x). Keep it where its parameters are not registered a
                second time, such as in a tuple.
            data: Observations, ``[N, *data_shape]`` in floating point; None where none are known.
        """

    def extra_repr(self) -> str:
        """Show the event's shape."""
        return f"event_shape={self.event_shape}"


class Conditional(PyroModule):
    r"""A network followed by a family: :math:`c \mapsto \mathrm{family}(b + \mathrm{network}(c))`.

    The network's output size comes from the family, so swapping a family never means editing a
    network. Without a ``network`` the offset :math:`b` alone is learned, and no context is taken.

    Args:
        family: How raw numbers become a distribution.
        context_shape: The shape of one context.
        network: Builds the network from ``(context_shape, family.raw_shape)``.

    Raises:
        ValueError: If only one of ``context_shape`` and ``network`` is given.
    """

    def __init__(
        self,
        family: Family,
        *,
        context_shape: Shape | None = None,
        network: Network | None = None,
    ) -> None:
        super().__init__()
        if (context_shape is None) != (network is None):
            raise ValueError(
                "a Conditional takes both context_shape and network, or neither (a learned prior); "
                f"got context_shape={context_shape!r} and network={network!r}"
            )
        self.family = family
        self.context_shape = None
        self.offset = nn.Parameter(torch.zeros(family.raw_shape))
        self.network = None
        if network is not None and context_shape is not None:
            self.context_shape = checked_shape("context_shape", context_shape)
            self.network = network(self.context_shape, family.raw_shape)

    def forward(self, context: Tensor | None = None) -> Distribution:
        """Return the distribution given ``context``, ``[*batch, *context_shape]``."""
        return self.family(self.raw(context))

    def raw(self, context: Tensor | None = None) -> Tensor:
        """Return the family's raw numbers given ``context``, ``[*batch, *raw_shape]``."""
        if self.network is None:
            return self.offset
        if context is None:
            raise ValueError("this Conditional has a network: call it with a context")
        numbers: Tensor = self.offset + self.network(context)
        return numbers

    @torch.no_grad()
    def start_at(self, mean: Tensor) -> None:
        """Set the offset so that the distribution starts near ``mean``, ``event_shape``.

        Training then starts from the data's marginals instead of learning them first. Families
        that know no such offset are left as they are.
        """
        raw = self.family.raw_at(mean.to(self.offset))
        if raw is not None:
            self.offset.copy_(raw)


def checked_shape(name: str, shape: Shape) -> Shape:
    """Return the shape as a tuple; ValueError where it is none of at least one element."""
    sizes = tuple(shape)
    if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"{name}={shape!r}: expected a tuple of positive integers such as (40,)")
    return sizes
