"""A network between an image and a smaller grid of vectors, as spatial latents and codes take."""

from __future__ import annotations

import math

from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.networks.convolutional import Block
from pyro_vae.components.networks.layers import (
    Build,
    Initialise,
    Rows,
    Shape,
    activated,
    check_size,
    finished,
)
from pyro_vae.wording import option

__all__ = ["FullyConvolutional"]


class FullyConvolutional(nn.Module):
    r"""Residual convolutions between an image and a smaller grid of vectors, in either direction.

    On the way down each step halves height and width by a convolution of 4x4 pixels and a stride
    of two, then come residual blocks; on the way up the blocks come first, and each step enlarges
    an image by a transposed convolution of the same kind. Nothing is dense, so that a place of the
    grid sees its part of the image.

    Args:
        in_shape: ``(..., channels, height, width)``; leading axes become channels.
        out_shape: Likewise; one side is 1, 2, 4, 8, ... times as high and wide as the other.
        channels: The number of channels inside.
        num_blocks: The number of residual blocks at the size of the grid.
        activation: The nonlinearity.
        initialise: Sets the weights, such as ``glorot``; torch's own unless given.

    Raises:
        ValueError: If a side is no image, the sizes do not fit, or a number is not positive.

    References:
        Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017)
    """

    @at_the_door
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: int = 64,
        num_blocks: int = 2,
        activation: Build = nn.SiLU,
        initialise: Initialise | None = None,
    ) -> None:
        super().__init__()
        check_size("channels", channels)
        check_size("num_blocks", num_blocks)
        self.rows = Rows(self, in_shape, out_shape)
        steps = _num_steps(tuple(in_shape), tuple(out_shape))
        before, after = _depth(in_shape), _depth(out_shape)
        blocks = [
            Block(channels, channels, activation=activation, normalise=None)
            for _ in range(num_blocks)
        ]
        self.given = (before, *in_shape[-2:])
        if steps >= 0:
            first = _halvings(before, channels, steps, activation)
            layers = [*first, *blocks, *activated(channels, activation)]
            layers.append(nn.Conv2d(channels, after, 3, padding=1, bias=False))
        else:
            layers = [nn.Conv2d(before, channels, 3, padding=1), *blocks]
            layers += _doublings(channels, after, -steps, activation)
        self.layers = nn.Sequential(*layers)
        finished(self, initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""
        return self.rows.back(self.layers(self.rows.of(x, *self.given)), x)


def _depth(shape: Shape) -> int:
    return math.prod(shape[:-2])


def _num_steps(in_shape: Shape, out_shape: Shape) -> int:
    """Return how often height and width are halved on the way; negative: how often doubled."""
    told = f"FullyConvolutional goes from {in_shape} to {out_shape}"
    if len(in_shape) < 3 or len(out_shape) < 3:
        raise ValueError(
            f"{told}: both are to be images (channels, height, width); give the latent such a "
            f"shape ({option('latent', '16x7x7', python='latent_shape=(16, 7, 7)')}), or take "
            "another network"
        )
    for steps in range(-16, 17):
        small, large = sorted((in_shape[-2:], out_shape[-2:]))
        grown = tuple(size << abs(steps) for size in small)
        if grown == large and (in_shape[-2:] == large) == (steps >= 0 or small == large):
            return steps
    raise ValueError(
        f"{told}: one side has to be 1, 2, 4, 8, ... times as high and wide as the other"
    )


def _halvings(before: int, channels: int, steps: int, activation: Build) -> list[nn.Module]:
    if steps == 0:
        return [nn.Conv2d(before, channels, 3, padding=1)]
    layers: list[nn.Module] = []
    for step in range(steps):
        depth = before if step == 0 else channels
        layers += [] if step == 0 else [*activated(channels, activation)]
        layers.append(nn.Conv2d(depth, channels, 4, stride=2, padding=1))
    return layers


def _doublings(channels: int, after: int, steps: int, activation: Build) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for step in range(steps):
        is_last = step == steps - 1
        depth = after if is_last else channels
        layers += activated(channels, activation)
        layers.append(nn.ConvTranspose2d(channels, depth, 4, stride=2, padding=1, bias=not is_last))
    return layers
