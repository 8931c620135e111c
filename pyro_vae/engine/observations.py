"""How stored rows become what the model sees: as they are, rescaled, binarised or dequantised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["AsFloat", "Binarize", "Dequantize", "Observation", "Rescale"]


class Observation:
    """Stored rows to what the model sees, a float tensor of the same shape.

    A value that is NaN is missing, and stays so.

    Each is built from ``levels``, the largest value that integer data take.
    """

    levels: int | None

    @property
    def once(self) -> bool:
        """Whether the training rows, too, are observed only once, before training."""
        return False

    def __str__(self) -> str:
        """Return what the model sees, in words."""
        return type(self).__name__

    def __call__(self, x: Tensor) -> Tensor:
        """Observe rows `[B, *event_shape]`; noise comes from the global generator of `x.device`."""
        raise NotImplementedError


@dataclass(frozen=True)
class AsFloat(Observation):
    """x as it is, in the default float type: counts under a Binomial or Poisson, real data.

    Attributes:
        levels: the largest value that x takes; None for real data.
    """

    levels: int | None = None

    def __str__(self) -> str:
        """Return what the model sees, in words."""
        return "values as stored" if self.levels is None else f"integers 0..{self.levels}"

    def __call__(self, x: Tensor) -> Tensor:
        """Observe rows, without noise."""
        return x.to(torch.get_default_dtype())


@dataclass(frozen=True)
class Rescale(Observation):
    """x / levels, in `[0, 1]`.

    Attributes:
        levels: the largest value that x takes.
    """

    levels: int

    def __str__(self) -> str:
        """Return what the model sees, in words."""
        return f"integers 0..{self.levels} rescaled to [0, 1]"

    def __call__(self, x: Tensor) -> Tensor:
        """Observe rows, without noise."""
        return _float_or_integer(x) / self.levels


@dataclass(frozen=True)
class Binarize(Observation):
    """Draws of Bernoulli(x / levels).

    Attributes:
        levels: the largest value that x takes.
        resample: True: drawn anew at every visit (dynamic binarisation; "On the Quantitative
            Analysis of Deep Belief Networks", Salakhutdinov and Murray, 2008). False: the whole
            training set is drawn once (static), as validation and test sets always are.
    """

    levels: int
    resample: bool = True

    @property
    def once(self) -> bool:
        """Whether the training rows are drawn once, before training."""
        return not self.resample

    def __str__(self) -> str:
        """Return what the model sees, in words."""
        return (
            f"integers 0..{self.levels} binarised {'at every visit' if self.resample else 'once'}"
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Observe rows; the noise is from the global generator of their device."""
        probs = _float_or_integer(x) / self.levels
        # Four times as fast on a CPU as torch.bernoulli; exact at 0 and 1, as U is in [0, 1).
        drawn = torch.rand(probs.shape, dtype=probs.dtype, device=probs.device).lt_(probs)
        # A missing value stays missing: no number is below NaN.
        return torch.where(probs.isnan(), probs, drawn) if x.is_floating_point() else drawn


@dataclass(frozen=True)
class Dequantize(Observation):
    """(x + U) / (levels + 1), U uniform on (0, 1): integers made continuous, in `(0, 1)`.

    The expected log-density of the result, minus D log(levels + 1), bounds the log-probability of
    the D integers from below (Jensen); in the other direction, a discrete ELBO plus
    D log(levels + 1) compares with densities on `[0, 1]`.

    References:
        "RNADE: The real-valued neural autoregressive density-estimator", Uria, Murray and
        Larochelle, 2013. "A note on the evaluation of generative models", Theis, van den Oord and
        Bethge, 2016.

    Attributes:
        levels: the largest value that x takes.
    """

    levels: int

    def __str__(self) -> str:
        """Return what the model sees, in words."""
        return f"integers 0..{self.levels} dequantised"

    def __call__(self, x: Tensor) -> Tensor:
        """Observe rows; the noise is from the global generator of their device."""
        noise = torch.rand(x.shape, device=x.device)
        # Rounding x + U up to x + 1 would leave the bin, and (0, 1) with it at x = levels. Some
        # densities on (0, 1) are infinite at 0, which torch draws once in 2**24 numbers.
        eps = torch.finfo(noise.dtype).eps
        noise.clamp_(min=eps / 4, max=1 - (self.levels + 1) * eps)
        return noise.add_(x).div_(self.levels + 1)


def _float_or_integer(x: Tensor) -> Tensor:
    # An integer divides to the default float type in one pass, without a copy.
    return x.to(torch.get_default_dtype()) if x.is_floating_point() else x
