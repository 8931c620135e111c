"""Examples that Hypothesis draws: the same ones in every run, however slow the machine."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

__all__ = ["examples"]


def examples(number: int) -> Any:
    """Try a law on so many of them."""
    return settings(
        max_examples=number, derandomize=True, database=None, deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
