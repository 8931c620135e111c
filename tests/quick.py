"""Which members of a table every run of the suite tries; the others are slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

__all__ = ["some"]


def some(table: Mapping[Any, Any], *names: Any) -> list[Any]:
    """Return the names of a table as parameters, of which those that are not given are slow."""
    assert {*names} <= table.keys()
    return [pytest.param(n, marks=() if n in names else pytest.mark.slow) for n in table]
