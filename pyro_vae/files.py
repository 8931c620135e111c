"""Files that are written whole or not at all, and errors of the disk worded for people.

What is new is written under a temporary name beside its place, synced, and moved there in one step,
so that a process killed at any moment leaves the old content or the new. What it leaves under a
temporary name, the next write in that folder sweeps away.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
import stat
from pathlib import Path

__all__ = [
    "append",
    "as_word",
    "expanded",
    "explained",
    "is_alive",
    "own_folder",
    "reason",
    "remove",
    "replace_file",
    "show",
    "sweep",
    "sync_folder",
    "temporary_for",
    "write",
]

_TEMPORARY = re.compile(r"\.tmp-.*-([0-9]{1,10})")


def replace_file(path: Path, data: bytes) -> None:
    """Replace the file at ``path`` by ``data``; a crash leaves the old content or the new, whole.

    Raises:
        OSError: the disk is full or read-only; the file is as it was.
    """
    path = Path(path)
    temporary = temporary_for(path)
    try:
        sweep(path.parent)
        write(temporary, data)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        remove(temporary)
        message = f"cannot write {show(path)}: {reason(error)}"
        advice = "check that its folder exists, is writable and has space left"
        raise explained(error, f"{message}; {advice}") from error
    except BaseException:
        remove(temporary)
        raise


def own_folder(path: Path) -> Path:
    """Make a folder inside one of ours, or take the one there; never through a link.

    Raises:
        OSError: it is a link, which may lead anywhere, or cannot be made.
    """
    if path.is_symlink():
        raise OSError(
            errno.ELOOP,
            f"{show(path)} is a link, and nothing is written or deleted through one: remove it",
        )
    path.mkdir(exist_ok=True)
    return path


def append(path: Path, data: bytes) -> None:
    """Append to a file of ours; never through a link, nor to a file that has another name, too.

    Raises:
        OSError: it is a link, or the disk is full or read-only.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC"):
        flags |= getattr(os, name, 0)
    with os.fdopen(os.open(path, flags, 0o666), "ab") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise OSError(errno.ELOOP, "it is a link or no regular file: remove it")
        file.write(data)


def expanded(path: Path | str) -> Path:
    """Return a path with a leading ``~`` replaced, as a shell would where it sees one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # of nobody here
        return Path(path)


def as_word(path: Path) -> str:
    """Return a path as a word of a command line, which is no option and needs no more quoting."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith(("-", "~")) else text)


def temporary_for(path: Path) -> Path:
    """Return the path beside ``path`` at which this process writes before it moves into place."""
    return path.with_name(f".tmp-{path.name}-{os.getpid()}")


def write(path: Path, data: bytes) -> None:
    """Write a new file at ``path`` and return once its content is on the disk.

    Raises:
        OSError: the disk is full or read-only, or something is at ``path`` already.
    """
    # Through a file object of Python, a full disk is an OSError with its errno.
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Return once the names in ``folder`` are on the disk; file systems without this are let be.

    Raises:
        OSError: the folder cannot be opened, or the disk failed.
    """
    if os.name != "posix":
        return  # Windows cannot open a folder
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems without it
            raise
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all in it, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def sweep(folder: Path) -> None:
    """Remove from ``folder`` what processes that have ended left half-written.

    Raises:
        OSError: the folder cannot be read.
    """
    for path in folder.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        # One process writes one thing at a time: this one's own leftovers are stale too.
        if match and (int(match[1]) == os.getpid() or not is_alive(int(match[1]))):
            remove(path)


def is_alive(pid: int) -> bool:
    """Say whether a process with this id is running; False on Windows, which does not say."""
    if os.name != "posix":
        return False  # there, signal 0 is Ctrl-C
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


# Messages -----------------------------------------------------------------------------------------


def show(path: Path) -> str:
    """Return ``path`` quoted for a message, on one line."""
    return repr(str(path))  # a name may hold a line break


def reason(error: BaseException) -> str:
    """Return what went wrong, on one line of at most 200 characters and without an errno."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def explained(error: OSError, message: str) -> OSError:
    """Return an error of the same class and ``errno`` that says ``message``."""
    worded = type(error)(message)
    worded.errno = error.errno
    return worded
