"""Networks: tensor to tensor, any leading batch dimensions; no probability in here.

Each takes the shape of one input and of one output, so that whoever needs a network decides its
sizes. The last layer has no bias: the offset of the conditional that owns the network is one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["MLP", "Convolutional", "Observed", "Standardize"]

Shape = tuple[int, ...]


class MLP(nn.Module):
    """A multilayer perceptron from ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``.

    Args:
        in_shape: The shape of one input.
        out_shape: The shape of one output.
        hidden: The widths of the hidden layers, from input to output.
        activation: The nonlinearity after each hidden layer.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        hidden: Sequence[int] = (500, 500),
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        _check_sizes("hidden", hidden)
        self.in_dims = len(in_shape)
        self.out_shape = tuple(out_shape)
        sizes = [math.prod(in_shape), *hidden]
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(sizes):
            layers += [nn.Linear(wide, narrow), activation()]
        layers.append(nn.Linear(sizes[-1], math.prod(out_shape), bias=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""
        return self.layers(x.flatten(-self.in_dims)).unflatten(-1, self.out_shape)


class Convolutional(nn.Module):
    """A convolutional network between an image and a vector, in either direction.

    Each layer halves the image's height and width (rounding up) on the way down and restores
    exactly those sizes on the way up, so any image size and number of channels will do.

    Args:
        in_shape: ``(channels, height, width)`` to go down, the shape of a vector to go up.
        out_shape: On the way up ``(..., channels, height, width)``: leading axes become channels.
        channels: The numbers of channels, from the image to the vector.
        hidden: The width of the dense layer between the convolutions and the vector.
        activation: The nonlinearity after each layer but the last.

    Raises:
        ValueError: If not exactly one side is an image.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: Sequence[int] = (32, 64, 128),
        hidden: int = 256,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        _check_sizes("channels", channels)
        if not channels:
            raise ValueError("channels=(): Convolutional has at least one layer")
        _check_sizes("hidden", [hidden])
        if (len(in_shape) >= 3) == (len(out_shape) >= 3):
            raise ValueError(
                "Convolutional goes between an image (channels, height, width) and a vector; got "
                f"{tuple(in_shape)} and {tuple(out_shape)}: use MLP for data that are no images"
            )
        down = len(in_shape) >= 3
        self.in_shape = tuple(in_shape)
        self.out_shape = tuple(out_shape)
        build = _downward if down else _upward
        self.layers = nn.Sequential(*build(in_shape, out_shape, channels, hidden, activation))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""
        batch = x.shape[: x.dim() - len(self.in_shape)]
        image = self.in_shape[-3:] if len(self.in_shape) >= 3 else (math.prod(self.in_shape),)
        return self.layers(x.reshape(-1, *image)).reshape(*batch, *self.out_shape)


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


def _sizes(length: int, num_layers: int) -> list[int]:
    sizes = [length]
    for _ in range(num_layers):
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def _downward(
    in_shape: Shape,
    out_shape: Shape,
    channels: Sequence[int],
    hidden: int,
    activation: Callable[[], nn.Module],
) -> Iterable[nn.Module]:
    depth, height, width = math.prod(in_shape[:-2]), in_shape[-2], in_shape[-1]
    for before, after in zip([depth, *channels], channels, strict=False):
        yield from (nn.Conv2d(before, after, 3, stride=2, padding=1), activation())
    pixels = _sizes(height, len(channels))[-1] * _sizes(width, len(channels))[-1]
    yield from (nn.Flatten(), nn.Linear(channels[-1] * pixels, hidden), activation())
    yield nn.Linear(hidden, math.prod(out_shape), bias=False)


def _upward(
    in_shape: Shape,
    out_shape: Shape,
    channels: Sequence[int],
    hidden: int,
    activation: Callable[[], nn.Module],
) -> Iterable[nn.Module]:
    heights = _sizes(out_shape[-2], len(channels))[::-1]
    widths = _sizes(out_shape[-1], len(channels))[::-1]
    start = (channels[-1], heights[0], widths[0])
    yield from (nn.Linear(math.prod(in_shape), hidden), activation())
    yield from (nn.Linear(hidden, math.prod(start)), activation(), nn.Unflatten(-1, start))
    rising = [*channels[::-1], math.prod(out_shape[:-2])]
    for layer, (before, after) in enumerate(itertools.pairwise(rising)):
        last = layer == len(channels) - 1
        # A stride of two reaches 2n - 1 pixels; the missing one, where there is one, is padding.
        down, across = (s[layer + 1] - (2 * s[layer] - 1) for s in (heights, widths))
        yield nn.ConvTranspose2d(
            before, after, 3, stride=2, padding=1, output_padding=(down, across), bias=not last
        )
        if not last:
            yield activation()


def _check_sizes(name: str, sizes: Sequence[int]) -> None:
    if any(size < 1 for size in sizes):
        raise ValueError(f"{name}={tuple(sizes)}: layer sizes are positive integers")
