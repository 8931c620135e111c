"""The folder of a run: made where nothing is in the way, and held by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pyro_vae.files import explained, is_alive, reason, show, sweep

try:
    import fcntl
except ImportError:  # Windows has none: `lock` then only leaves its process id behind
    fcntl = None  # type: ignore[assignment]

__all__ = ["create_run_folder", "lock", "unused_folder"]

_LOCK = ".lock"


def create_run_folder(path: Path) -> Path:
    """Create the folder of a new run, and its parents; an empty folder that exists will do.

    Raises:
        ValueError: something is there already.
        OSError: it cannot be created or written to; no parent is left behind.
    """
    path = Path(path)
    if "\0" in str(path):
        raise ValueError(f"{show(path)} holds a NUL character: choose another --out")
    created: list[Path] = []
    try:
        if path.is_symlink() and not path.exists():
            raise ValueError(f"{show(path)} is a link that leads nowhere: choose another --out")
        absent = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(absent):
            folder.mkdir()
            created.append(folder)
        _refuse_occupied(path)
        with tempfile.TemporaryFile(dir=path):  # permission bits do not tell of a read-only disk
            pass
    except OSError as error:
        for folder in reversed(created):
            with contextlib.suppress(OSError):
                folder.rmdir()
        message = f"cannot create the run folder {show(path)}: {reason(error)}"
        raise explained(error, f"{message}; choose another --out") from error
    return path


def _refuse_occupied(path: Path) -> None:
    if not path.is_dir():
        raise ValueError(f"{show(path)} is a file, not a folder: choose another --out")
    sweep(path)  # what a process that was killed was about to put in place
    if any(entry.name != _LOCK for entry in path.iterdir()):
        raise ValueError(
            f"{show(path)} exists and is not empty: choose another --out, or continue that run "
            f"with --resume {show(path)}"
        )


def unused_folder(stem: str) -> Path:
    """Return a folder of which nothing is there, in ``runs``, also if another starts just now.

    Its name is ``stem``, the time and the process's id; a second one of the process in the same
    second is numbered.
    """
    first = Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    path, number = first, 1
    while path.exists():
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    return path


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process: a context in which no second run can enter it.

    The kernel frees the lock when the process ends, however it ends. Windows, and file systems
    without ``flock``, give no protection.

    Raises:
        ValueError: another process holds it; the message has its id.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(Path(folder) / _LOCK, flags, 0o644), "r+b") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(_holder(folder, file.read(20))) from error
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


def _holder(folder: Path, content: bytes) -> str:
    pid = int(content) if content.isdigit() else None
    if pid is not None and not is_alive(pid):
        return (
            f"{show(folder)} was in use by process {pid}, whose own child processes are still "
            "ending: try again in a few seconds"
        )
    return (
        f"{show(folder)} is in use by process {pid or 'unknown'}: "
        "wait for it to end, or choose another --out"
    )
