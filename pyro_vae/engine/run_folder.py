"""Create a run's folder, and lock it for one process."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from pyro_vae.files import explained, is_alive, reason, remove, show, sweep
from pyro_vae.wording import option

try:
    import fcntl
except ImportError:  # Windows has none: `lock` then only leaves its process id behind
    fcntl = None  # type: ignore[assignment]

__all__ = ["create_run_folder", "held", "lock", "new_run_folder", "unused_folder"]

_LOCK = ".lock"
# What a run writes into its folder.
_OWN = (
    _LOCK, "config.yaml", "metrics.jsonl", "data", "results.json", "report.html", "pictures",
    "checkpoints", "tensorboard", "replica-*", "comparison.*", "rate_distortion.png", "refit.json",
    "finetune.json", ".tmp-*",
)  # fmt: skip
_held: ContextVar[frozenset[Path]] = ContextVar("folders held", default=frozenset())


def create_run_folder(path: Path) -> Path:
    """Create the folder of a new run, and its parents; an empty folder that exists will do.

    Raises:
        ValueError: something is there already.
        OSError: it cannot be created or written to; no parent is left behind.
    """
    path = Path(path)
    if "\0" in str(path):
        raise ValueError(f"{show(path)} holds a NUL character: choose another {option('out')}")
    created: list[Path] = []
    try:
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"{show(path)} is a link that leads nowhere: choose another {option('out')}"
            )
        absent = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(absent):
            with contextlib.suppress(FileExistsError):  # another process creates it just now
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
        raise explained(error, f"{message}; choose another {option('out')}") from error
    return path


def _refuse_occupied(path: Path) -> None:
    if not path.is_dir():
        raise ValueError(f"{show(path)} is a file, not a folder: choose another {option('out')}")
    sweep(path)  # what a process that was killed was about to put in place
    if any(entry.name != _LOCK for entry in path.iterdir()):
        raise ValueError(
            f"{show(path)} exists and is not empty: choose another {option('out')}, or continue "
            f"that run with {option('resume', show(path), python='resume=True')}"
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
def new_run_folder(
    path: Path, *, kept_on: tuple[type[BaseException], ...] = (KeyboardInterrupt,)
) -> Iterator[Path]:
    """Create the folder of a new run and hold it: a context, which gives the folder.

    A run that fails takes away what it has made, unless it is worth going on with: it has a
    checkpoint, or stopped on request. Files of others are left alone.

    Args:
        path: The folder.
        kept_on: Exceptions after which it can be gone on with.

    Raises:
        ValueError: something is there already, or another process holds it.
        OSError: it cannot be created or written to.
    """
    absent = [folder for folder in (path, *path.parents) if not _exists(folder)]
    create_run_folder(path)
    is_empty = False
    try:
        with held(path):
            _refuse_occupied(path)  # another run may have come and gone
            try:
                yield path
            except BaseException as error:
                worth = isinstance(error, kept_on) or _has_checkpoint(path)
                is_empty = not worth and _without_own_files(path)
                raise
    finally:
        if is_empty:
            with contextlib.suppress(OSError):
                for folder in absent:
                    folder.rmdir()


def _has_checkpoint(path: Path) -> bool:
    return any(any(path.glob(f"{at}checkpoints/step-*")) for at in ("", "replica-*/"))


def _without_own_files(path: Path) -> bool:
    """Remove what a run writes from its folder; say whether nothing is left."""
    for entry in path.iterdir():
        if any(fnmatch.fnmatchcase(entry.name, name) for name in _OWN):
            remove(entry)
    return not any(path.iterdir())


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no path at all: `create_run_folder` says so
        return False


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder as ``lock`` does, and let what is called in this context hold it with it."""
    with lock(folder):
        token = _held.set(_held.get() | {folder.resolve()})
        try:
            yield
        finally:
            _held.reset(token)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process: a context in which no second run can enter it.

    The kernel frees the lock when the process ends, however it ends. Windows, and file systems
    without ``flock``, give no protection.

    Raises:
        ValueError: another process holds it; the message has its id.
        OSError: its lock is a link, or cannot be written.
    """
    if Path(folder).resolve() in _held.get():
        yield
        return
    with os.fdopen(_opened(Path(folder) / _LOCK), "r+b") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(_holder(folder, file.read(20))) from error
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
        if os.fstat(file.fileno()).st_nlink == 0:  # its holder has taken the folder away
            raise ValueError(f"{show(folder)} has just been removed: try again")
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


def _opened(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            message = f"cannot hold {show(path)}: {reason(error)}"
            cure = "make the folder writable, or copy it to where you may write"
            raise explained(error, f"{message}; {cure}") from error
        raise explained(
            error, f"{show(path)} is a link, which is not followed: remove it"
        ) from error
    status = os.fstat(handle)
    if status.st_nlink > 1 or not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise OSError(errno.ELOOP, f"{show(path)} is a link or no file of ours: remove it")
    return handle


def _holder(folder: Path, content: bytes) -> str:
    pid = int(content) if content.isdigit() else None
    if pid is not None and not is_alive(pid):
        return (
            f"{show(folder)} was in use by process {pid}, whose own child processes are still "
            "ending: try again in a few seconds"
        )
    return (
        f"{show(folder)} is in use by process {pid or 'unknown'}: "
        f"wait for it to end, or choose another {option('out')}"
    )
