"""What the value of an objective is: its name, its unit, and whether it bounds log p(x)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ELBO_NATS", "Quantity", "trained_value", "validated_value", "validation_title"]

_PREFIX = "validation_"


@dataclass(frozen=True)
class Quantity:
    """What is measured in training, larger is better.

    Args:
        name: In records, such as ``"reconstruction"``.
        unit: Likewise, such as ``"nats"``; a mean per datum.
        title: In tables and pictures.
        is_bound: Whether it is a lower bound of log p(x), or of its mean.
    """

    name: str
    unit: str
    title: str
    is_bound: bool = False

    @property
    def key(self) -> str:
        """The name with the unit, such as ``"reconstruction_nats"``."""
        return f"{self.name}_{self.unit}"

    @property
    def training_key(self) -> str:
        """Under which a run records it of the training data: bounds of all kinds are nats."""
        return "train_nats" if self.is_bound else f"train_{self.key}"

    @property
    def validation_key(self) -> str:
        """Under which a run records it of the validation data: of every bound, the ELBO."""
        return f"{_PREFIX}{ELBO_NATS.key if self.is_bound else self.key}"


ELBO_NATS = Quantity("elbo", "nats", "ELBO", is_bound=True)


def validated_value(record: Mapping[str, Any]) -> float:
    """Return what an epoch's record has of the validation data: the ELBO, or the one quantity."""
    return float(record[_validation_key(record)])


def trained_value(record: Mapping[str, Any]) -> float:
    """Return what an epoch's record has of the training data, of whatever was maximised."""
    key = next(key for key in record if key.startswith("train_"))
    return float(record[key])


def validation_title(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return name and unit of what an epoch's record has of the validation data."""
    name, _, unit = _validation_key(record).removeprefix(_PREFIX).rpartition("_")
    return (ELBO_NATS.title if name == ELBO_NATS.name else name.replace("_", " "), unit)


def _validation_key(record: Mapping[str, Any]) -> str:
    if f"{_PREFIX}{ELBO_NATS.key}" in record:  # beside it stand its two terms
        return f"{_PREFIX}{ELBO_NATS.key}"
    return next(key for key in record if key.startswith(_PREFIX))
