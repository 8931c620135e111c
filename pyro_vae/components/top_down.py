"""Convolutional blocks of a top-down hierarchy: each has a latent that is an image of its own.

A state ``h``, ``[*batch, channels, height, width]``, comes down through the blocks. Each block
draws a latent given the state, adds what it says to the state, and hands it on; where the
resolution changes, the state is enlarged on entering.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pyro_vae.components.conditional import Distribution, Family, Shape

__all__ = ["SubPixel", "TopDownBlock", "image_shapes", "upward_steps"]

# The inverse root mean square of SiLU's output for standard normal inputs: it keeps the size of
# signals through a branch. With less, q would hardly hear the data at the start, and collapse.
_GAIN = 1.68


class TopDownBlock(nn.Module):
    r"""One layer of a top-down hierarchy: p(z | h), q(z | h, d), and the way of h past z.

    .. math::
        h \leftarrow h + f_p(h) + W z, \qquad h \leftarrow h + r(h)

    with convolutional branches :math:`f_p` and r of half as many channels inside.

    Args:
        prior: The family of p(z | h), over ``(latent channels, height, width)``.
        posterior: The family of q(z | h, d), over the same.
        channels: The number of channels of h and d.
        depth: How many blocks there are; what each adds at the start shrinks with its root.

    Raises:
        ValueError: If a family's raw numbers are no image of the latent's resolution.

    References:
        Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images
        (Child, 2021)
        NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020)
    """

    def __init__(self, prior: Family, posterior: Family, *, channels: int, depth: int = 1) -> None:
        super().__init__()
        latent_channels, *size = prior.event_shape
        self.prior_family, self.posterior_family = prior, posterior
        self.size = tuple(size)
        self.channels = channels
        of_prior, of_posterior = (_depth_of_raw(f) for f in (prior, posterior))
        self.bias = nn.Parameter(0.02 * torch.randn(channels, *size))
        self.of_prior = _branch(channels, of_prior + channels, size)
        self.of_posterior = _branch(2 * channels, of_posterior, size)
        self.of_latent = _started(nn.Conv2d(latent_channels, channels, 1), depth**-0.5)
        self.residual = _branch(channels, channels, size, depth)

    def enter(self, h: Tensor | None) -> Tensor:
        """Return the state at this block's resolution; None starts the first block."""
        if h is None:
            return self.bias
        if h.shape[-2:] != self.size:
            h = _over_images(_Resize(self.size), h)
        return h + self.bias

    def prior(self, h: Tensor) -> tuple[Distribution, Tensor]:
        """Return p(z | h), and the state with what the block knows without z."""
        raw, feature = self._split(h)
        return self.prior_family(raw), h + feature

    def posterior(self, h: Tensor, d: Tensor) -> Distribution:
        """Return q(z | h, d), where ``d`` is what the way up found, ``[B, channels, ...]``."""
        batch = torch.broadcast_shapes(h.shape[:-3], d.shape[:-3])
        joined = torch.cat([v.expand(*batch, *v.shape[-3:]) for v in (h, d)], -3)
        raw = _over_images(self.of_posterior, joined)
        return self.posterior_family(raw.reshape(*batch, *self.posterior_family.raw_shape))

    def leave(self, h: Tensor, z: Tensor) -> Tensor:
        """Return the state with what z says, ``[*batch, channels, height, width]``."""
        h = h + _over_images(self.of_latent, z)
        return h + _over_images(self.residual, h)

    def _split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        found = _over_images(self.of_prior, h)
        raw, feature = found.split([found.shape[-3] - self.channels, self.channels], dim=-3)
        return raw.reshape(*h.shape[:-3], *self.prior_family.raw_shape), feature


class SubPixel(nn.Module):
    """A convolution from a state to an image that is larger by any factor.

    Each position of the state makes all pixels that it covers; what lies over the edge is cut.

    Args:
        in_shape: ``(channels, height, width)`` of the state.
        out_shape: ``(..., height, width)``: leading axes become channels.

    Raises:
        ValueError: If ``out_shape`` is no image.
    """

    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__()
        if len(out_shape) < 3:
            raise ValueError(
                f"SubPixel makes an image (channels, height, width), not {tuple(out_shape)}: "
                "choose a likelihood with numbers for every pixel, such as Bernoulli"
            )
        self.out_shape = tuple(out_shape)
        depth = math.prod(out_shape[:-2])
        factor = max(math.ceil(large / small) for large, small in _sides(out_shape, in_shape))
        self.layers = nn.Sequential(
            nn.SiLU(),
            _started(nn.Conv2d(in_shape[0], depth * factor**2, 3, padding=1, bias=False), 1.0),
            nn.PixelShuffle(factor),
        )

    def forward(self, h: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""
        height, width = self.out_shape[-2:]
        image = _over_images(self.layers, h)[..., :height, :width]
        return image.reshape(*h.shape[:-3], *self.out_shape)


def image_shapes(event_shape: Shape, latent_shapes: Sequence[Shape]) -> list[Shape]:
    """Return the latents of a top-down hierarchy as images, from the data up.

    Args:
        event_shape: ``(channels, height, width)`` of one datum.
        latent_shapes: ``(channels, height, width)``; or ``(channels,)``, which takes half the
            height and width of what lies below it.

    Raises:
        ValueError: If the data are no images, there is no layer, or one is larger than what lies
            below it.
    """
    if len(event_shape) != 3:
        raise ValueError(
            f"a top-down hierarchy is convolutional, and the data are no images (channels, "
            f"height, width) but {tuple(event_shape)}: use LadderVAE or HierarchicalVAE"
        )
    if not latent_shapes:
        raise ValueError("latent_shapes=(): a hierarchy has at least one layer, such as ((8,),)")
    shapes: list[Shape] = []
    height, width = event_shape[1:]
    for shape in latent_shapes:
        if len(shape) == 1:
            shape = (shape[0], (height + 1) // 2, (width + 1) // 2)
        if len(shape) != 3 or shape[1] > height or shape[2] > width:
            raise ValueError(
                f"latent shape {tuple(shape)} above {height} x {width}: a layer is (channels, "
                "height, width), or (channels,), and no larger than what lies below it"
            )
        shapes.append(tuple(shape))
        height, width = shape[1:]
    return shapes


def upward_steps(
    event_shape: Shape, latent_shapes: Sequence[Shape], *, channels: int
) -> list[nn.Module]:
    """Return the deterministic way up: a step to the resolution of each layer, from the data up.

    Args:
        event_shape: ``(channels, height, width)`` of one datum.
        latent_shapes: ``(channels, height, width)`` of the latent of each layer.
        channels: The number of channels of every state.
    """
    strides = [max(1, large // small) for large, small in _sides(event_shape, latent_shapes[0])]
    kernel, padding = _pair(2 * s - 1 for s in strides), _pair(s - 1 for s in strides)
    stem = _started(nn.Conv2d(event_shape[0], channels, kernel, _pair(strides), padding), 1.0)
    below = _pair(-(-side // s) for side, s in zip(event_shape[1:], strides, strict=True))
    steps: list[nn.Module] = []
    for _, height, width in latent_shapes:
        size = (height, width)
        step: list[nn.Module] = [] if steps else [stem]
        if below != size:
            step.append(nn.AdaptiveAvgPool2d(size))
        steps.append(nn.Sequential(*step, _Residual(channels, size)))
        below = size
    return steps


def _sides(large: Shape, small: Shape) -> Iterable[tuple[int, int]]:
    return zip(large[-2:], small[-2:], strict=True)


def _pair(sides: Iterable[int]) -> tuple[int, int]:
    height, width = sides
    return height, width


class _Residual(nn.Module):
    def __init__(self, channels: int, size: Sequence[int]) -> None:
        super().__init__()
        self.branch = _branch(channels, channels, size)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.branch(h)


class _Resize(nn.Module):
    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.interpolate(h, size=self.size, mode="nearest")


def _branch(
    in_channels: int, out_channels: int, size: Sequence[int], depth: int = 1
) -> nn.Sequential:
    """Return a bottleneck of convolutions; on one or two pixels across, wide ones are idle."""
    wide = 3 if min(size) > 2 else 1
    hidden = max(1, in_channels // 2)
    return nn.Sequential(
        nn.SiLU(), _started(nn.Conv2d(in_channels, hidden, 1), _GAIN),
        nn.SiLU(), _started(nn.Conv2d(hidden, hidden, wide, padding=wide // 2), _GAIN),
        nn.SiLU(), _started(nn.Conv2d(hidden, hidden, wide, padding=wide // 2), _GAIN),
        nn.SiLU(), _started(nn.Conv2d(hidden, out_channels, 1), depth**-0.5),
    )  # fmt: skip


@torch.no_grad()
def _started(layer: nn.Conv2d, gain: float) -> nn.Conv2d:
    """Start a layer so that its outputs have ``gain`` times the root mean square of its inputs."""
    layer.weight.normal_(std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        layer.bias.zero_()
    return layer


def _over_images(network: nn.Module, h: Tensor) -> Tensor:
    """Apply a network of images to ``[*batch, channels, height, width]``."""
    out = network(h.reshape(-1, *h.shape[-3:]))
    return out.reshape(*h.shape[:-3], *out.shape[-3:])


def _depth_of_raw(family: Family) -> int:
    if family.raw_shape[-2:] != family.event_shape[-2:]:
        raise ValueError(
            f"{type(family).__name__} over {family.event_shape} has raw numbers of shape "
            f"{family.raw_shape}, no image of {family.event_shape[-2:]}: a top-down layer takes "
            "families with numbers for every pixel, such as DiagonalNormal or Bernoulli"
        )
    return math.prod(family.raw_shape[:-2])
