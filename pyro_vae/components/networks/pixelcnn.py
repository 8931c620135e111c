"""A network that says of each pixel of an image what it is, from the pixels before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad, silu

from pyro_vae.arguments import at_the_door
from pyro_vae.components.networks.layers import check_size

__all__ = ["GatedPixelCNN"]


class GatedPixelCNN(nn.Module):
    r"""Gated masked convolutions in two stacks, which see all pixels before a pixel and no others.

    Pixels are in the order of reading, row by row. The vertical stack v has seen the rows above a
    pixel, the horizontal stack h what is left of it in its row; h looks at v, v never at h, and so
    there is no blind spot. In each layer l, with maps c that the image depends on,

    .. math:: v^l &= g(W^l * v^{l-1} + V^l c), \\
        h^l &= h^{l-1} + P^l\, g(U^l * h^{l-1} + Q^l (W^l * v^{l-1}) + R^l c), \\
        g(a, b) &= \tanh(a)\, \sigma(b).

    The first layer has a mask of type A: a pixel does not see itself. The others have type B, since
    what they are given has not seen it. Where channels are in order, units belong to channels, in
    parts as equal as can be: at the pixel itself, those of a channel see the channels before it
    (A), or these and their own (B).

    A pixel sees as many rows above it, and columns to either side, as ``num_layers`` times half the
    kernel, rounded down.

    Args:
        num_channels: The number of channels of an image, C.
        num_context: The number of maps c.
        num_outputs: How many numbers are said of a pixel, P; where channels are in order, those of
            the first channel come first.
        kernel: The height and width of what a layer sees of the layer before, an odd number.
        num_layers: The number of layers.
        width: The number of units of a pixel in each stack.
        in_order: Whether a channel sees the channels before it at the same pixel.

    Raises:
        ValueError: If a number is not positive, the kernel is not odd or is 1, or there are fewer
            units than channels.

    References:
        Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner & Kavukcuoglu, 2016)
        Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016)
    """

    roles = ()

    @at_the_door
    def __init__(
        self,
        num_channels: int,
        num_context: int,
        num_outputs: int,
        *,
        kernel: int = 3,
        num_layers: int = 4,
        width: int = 32,
        in_order: bool = True,
    ) -> None:
        super().__init__()
        sizes = {
            "num_channels": num_channels, "num_context": num_context, "num_outputs": num_outputs,
            "num_layers": num_layers, "width": width,
        }  # fmt: skip
        for name, size in sizes.items():
            check_size(name, size)
        _check_kernel(kernel)
        groups = num_channels if in_order else 1
        if width < groups:
            raise ValueError(f"width={width}: give {groups} units or more, one for each channel")
        self.reach = num_layers * (kernel // 2)
        befores = [num_channels] + [width] * (num_layers - 1)
        self.layers = nn.ModuleList(
            _Layer(before, width, num_context, kernel // 2, groups, is_first=number == 0)
            for number, before in enumerate(befores)
        )
        self.head = _Pointwise(width, width, groups)
        self.last = _Pointwise(width, num_outputs, groups)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return what is said of each pixel, ``[rows, P, height, width]``.

        Args:
            x: Images, ``[rows, C, height, width]``, of values between -1 and 1.
            context: ``[rows, num_context, height, width]``.
        """
        v = h = x
        for layer in self.layers:
            v, h = layer(v, h, context)
        out: Tensor = self.last(silu(self.head(silu(h))))
        return out

    def walk(self, context: Tensor) -> Walk:
        """Return a walk over the pixels of images that are drawn one after the other."""
        return Walk(self, context)


class Walk:
    """What a network says of one pixel after the other, and what it keeps of those before.

    Of each layer it keeps the rows of the vertical stack, and the columns of the current row of the
    horizontal stack, that the kernel still reaches.

    Args:
        network: The network.
        context: ``[rows, num_context, height, width]``.

    Attributes:
        num_rows: How many images there are.
    """

    def __init__(self, network: GatedPixelCNN, context: Tensor) -> None:
        self.num_rows = len(context)
        self._network, self._context = network, context
        self._steps = [_Step(layer, context) for layer in network.layers]
        self._head = (network.head.weight(), network.last.weight())

    def start_row(self, row: int, above: Tensor | None) -> None:
        """Compute the vertical stack of a row.

        Args:
            row: Its number, one more than that of the row before.
            above: The row before, ``[rows, C, width]``; None of the first.
        """
        context = self._context[:, :, row : row + 1]
        v = above if above is None else above.unsqueeze(2)
        for step in self._steps:
            v = step.start_row(v, context)

    def at(self, column: int, pixel: Tensor) -> Tensor:
        """Return what is said of a pixel of the row, ``[rows, P]``.

        Args:
            column: Its column.
            pixel: ``[rows, C]``, of which those channels count that are known already.
        """
        h = pixel
        for step in self._steps:
            h = step.at(column, h)
        network, (head, last) = self._network, self._head
        h = silu(linear(silu(h), head.flatten(1), network.head.bias))
        return linear(h, last.flatten(1), network.last.bias)

    def put(self, pixel: Tensor) -> None:
        """Go on to the next column; the pixel is known, ``[rows, C]``."""
        self._steps[0].given = pixel
        for step in self._steps:
            step.put()


class _Layer(nn.Module):
    """One layer of both stacks; it reaches ``side`` pixels to each side."""

    mask: Tensor | None

    def __init__(
        self, before: int, width: int, num_context: int, side: int, groups: int, *, is_first: bool
    ) -> None:
        super().__init__()
        self.side, self.is_first = side, is_first
        # The first layer leaves out the row of the pixel, the others have not seen it.
        self.height = side if is_first else side + 1
        self.vertical = nn.Conv2d(before, 2 * width, (self.height, 2 * side + 1))
        self.horizontal = nn.Conv2d(before, 2 * width, (1, side + 1), bias=False)
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.of_context = nn.Conv2d(num_context, 4 * width, 1, bias=False)
        self.project = _Pointwise(width, width, groups)
        mask = torch.ones(2 * width, before, 1, side + 1)
        # Both parts of a gate belong to the channel of their unit.
        unit = torch.cat([_channels(width, groups)] * 2)
        mask[:, :, 0, -1] = _sees(unit, _channels(before, groups), itself=not is_first)
        self.register_buffer("mask", None if bool(mask.all()) else mask, persistent=False)

    def forward(self, v: Tensor, h: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return both stacks, ``[rows, width, height, width]``."""
        side, of_context = self.side, self.of_context(context)
        for_v, for_h = of_context.chunk(2, 1)
        # The first layer: the row of the pixel goes out at the bottom.
        rows = (side, -1) if self.is_first else (side, 0)
        seen = self.vertical(pad(v, (side, side, *rows)))
        left = conv2d(pad(h, (side, 0, 0, 0)), self.horizontal_weight())
        return _gated(seen + for_v), self.added(h, left + self.link(seen) + for_h)

    def horizontal_weight(self) -> Tensor:
        """Return the weight of the horizontal stack, zero where it is masked."""
        weight = self.horizontal.weight
        return weight if self.mask is None else weight * self.mask

    def added(self, h: Tensor, before_gate: Tensor) -> Tensor:
        """Return the horizontal stack with what the layer adds to it."""
        out: Tensor = self.project(_gated(before_gate))
        return out if self.is_first else h + out


class _Step:
    """A layer of a walk: what it keeps of the rows and columns before."""

    def __init__(self, layer: Any, context: Tensor) -> None:
        rows, width = len(context), context.shape[-1]
        before = layer.vertical.in_channels
        self.layer = layer
        self.above = context.new_zeros(rows, before, layer.height, width)
        self.weight = layer.horizontal_weight().squeeze(2).movedim(1, 2).flatten(1)
        self.project = layer.project.weight().flatten(1)
        self.nothing = [context.new_zeros(rows, before)] * layer.side
        self.left = list(self.nothing)
        self.given = self.nothing[0]

    def start_row(self, v: Tensor | None, context: Tensor) -> Tensor:
        """Take the layer below of a row (of the first layer: of the row above), give this one."""
        layer = self.layer
        if v is not None:
            self.above = torch.cat([self.above[:, :, 1:], v], 2)
        for_v, for_h = layer.of_context(context).chunk(2, 1)
        seen = layer.vertical(pad(self.above, (layer.side, layer.side, 0, 0)))
        self.row = (layer.link(seen) + for_h).squeeze(2).unbind(-1)
        self.left = list(self.nothing)
        return _gated(seen + for_v)

    def at(self, column: int, h: Tensor) -> Tensor:
        """Take the layer below at a pixel, ``[rows, before]``, and give this one."""
        self.given = h
        before_gate = torch.addmm(self.row[column], torch.cat([*self.left, h], 1), self.weight.T)
        out = linear(_gated(before_gate), self.project, self.layer.project.bias)
        return out if self.layer.is_first else h + out

    def put(self) -> None:
        """Keep what was given last."""
        self.left = [*self.left[1:], self.given]


class _Pointwise(nn.Module):
    """A convolution of 1x1 pixel, in which units see those of their channel and of earlier ones."""

    mask: Tensor | None

    def __init__(self, before: int, after: int, groups: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 1)
        seen = _sees(_channels(after, groups), _channels(before, groups), itself=True)
        mask = None if bool(seen.all()) else seen[:, :, None, None]
        self.register_buffer("mask", mask, persistent=False)

    @property
    def bias(self) -> Tensor:
        """The bias, ``[after]``."""
        bias = self.convolution.bias
        assert bias is not None
        return bias

    def weight(self) -> Tensor:
        """Return the weight, zero where it is masked, ``[after, before, 1, 1]``."""
        weight = self.convolution.weight
        return weight if self.mask is None else weight * self.mask

    def forward(self, h: Tensor) -> Tensor:
        """Map ``[rows, before, height, width]`` to ``[rows, after, height, width]``."""
        return conv2d(h, self.weight(), self.bias)


def _gated(h: Tensor) -> Tensor:
    a, b = h.chunk(2, 1)
    return a.tanh() * b.sigmoid()


def _channels(size: int, groups: int) -> Tensor:
    """Return the channel that each of so many units belongs to, in parts as equal as can be."""
    return torch.arange(size) * groups // size


def _sees(unit: Tensor, before: Tensor, *, itself: bool) -> Tensor:
    """Return whether a unit of a channel sees one of another at the same pixel, ones and zeros."""
    own, other = unit.unsqueeze(1), before.unsqueeze(0)
    return ((other <= own) if itself else (other < own)).float()


def _check_kernel(kernel: int) -> None:
    if kernel < 3 or kernel % 2 == 0:
        raise ValueError(
            f"kernel={kernel}: give an odd number from 3 on, so that a pixel is in the middle of "
            "what it sees"
        )
