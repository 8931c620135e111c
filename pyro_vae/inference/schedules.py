"""Schedules: from the fraction of the run that is done to a factor."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Constant", "Cosine", "Schedule"]


class Schedule:
    """Maps progress in [0, 1] to the factor of a base value; pure, so a run need not save it."""

    def __call__(self, progress: float) -> float:
        """Return the factor at ``progress``, in [0, 1]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Schedule):
    """The factor one, throughout."""

    def __call__(self, progress: float) -> float:
        """Return one."""
        return 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Half a cosine wave from one to ``final``, :math:`f + (1 - f) (1 + \cos \pi t) / 2`.

    Args:
        final: The factor at the end of the run, between 0 and 1.

    References:
        SGDR: Stochastic Gradient Descent with Warm Restarts (Loshchilov & Hutter, 2017)
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.final <= 1:
            raise ValueError(f"final={self.final}: the final factor lies between 0 and 1")

    def __call__(self, progress: float) -> float:
        """Return the factor at ``progress``, in [0, 1]."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2
