"""What is done to data before a network sees them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyro_vae.components.networks.layers import Shape

__all__ = ["Observed", "Standardize"]


class Standardize(nn.Module):
    """Centre and scale the inputs of a network, ``(x - loc) / scale``.

    Args:
        loc: What is subtracted; broadcasts against one input.
        scale: What is divided by; zeros (constant inputs) count as one.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("scale", torch.where(scale > 0, scale, 1.0).detach().clone())

    @classmethod
    def of(cls, x: Tensor) -> Standardize:
        """Standardise as the rows of ``x``: each column of vectors, or all pixels of images.

        Missing numbers (NaN) do not count.
        """
        axes = (0,) if x.dim() == 2 else tuple(range(x.dim()))
        loc = x.nanmean(axes)
        variance = (x - loc).square().nanmean(axes)
        # A column of which nothing has been observed has no mean.
        return cls(loc.nan_to_num(), variance.sqrt().nan_to_num())

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardised input, of the same shape."""
        return (x - self.loc) / self.scale


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

    def __init__(
        self, network: Callable[[Shape, Shape], nn.Module], in_shape: Shape, out_shape: Shape
    ) -> None:
        super().__init__()
        self.axis = -len(in_shape)
        self.network = network((2 * in_shape[0], *in_shape[1:]), out_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""
        missing = x.isnan()
        mask = missing.logical_not().to(x.dtype)
        return self.network(torch.cat([torch.where(missing, 0.0, x), mask], self.axis))
