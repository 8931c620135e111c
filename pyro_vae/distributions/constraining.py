"""Maps from real numbers to positive ones and triangular matrices, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["below_diagonal", "inverse_softplus", "positive", "raw_at_scale"]

_SOFTPLUS_INVERSE_OF_ONE = math.log(math.e - 1.0)


def positive(raw: Tensor, *, floor: float = 1e-5) -> Tensor:
    r"""Map real numbers to positive ones, zero to (almost exactly) one.

    .. math:: \mathrm{softplus}(r + \log(e - 1)) + \epsilon

    Linear above and bounded away from zero below, so that neither value nor gradient overflows
    in float32, as ``exp`` does from raw numbers of 50 on.
    """
    return nn.functional.softplus(raw + _SOFTPLUS_INVERSE_OF_ONE) + floor


def raw_at_scale(scale: Tensor, *, floor: float = 1e-5) -> Tensor:
    """Return the raw numbers that ``positive`` maps to ``scale``, or to near its floor."""
    return inverse_softplus((scale - floor).clamp(min=1e-6)) - _SOFTPLUS_INVERSE_OF_ONE


def inverse_softplus(value: Tensor) -> Tensor:
    """Return log(exp(value) - 1) of positive values, without overflow."""
    return value + (-torch.expm1(-value)).log()


def below_diagonal(entries: Tensor, size: int) -> Tensor:
    """Lay ``[*batch, D (D - 1) / 2]`` numbers out below the diagonal of D x D zeros."""
    # The numbers and, behind their tail, all of them backwards fill a square of D - 1: its lower
    # triangle holds each once. Cheaper by far, with its gradient, than to pick them by an index.
    square = torch.cat([entries[..., size - 1 :], entries.flip(-1)], -1)
    lower = square.unflatten(-1, (size - 1, size - 1)).tril()
    return nn.functional.pad(lower, (0, 1, 1, 0))
