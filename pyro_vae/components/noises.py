r"""Noise on what the encoder sees, in the units of the data: Gaussian, masking, salt and pepper.

A noise is a module that changes data in training mode, as dropout does, and returns them as they
are in evaluation mode. ``inference.Corrupted`` puts one in front of a guide.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.networks.inputs import alike, moments

__all__ = ["GaussianNoise", "MaskingNoise", "Noise", "SaltAndPepperNoise", "WordDropout"]


class Noise(nn.Module):
    """Corrupts data in training mode; a missing value (NaN) stays missing.

    A leaf defines ``corrupted``. It draws from torch's global generator, anew for each datum.
    """

    keeps_symbols: ClassVar[bool] = True
    """Whether symbols, 0, 1, ..., stay symbols, which an embedding takes."""

    def forward(self, x: Tensor) -> Tensor:
        """Return data ``[B, *event_shape]``, corrupted in training mode."""
        if not self.training:
            return x
        return torch.where(x.isnan(), x, self.corrupted(x))

    def corrupted(self, x: Tensor) -> Tensor:
        """Return corrupted data of the same shape."""
        raise NotImplementedError

    def refusal(self, num_symbols: int | None) -> str | None:
        """Say why an encoder cannot be given what this makes; None if it can.

        Args:
            num_symbols: How many symbols the encoder embeds; None: it reads the data as numbers.
        """
        if num_symbols is None or self.keeps_symbols:
            return None
        return (
            f"{type(self).__name__} makes numbers between the symbols, of which the encoder embeds "
            f"{num_symbols}; take WordDropout, which puts a symbol in the place of others"
        )


class GaussianNoise(Noise):
    r"""Adds normal noise, :math:`\tilde x = x + s \sigma \epsilon`, :math:`\epsilon \sim N(0, I)`.

    :math:`\sigma` is the data's standard deviation, of each column of vectors and of each channel
    of images. So no unit of the data changes what is learned, and a column whose numbers are all
    the same has no noise. Until data have been met, it is one.

    Args:
        scale: s, in standard deviations of the data.

    Attributes:
        unit: :math:`\sigma`, which broadcasts against one datum.

    Raises:
        ValueError: If the scale is negative or not finite.

    References:
        Extracting and Composing Robust Features with Denoising Autoencoders
        (Vincent, Larochelle, Bengio & Manzagol, 2008)
    """

    synonyms = ("Gaussian", "normal")
    keeps_symbols = False
    of_data = ("known",)
    unit: Tensor

    @at_the_door
    def __init__(self, scale: float = 0.3) -> None:
        super().__init__()
        if not 0 <= scale < math.inf:
            raise ValueError(f"scale={scale}: the noise's scale is finite and not negative")
        self.scale = scale
        self.known = False
        self.register_buffer("unit", torch.ones(()))

    @property
    def is_new(self) -> bool:
        """Whether no data have been met."""
        return not self.known

    def adapt_inputs(self, x: Tensor) -> None:
        """Take the units of the rows of ``x``, ``[N, *event_shape]``."""
        self.unit, self.known = moments(x)[1], True

    def corrupted(self, x: Tensor) -> Tensor:
        """Return data with normal noise."""
        return x + self.scale * self.unit * torch.randn_like(x)

    def extra_repr(self) -> str:
        """Show the scale, and whether data have been met."""
        return f"scale={self.scale}" + ("" if self.known else ", no data met")


class MaskingNoise(Noise):
    """Puts one value in the place of a part of all entries.

    Args:
        probability: That an entry is replaced.
        value: What it is replaced with, as the data are given to the encoder.

    Raises:
        ValueError: If the probability is not between 0 and 1, or the value is not finite.

    References:
        Extracting and Composing Robust Features with Denoising Autoencoders
        (Vincent, Larochelle, Bengio & Manzagol, 2008)
    """

    synonyms = ("Masking", "Dropout")

    @at_the_door
    def __init__(self, probability: float = 0.3, *, value: float = 0.0) -> None:
        super().__init__()
        _check_probability(probability)
        if not math.isfinite(value):
            raise ValueError(f"value={value}: an entry is replaced with a finite number")
        self.probability, self.value = probability, value

    def corrupted(self, x: Tensor) -> Tensor:
        """Return data with some entries replaced."""
        return torch.where(torch.rand_like(x) < self.probability, self.value, x)

    def refusal(self, num_symbols: int | None) -> str | None:
        """Say that the value is none of the encoder's symbols, if it is none."""
        return None if num_symbols is None else _not_among("value", self.value, num_symbols)

    def extra_repr(self) -> str:
        """Show the probability and the value."""
        return f"probability={self.probability}, value={self.value}"


class SaltAndPepperNoise(Noise):
    """Puts the data's lowest or highest value, each as likely, in the place of a part of all.

    Both are those of each column of vectors and of each channel of images. Until data have been
    met, they are 0 and 1.

    Args:
        probability: That an entry is replaced.

    Attributes:
        lowest: The lowest value, which broadcasts against one datum.
        highest: The highest value, likewise.

    Raises:
        ValueError: If the probability is not between 0 and 1.

    References:
        Stacked Denoising Autoencoders: Learning Useful Representations in a Deep Network with a
        Local Denoising Criterion (Vincent, Larochelle, Lajoie, Bengio & Manzagol, 2010)
    """

    synonyms = ("SaltAndPepper",)
    of_data = ("known",)
    lowest: Tensor
    highest: Tensor

    @at_the_door
    def __init__(self, probability: float = 0.1) -> None:
        super().__init__()
        _check_probability(probability)
        self.probability = probability
        self.known = False
        self.register_buffer("lowest", torch.zeros(()))
        self.register_buffer("highest", torch.ones(()))

    @property
    def is_new(self) -> bool:
        """Whether no data have been met."""
        return not self.known

    def adapt_inputs(self, x: Tensor) -> None:
        """Take the range of the rows of ``x``, ``[N, *event_shape]``."""
        axes, missing = alike(x), x.isnan()
        # Of a column of which nothing has been observed, nothing is replaced.
        lowest = torch.where(missing, math.inf, x).amin(axes, keepdim=True)
        highest = torch.where(missing, -math.inf, x).amax(axes, keepdim=True)
        self.lowest, self.highest = (
            torch.where(bound.isfinite(), bound, 0.0)[0] for bound in (lowest, highest)
        )
        self.known = True

    def corrupted(self, x: Tensor) -> Tensor:
        """Return data with some entries at an end of their range."""
        drawn = torch.rand_like(x)
        end = torch.where(drawn < 0.5 * self.probability, self.lowest, self.highest)
        return torch.where(drawn < self.probability, end.to(x), x)

    def extra_repr(self) -> str:
        """Show the probability, and whether data have been met."""
        return f"probability={self.probability}" + ("" if self.known else ", no data met")


class WordDropout(Noise):
    """Puts the unknown symbol in the place of a part of all symbols; padding stays.

    Args:
        unknown: The unknown symbol, one of those that the encoder embeds: the data need not have
            it, so that ``num_symbols`` may be one more for the encoder.
        probability: That a symbol is replaced.
        padding: The symbol that fills what is left of a shorter sequence, if there is one.

    Raises:
        ValueError: If the probability is not between 0 and 1, or a symbol is negative.

    References:
        Deep Unordered Composition Rivals Syntactic Methods for Text Classification
        (Iyyer, Manjunatha, Boyd-Graber & Daumé, 2015)
        Generating Sentences from a Continuous Space (Bowman et al., 2016)
    """

    @at_the_door
    def __init__(
        self, unknown: int, *, probability: float = 0.3, padding: int | None = None
    ) -> None:
        super().__init__()
        _check_probability(probability)
        for name, symbol in (("unknown", unknown), ("padding", padding)):
            if symbol is not None and symbol < 0:
                raise ValueError(f"{name}={symbol}: symbols are 0, 1, ...")
        if unknown == padding:
            raise ValueError(f"unknown={unknown}: it is the padding, which ends a sequence")
        self.unknown, self.probability, self.padding = unknown, probability, padding

    def corrupted(self, x: Tensor) -> Tensor:
        """Return sequences ``[B, L]`` with some symbols unknown."""
        replaced = torch.rand_like(x) < self.probability
        if self.padding is not None:
            replaced = replaced & (x != self.padding)
        return torch.where(replaced, float(self.unknown), x)

    def refusal(self, num_symbols: int | None) -> str | None:
        """Say that the encoder embeds no symbols, or not this one, where that is so."""
        if num_symbols is not None:
            return _not_among("unknown", self.unknown, num_symbols)
        return (
            "WordDropout is for sequences of symbols, and the encoder reads the data as numbers: "
            "give it num_symbols, as Recurrent has, or take MaskingNoise"
        )

    def extra_repr(self) -> str:
        """Show the symbols and the probability."""
        padding = "" if self.padding is None else f", padding={self.padding}"
        return f"unknown={self.unknown}, probability={self.probability}{padding}"


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(
            f"probability={probability}: the part that is corrupted is between 0 and 1"
        )


def _not_among(name: str, symbol: float, num_symbols: int) -> str | None:
    if symbol in range(num_symbols):
        return None
    return (
        f"{name}={symbol}: the encoder embeds the symbols 0 to {num_symbols - 1}; name one of "
        "them, or give the encoder a larger num_symbols"
    )
