"""Whether a tensor lies in a file that is mapped into memory."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor


def is_mapped(x: Tensor, where: str) -> bool:
    """Tell whether a tensor is in the map of a file of this name; True where the system tells none.

    A temporary file has been removed: "(deleted)".
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return True
    lines = [line for line in maps.read_text().splitlines() if where in line]
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    return any(low <= x.data_ptr() < high for low, high in spans)
