"""Available memory, and arrays on disk that may be larger."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

__all__ = [
    "MAPPED_BYTES",
    "TooLargeError",
    "available",
    "mapped",
    "refuse_beyond",
    "room",
    "shown",
    "touched",
]

MAPPED_BYTES = 256 * 2**20
"""Size in bytes above which arrays lie in a file that is mapped into memory, not in memory."""

_CGROUPS = Path("/sys/fs/cgroup")


class TooLargeError(ValueError):
    """What is asked for takes more memory than there is."""


def available() -> int | None:
    """Bytes that this process may still take: free on the machine, and in its control groups.

    None where the system does not say. Pages of files, which can be dropped, count as free.
    """
    known = [*_of_machine(), *_of_groups()]
    return max(0, min(known)) if known else None


def refuse_beyond(needed: int, what: str, cure: str) -> None:
    """Refuse what takes more memory than there is, before it is asked for.

    Args:
        needed: In bytes.
        what: What takes it, as the subject of a sentence.
        cure: What to do instead.

    Raises:
        TooLargeError: With both figures.
    """
    free = available()
    if free is not None and needed > free:
        raise TooLargeError(f"{what} takes {shown(needed)}, and {shown(free)} are free; {cure}")


def shown(size: int) -> str:
    """Bytes as a person reads them, such as ``1.5 GiB``."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size:,} bytes"


def room(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array to be filled: in memory, or past `MAPPED_BYTES` in a file of no name.

    The file lies in ``TMPDIR``, or else in ``/var/tmp``, which is on a disk; without room there the
    array is in memory.

    Raises:
        TooLargeError: There is room on neither.
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= MAPPED_BYTES or not hasattr(os, "posix_fallocate"):
        return np.empty(shape, dtype)
    on_disk = os.environ.get("TMPDIR") or ("/var/tmp" if os.access("/var/tmp", os.W_OK) else None)
    try:
        with tempfile.TemporaryFile(dir=on_disk) as file:
            # A disk that is full later would end the process by a signal.
            os.posix_fallocate(file.fileno(), 0, size)
            return mapped(np.memmap(file, dtype, "r+", shape=shape))
    except OSError:
        cure = f"make room in {on_disk or tempfile.gettempdir()}, or set TMPDIR to another folder"
        refuse_beyond(size, f"an array of shape {shape}", cure)
        return np.empty(shape, dtype)


def _of_machine() -> Iterator[int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        with_pages = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
        if with_pages:  # not on Windows
            yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    if "MemAvailable" in kib:
        yield 1024 * (kib["MemAvailable"] + kib.get("SwapFree", 0))


def _of_groups() -> Iterator[int]:
    """What the limits of the process's control groups leave, of either version."""
    try:
        entries = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if not controllers:
            yield from _left(_CGROUPS, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            yield from _left(_CGROUPS / "memory", path, *names)


def _left(root: Path, path: str, limit: str, usage: str, cached: str) -> Iterator[int]:
    group = root / path.lstrip("/")
    # Within a container the path may be that of the host: its root then stands for it.
    for folder in {group, *group.parents, root} if group.is_relative_to(root) else {root}:
        try:
            if not folder.is_relative_to(root):
                continue
            most, used = (int((folder / name).read_text()) for name in (limit, usage))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # "max" is no limit
            continue
        yield most - used + int(stat.get(cached, 0))


_MAPS: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
_num_touched = 0


def mapped(array: np.memmap) -> np.memmap:
    """Let ``touched`` drop the pages of an array that lies in a file; return it."""
    _MAPS.add(array._mmap)  # type: ignore[attr-defined]
    return array


def touched(num_bytes: int) -> None:
    """Count what is read of mapped arrays; past a quarter of `MAPPED_BYTES` drop their pages.

    The files keep them, and the system its cache, as long as there is room. Without this a process
    seems to hold all that it has read, and a limit on its memory may end it.
    """
    global _num_touched
    _num_touched += num_bytes
    if _num_touched > MAPPED_BYTES // 4 and _MAPS and hasattr(mmap, "MADV_DONTNEED"):
        for each in list(_MAPS):
            each.madvise(mmap.MADV_DONTNEED)
        _num_touched = 0
