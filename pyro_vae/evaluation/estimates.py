"""Results of evaluations: numbers with their standard error and unit, and tables of them."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from torch import Tensor, nn

__all__ = ["BITS", "NATS", "Estimate", "Result"]

NATS, BITS = "nats per datum", "bits per dimension"


class Estimate(float):
    """An estimated number; it computes and prints as a number does.

    Args:
        value: The number.
        standard_error: Of the number, in its unit; NaN where it is not known.
        unit: Such as "nats per datum"; nothing for a ratio.
    """

    standard_error: float
    unit: str

    def __new__(cls, value: float, standard_error: float = math.nan, unit: str = "") -> Estimate:
        """Make an estimate of three."""
        made = super().__new__(cls, value)
        made.standard_error, made.unit = float(standard_error), unit
        return made

    @classmethod
    def of(cls, per_datum: Tensor, unit: str = NATS) -> Estimate:
        """Return the mean over the data, ``[N]``.

        Its standard error as the average over the population that the data come from is the
        standard deviation over data / sqrt(N); NaN for one datum.
        """
        error = math.nan
        if len(per_datum) > 1:
            error = (per_datum.std() / math.sqrt(len(per_datum))).item()
        return cls(per_datum.mean().item(), error, unit)

    @property
    def value(self) -> float:
        """The number alone."""
        return float(self)

    def times(self, factor: float, unit: str) -> Estimate:
        """Return the estimate in another unit."""
        return Estimate(factor * self, abs(factor) * self.standard_error, unit)

    def __repr__(self) -> str:
        error = "" if math.isnan(self.standard_error) else f" +- {self.standard_error:.4g}"
        return f"{float(self):.6g}{error} {self.unit}".rstrip()


class Result:
    """A dataclass that shows its numbers, and of tensors the shape."""

    def __repr__(self) -> str:
        held: Any = self
        parts = (f"{field.name}={_shown(getattr(self, field.name))}" for field in fields(held))
        return f"{type(self).__name__}({', '.join(parts)})"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {_shown(each)}" for name, each in value.items()) + "}"
    return f"{value:.6g}" if type(value) is float else repr(value)
