"""Standardise and mask a network's inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door, built
from pyro_vae.components.networks.layers import Shape

__all__ = ["Observed", "Standardize", "alike", "moments"]


class Standardize(nn.Module):
    """Centre and scale data, ``(x - loc) / scale``: numbers in the units of the data.

    Args:
        loc: What is subtracted; broadcasts against one datum.
        scale: What is divided by; zeros count as one.

    Attributes:
        known: Whether there are units; without, data pass as they are.
    """

    roles = ()

    loc: Tensor
    scale: Tensor
    of_data = ("known",)

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("scale", torch.where(scale > 0, scale, 1.0).detach().clone())
        self.known = True

    @classmethod
    def unknown(cls, shape: Shape) -> Standardize:
        """Return one for data of this shape that have not been met yet: it changes nothing."""
        new = cls(torch.zeros(shape), torch.ones(shape))
        new.known = False
        return new

    @classmethod
    def of(cls, x: Tensor) -> Standardize:
        """Standardise as the rows of ``x``: each column of vectors, each channel of images.

        Missing numbers (NaN) do not count. Numbers that are all the same have no deviation; their
        size takes its place.
        """
        return cls(*_location_and_scale(x))

    @property
    def is_new(self) -> bool:
        """Whether no data have been met."""
        return not self.known

    def adapt_inputs(self, x: Tensor) -> None:
        """Standardise from now on as the rows of ``x``, ``[N, *shape]``."""
        self.take(*_location_and_scale(x.reshape(len(x), *self.loc.shape)))

    @torch.no_grad()
    def take(self, loc: Tensor, scale: Tensor) -> None:
        """Take these as the units, in their precision."""
        shape, device = self.loc.shape, self.loc.device
        self.loc, self.scale = (x.to(device).expand(shape).clone() for x in (loc, scale))
        self.known = True

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardised data, of the same shape."""
        return (x - self.loc) / self.scale if self.known else x

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self.known = bool((self.loc != 0).any() or (self.scale != 1).any())

    def extra_repr(self) -> str:
        """Show whether data have been met."""
        return "" if self.known else "no data met"


def alike(x: Tensor) -> tuple[int, ...]:
    """Return the axes of ``[N, *shape]`` along which numbers have the same units.

    A vector's numbers each have units of their own, as the columns of a table have; so have the
    channels of an image or a volume, ``(C, ...)``, and the numbers of a step in a series,
    ``(T, D)``.
    """
    own = 1 if x.dim() > 3 else x.dim() - 1
    return tuple(axis for axis in range(x.dim()) if axis != own)


def _location_and_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, or the size of numbers that are all the same."""
    loc, deviation = moments(x)
    size = torch.where(loc == 0, 1.0, loc.abs())
    return loc, torch.where(deviation > 0, deviation, size)


@torch.no_grad()
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of numbers with the same units, ``[N, *shape]``.

    Missing numbers (NaN) do not count. Both broadcast against one datum; the deviation of numbers
    that are all the same is exactly zero.
    """
    # In float32 the mean of numbers far from zero is off by more than they differ.
    wide = x.to(x.dtype if x.device.type == "mps" else torch.float64, copy=True)
    axes = alike(x)
    # A column of which nothing has been observed has no mean.
    loc = wide.nanmean(axes, keepdim=True).nan_to_num()
    scale = wide.sub_(loc).square_().nanmean(axes, keepdim=True).sqrt().nan_to_num()
    # Below the type's precision, what differs is the rounding of numbers that are all the same.
    rounding = torch.finfo(x.dtype).eps * loc.abs()
    return loc[0].to(x), torch.where(scale > rounding, scale, 0.0)[0].to(x)


class Observed(nn.Module):
    """A network for inputs with missing numbers: zeros in their places, and a mask beside them.

    Args:
        network: Builds the network from the shapes of input and output; its input has twice the
            channels, or twice the numbers of a vector.
        in_shape: The shape of one input, in which NaN is missing.
        out_shape: The shape of one output.

    References:
        MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets
        (Mattei & Frellsen, 2019)
    """

    roles = ()

    @at_the_door
    def __init__(
        self, network: Callable[[Shape, Shape], nn.Module], in_shape: Shape, out_shape: Shape
    ) -> None:
        super().__init__()
        self.axis = -len(in_shape)
        doubled = tuple(2 * size if axis == 0 else size for axis, size in enumerate(in_shape))
        self.network = built("network", network, nn.Module, doubled, out_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""
        missing = x.isnan()
        mask = missing.logical_not().to(x.dtype)
        return self.network(torch.cat([torch.where(missing, 0.0, x), mask], self.axis))
