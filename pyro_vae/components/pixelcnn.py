"""PixelCNN: each pixel of an image given those before it and a latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pyro_vae import distributions
from pyro_vae.arguments import at_the_door, built
from pyro_vae.components.conditional import Distribution, Family, Shape
from pyro_vae.components.images import (
    DiscretizedLogisticMixture,
    check_levels,
    in_levels,
    log_frequencies,
)
from pyro_vae.components.networks.pixelcnn import GatedPixelCNN

__all__ = ["LogisticLevels", "PixelCNN", "PixelLevels", "SoftmaxLevels"]

_MOST_LEVELS = 255
_NUM_ROWS = 1000  # say enough of how often levels occur


class PixelLevels:
    """What P numbers of each pixel say of the levels 0..n of its channels; a leaf says how.

    Args:
        num_channels: C.
        largest: The largest value, n.

    Attributes:
        num_raw: How many numbers a pixel has, P.
        in_order: Whether those of a channel depend on the channels before it at the same pixel.
    """

    num_raw: int
    in_order: bool

    def __init__(self, num_channels: int, largest: int) -> None:
        self.num_channels, self.largest = num_channels, largest

    def log_prob(self, raw: Tensor, value: Tensor) -> Tensor:
        """Return the log-probability of images, ``[rows]``.

        Args:
            raw: ``[rows, P, height, width]``.
            value: ``[rows, C, height, width]``, whole numbers in floating point.
        """
        raise NotImplementedError

    def logits(self, raw: Tensor, before: Tensor) -> Tensor:
        """Return the logits of the next channel's levels at a pixel, ``[rows, n + 1]``.

        Args:
            raw: ``[rows, P]``.
            before: The channels before it, ``[rows, 0 to C - 1]``.
        """
        raise NotImplementedError

    def raw_from(self, pixels: Tensor) -> Tensor | None:
        """Return numbers that say of every pixel what data ``[N, C]`` have; None: not known."""
        raise NotImplementedError


class SoftmaxLevels(PixelLevels):
    """A probability of its own for each level, given the channels before at the same pixel.

    The numbers are logits. They start at the logarithms of how often each level occurs.

    Args:
        num_channels: C.
        largest: The largest value, n.

    References:
        Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner & Kavukcuoglu, 2016)
    """

    in_order = True

    def __init__(self, num_channels: int, largest: int) -> None:
        super().__init__(num_channels, largest)
        self.num_raw = num_channels * (largest + 1)

    def log_prob(self, raw: Tensor, value: Tensor) -> Tensor:
        """Return the log-probability of images, ``[rows]``."""
        logits = raw.unflatten(1, (self.num_channels, self.largest + 1)).transpose(1, 2)
        return -cross_entropy(logits, value.long(), reduction="none").flatten(1).sum(1)

    def logits(self, raw: Tensor, before: Tensor) -> Tensor:
        """Return the logits of the next channel's levels at a pixel, ``[rows, n + 1]``."""
        return raw.unflatten(1, (self.num_channels, self.largest + 1))[:, before.shape[1]]

    def raw_from(self, pixels: Tensor) -> Tensor | None:
        """Return the logarithms of how often each level occurs in each channel."""
        found = log_frequencies(pixels, self.largest + 1)
        return None if found is None else found.T.flatten()


class LogisticLevels(PixelLevels):
    """A mixture of discretized logistics, channels coupled: that of PixelCNN++.

    What the channels of a pixel have to do with each other is in the mixture, as
    ``DiscretizedLogisticMixture`` has it; the network sees whole pixels. A channel is drawn given
    those before it, which say how likely each component is.

    Args:
        num_channels: C.
        largest: The largest value, n.
        num_components: The number of components, K.

    Raises:
        ValueError: If there is no component.

    References:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
        Modifications (Salimans, Karpathy, Chen & Kingma, 2017)
    """

    in_order = False

    @at_the_door
    def __init__(self, num_channels: int, largest: int, *, num_components: int = 10) -> None:
        super().__init__(num_channels, largest)
        if num_components < 1:
            raise ValueError(f"num_components={num_components}: a mixture has 1 or more")
        self.num_components = num_components
        self._sizes = (1, num_channels, num_channels, num_channels * (num_channels - 1) // 2)
        self.num_raw = num_components * sum(self._sizes)

    def log_prob(self, raw: Tensor, value: Tensor) -> Tensor:
        """Return the log-probability of images, ``[rows]``."""
        return self._mixture(raw).log_prob(value)

    def logits(self, raw: Tensor, before: Tensor) -> Tensor:
        """Return the logits of the next channel's levels at a pixel, ``[rows, n + 1]``."""
        mixture = self._mixture(raw[:, :, None, None])
        return mixture.channel_log_probs(before[:, :, None, None]).flatten(1)

    def raw_from(self, pixels: Tensor) -> Tensor | None:
        """Return locations spread about the mean, and scales of a tenth of the range."""
        family = DiscretizedLogisticMixture(
            (self.num_channels, 1, 1), num_components=self.num_components, levels=self.largest
        )
        return family.raw_from(pixels[:, :, None, None]).flatten()

    def _mixture(self, raw: Tensor) -> distributions.CoupledLogisticMixture:
        parts = raw.unflatten(1, (self.num_components, -1)).split(self._sizes, 2)
        logits, raw_loc, raw_scale, raw_coupling = parts
        loc, scale = in_levels(raw_loc, raw_scale, levels=self.largest)
        return distributions.CoupledLogisticMixture(
            logits.squeeze(2), loc, scale, raw_coupling.tanh(), self.largest, validate_args=False
        )


class PixelCNN(Family):
    r"""Images whose pixels are given by those before them and a latent: gated PixelCNN.

    .. math:: p(x \mid z) = \prod_i \prod_c p(x_{ic} \mid x_{i, <c}, x_{<i}, h(z))

    Pixels are in the order of reading, channels in theirs. A probability is one pass of a network
    of masked convolutions, a sample goes from pixel to pixel. Raw numbers are the maps h,
    ``[*batch, num_context, height, width]``, on which every layer depends: a decoder network makes
    them of z.
    For integers 0..levels; of one level, bits. Samples carry no gradient, and there is no mean.

    A decoder that sees all of an image needs no latent, and training leaves it unused. A pixel sees
    as many rows above it, and columns to either side, as ``num_layers`` times half the kernel: with
    few of them (``num_layers=2``), what is far apart has to go through z.

    Args:
        event_shape: The shape of one image, ``(C, height, width)``, or ``(height, width)``.
        levels: The largest value: 1 for bits, 255 for 8 bits.
        output: How a pixel's levels are told: ``SoftmaxLevels`` (a probability for each) or
            ``LogisticLevels`` (a mixture of logistics, which knows that levels are in order).
        kernel: The height and width of what a layer sees of the layer before, an odd number.
        num_layers: The number of layers.
        width: The number of units of a pixel, in each of two stacks.
        num_context: The number of maps h.

    Raises:
        ValueError: If the event is no image, ``levels`` is not in 1..255, the kernel is not odd, or
            a size is not positive.

    References:
        Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner & Kavukcuoglu, 2016)
        Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016)
        Variational Lossy Autoencoder (Chen et al., 2017)
    """

    roles = ("likelihood", "prior")
    data = "images of levels"
    example: ClassVar = {"levels": 5, "num_layers": 1, "width": 4, "num_context": 2}
    synonyms = ("GatedPixelCNN",)
    near: ClassVar = {
        "PixelCNN++": "its likelihood is that of PixelCNN with LogisticLevels for its output, or "
        "without a network DiscretizedLogisticMixture",
    }

    @at_the_door
    def __init__(
        self,
        event_shape: Shape,
        *,
        levels: int = _MOST_LEVELS,
        output: Callable[[int, int], PixelLevels] = SoftmaxLevels,
        kernel: int = 3,
        num_layers: int = 4,
        width: int = 32,
        num_context: int = 8,
    ) -> None:
        _check_image(event_shape)
        num_channels = event_shape[0] if len(event_shape) == 3 else 1
        super().__init__(event_shape, raw_shape=(num_context, *event_shape[-2:]))
        check_levels(levels)
        if levels > _MOST_LEVELS:
            raise ValueError(
                f"levels={levels}: a PixelCNN has pixels of 1 to 8 bits, 0 to {_MOST_LEVELS}; "
                "divide the values, or take a density of real numbers such as Normal"
            )
        self.levels = levels
        self.output = built("output", output, PixelLevels, num_channels, levels)
        self.network = GatedPixelCNN(
            num_channels, num_context, self.output.num_raw, kernel=kernel, num_layers=num_layers,
            width=width, in_order=self.output.in_order,
        )  # fmt: skip

    def forward(self, raw: Tensor) -> Distribution:
        """Return the distribution of ``raw``, ``[*batch, num_context, height, width]``."""
        return distributions.AutoregressivePixels(self.network, self.output, raw, self.event_shape)

    @torch.no_grad()
    def raw_from(self, data: Tensor) -> Tensor | None:
        """Start the network's last layer at how often levels occur; maps start where they are."""
        some = data[:: max(1, len(data) // _NUM_ROWS)]
        pixels = some.reshape(len(some), self.output.num_channels, -1).movedim(1, 2).flatten(0, 1)
        start = self.output.raw_from(pixels)
        if start is not None:
            self.network.last.bias.copy_(start)
        return None

    def extra_repr(self) -> str:
        """Show the event's shape, the largest value, and how far a pixel sees."""
        return f"event_shape={self.event_shape}, levels={self.levels}, reach={self.network.reach}"


def _check_image(event_shape: Shape) -> None:
    if len(event_shape) not in (2, 3):
        raise ValueError(
            f"PixelCNN over event_shape={tuple(event_shape)}: its events are images, (channels, "
            "height, width); reshape the data, or take AutoregressiveCategorical or "
            "AutoregressiveBernoulli for values in a row"
        )
