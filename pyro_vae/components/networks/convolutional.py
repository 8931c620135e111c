"""Networks between images and vectors, in either direction, for images of any size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.networks.layers import (
    Build,
    Initialise,
    Normalise,
    Rows,
    Shape,
    activated,
    check_size,
    check_sizes,
    dense,
    finished,
)
from pyro_vae.wording import option

__all__ = ["Block", "Convolutional", "ConvolutionalResidual"]


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
        normalise: What stands before the nonlinearity of each convolution, ``nn.BatchNorm2d``.
        initialise: Sets the weights, such as ``glorot``; torch's own unless given.

    Raises:
        ValueError: If not exactly one side is an image, or a size is no positive integer.
    """

    synonyms = ("CNN",)

    @at_the_door
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: Sequence[int] = (32, 64, 128),
        hidden: int = 256,
        activation: Build = nn.SiLU,
        normalise: Normalise | None = None,
        initialise: Initialise | None = None,
    ) -> None:
        super().__init__()
        check_sizes("channels", channels)
        check_size("hidden", hidden)
        self.rows = Rows(self, in_shape, out_shape)
        self.image = _Image(self, self.rows, len(channels))
        depths = [self.image.depth, *channels]
        if self.image.is_given:
            pairs = itertools.pairwise(depths)
            layers = [each for pair in pairs for each in _halving(*pair, activation, normalise)]
            layers += self.image.into_vector(self.rows, channels[-1], hidden, activation)
        else:
            layers = self.image.out_of_vector(self.rows, channels[-1], hidden, activation)
            layers += _doubling(depths[::-1], self.image.sizes[::-1], activation, normalise)
        self.layers = nn.Sequential(*layers)
        finished(self, initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""
        return self.rows.back(self.layers(self.rows.of(x, *self.image.given)), x)


class ConvolutionalResidual(nn.Module):
    r"""A residual network between an image and a vector, in either direction.

    Each size of the image has blocks that add to what they are given,
    :math:`h \leftarrow h + C_2\, a(C_1\, a(h))` with convolutions of 3x3 pixels. On the way down
    the first block of a size takes steps of two pixels (sizes are rounded up); on the way up the
    image is enlarged, each pixel to its nearest ones, and then convolved. Any image size will do.

    Args:
        in_shape: ``(channels, height, width)`` to go down, the shape of a vector to go up.
        out_shape: On the way up ``(..., channels, height, width)``: leading axes become channels.
        channels: The numbers of channels of each size, from the image to the vector.
        num_blocks: How many blocks each size has.
        hidden: The width of the dense layer between the convolutions and the vector.
        activation: The nonlinearity a.
        normalise: What stands before the nonlinearity of each convolution, ``nn.BatchNorm2d``.
        initialise: Sets the weights, such as ``glorot``; torch's own unless given.

    Raises:
        ValueError: If not exactly one side is an image, or a size is no positive integer.

    References:
        Identity Mappings in Deep Residual Networks (He, Zhang, Ren & Sun, 2016)
        Deconvolution and Checkerboard Artifacts (Odena, Dumoulin & Olah, 2016)
    """

    synonyms = ("ResNet",)

    @at_the_door
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: Sequence[int] = (32, 64, 128),
        num_blocks: int = 1,
        hidden: int = 256,
        activation: Build = nn.SiLU,
        normalise: Normalise | None = None,
        initialise: Initialise | None = None,
    ) -> None:
        super().__init__()
        check_sizes("channels", channels)
        check_size("num_blocks", num_blocks)
        check_size("hidden", hidden)
        self.rows = Rows(self, in_shape, out_shape)
        self.image = _Image(self, self.rows, len(channels))
        block = partial(Block, activation=activation, normalise=normalise)
        if self.image.is_given:
            first = nn.Conv2d(self.image.depth, channels[0], 3, padding=1, bias=normalise is None)
            layers = [first, *_narrowing(channels, num_blocks, block)]
            layers += activated(channels[-1], activation, normalise)
            layers += self.image.into_vector(self.rows, channels[-1], hidden, activation)
        else:
            layers = self.image.out_of_vector(self.rows, channels[-1], hidden, activation)
            layers += _widening(self.image.sizes[::-1], channels[::-1], num_blocks, block)
            layers += activated(channels[0], activation, normalise)
            layers.append(nn.Conv2d(channels[0], self.image.depth, 3, padding=1, bias=False))
        self.layers = nn.Sequential(*layers)
        finished(self, initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""
        return self.rows.back(self.layers(self.rows.of(x, *self.image.given)), x)


class _Image:
    """The image on one side of a network, and the sizes that it takes on the way.

    Attributes:
        is_given: Whether it is the input.
        depth: Its number of channels; axes before them count as channels.
        sizes: Height and width after 0, 1, ... halvings.
        given: The shape of one input, as the layers take it.
    """

    def __init__(self, network: nn.Module, rows: Rows, num_halvings: int) -> None:
        self.is_given = len(rows.in_shape) >= 3
        if self.is_given == (len(rows.out_shape) >= 3):
            raise ValueError(
                f"{type(network).__name__} goes between an image (channels, height, width) and a "
                f"vector; got {rows.in_shape} and {rows.out_shape}: use MLP for data that are no "
                f"images, or name both sides, {option('encoder', type(network).__name__)} with "
                f"{option('decoder', 'MLP')}"
            )
        *channels, height, width = rows.in_shape if self.is_given else rows.out_shape
        self.depth = math.prod(channels)
        self.sizes = [(height, width)]
        for _ in range(num_halvings):
            height, width = (height + 1) // 2, (width + 1) // 2
            self.sizes.append((height, width))
        self.given = (self.depth, *self.sizes[0]) if self.is_given else (rows.in_size,)

    def into_vector(
        self, rows: Rows, channels: int, hidden: int, activation: Build
    ) -> list[nn.Module]:
        """Return the layers from the smallest image to the output."""
        pixels = channels * math.prod(self.sizes[-1])
        last = nn.Linear(hidden, rows.out_size, bias=False)
        return [nn.Flatten(), *dense(pixels, hidden, activation), last]

    def out_of_vector(
        self, rows: Rows, channels: int, hidden: int, activation: Build
    ) -> list[nn.Module]:
        """Return the layers from the input to the smallest image."""
        start = (channels, *self.sizes[-1])
        first = dense(rows.in_size, hidden, activation)
        return [*first, *dense(hidden, math.prod(start), activation), nn.Unflatten(-1, start)]


def _halving(
    before: int, after: int, activation: Build, normalise: Normalise | None
) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=normalise is None)
    return [convolution, *activated(after, activation, normalise)]


def _doubling(
    depths: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    activation: Build,
    normalise: Normalise | None,
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    steps = zip(itertools.pairwise(depths), itertools.pairwise(sizes), strict=True)
    for number, ((before, after), (small, large)) in enumerate(steps, start=1):
        is_last = number == len(depths) - 1
        # A stride of two reaches 2n - 1 pixels; the missing one, where there is one, is padding.
        missing = (large[0] - (2 * small[0] - 1), large[1] - (2 * small[1] - 1))
        bias = normalise is None and not is_last
        layers.append(
            nn.ConvTranspose2d(
                before, after, 3, stride=2, padding=1, output_padding=missing, bias=bias
            )
        )
        layers += [] if is_last else activated(after, activation, normalise)
    return layers


def _narrowing(
    channels: Sequence[int], num_blocks: int, block: Callable[..., nn.Module]
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise([channels[0], *channels]):
        layers.append(block(before, after, stride=2))
        layers += [block(after, after) for _ in range(num_blocks - 1)]
    return layers


def _widening(
    sizes: Sequence[tuple[int, int]],
    channels: Sequence[int],
    num_blocks: int,
    block: Callable[..., nn.Module],
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    steps = zip(sizes[1:], itertools.pairwise([channels[0], *channels]), strict=True)
    for size, (before, after) in steps:
        layers += [nn.Upsample(size, mode="nearest"), block(before, after)]
        layers += [block(after, after) for _ in range(num_blocks - 1)]
    return layers


class Block(nn.Module):
    """A residual block of two convolutions, which may take steps of two pixels."""

    def __init__(
        self,
        before: int,
        after: int,
        *,
        stride: int = 1,
        activation: Build,
        normalise: Normalise | None,
    ) -> None:
        super().__init__()
        bias = normalise is None
        self.layers = nn.Sequential(
            *activated(before, activation, normalise),
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=bias),
            *activated(after, activation, normalise),
            nn.Conv2d(after, after, 3, padding=1, bias=bias),
        )
        same = before == after and stride == 1
        past = nn.Conv2d(before, after, 1, stride=stride, bias=bias)
        self.past = nn.Identity() if same else past

    def forward(self, h: Tensor) -> Tensor:
        """Return ``[rows, before, height, width]`` with what the layers add to it."""
        return self.past(h) + self.layers(h)
