"""A disk that fails, and processes that are killed, at each moment of a write."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

BEYOND = 3
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def with_fault_at(moment: int, fault, folder: Path, action) -> None:
    """Run ``action`` and call ``fault(handle)`` before its ``moment``-th change of the disk.

    The process ends with the status BEYOND where there are not that many.
    """
    seen = 0

    def count(handle: int | None = None) -> None:
        nonlocal seen
        seen += 1
        if seen == moment:
            fault(handle)

    def hook(event: str, args: tuple) -> None:
        if event in EVENTS and (event != "open" or str(args[0]).startswith(str(folder))):
            count()

    fsync = os.fsync
    os.fsync = lambda handle: (count(handle), fsync(handle))
    sys.addaudithook(hook)
    action()
    if seen < moment:
        os._exit(BEYOND)


def kill(handle: int | None) -> None:
    if handle is not None:  # before a sync, only half of the file may be there
        with contextlib.suppress(OSError):
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
    os._exit(137)


def child(action) -> int:
    """Return the exit status of ``action`` in a child process; 99 for an exception."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            action()
            os._exit(0)
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
