"""A file is its old content or its new one, whatever happens while it is written."""

from __future__ import annotations

import contextlib
import os
import sys
from functools import partial
from pathlib import Path

import pytest

from pyro_vae.files import replace_file

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

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


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path, status, moment, seen = tmp_path / "a.json", 137, 0, set()
    while status == 137:
        moment += 1
        path.write_bytes(b"old")
        action = partial(replace_file, path, b"the new content")
        status = child(partial(with_fault_at, moment, kill, tmp_path, action))
        seen.add(path.read_bytes())
    assert (status, seen) == (BEYOND, {b"old", b"the new content"})
    replace_file(path, b"")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(OSError, match=r"cannot write '.*a.json/b'"):
        replace_file(path / "b", b"")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(step, tmp_path, monkeypatch):
    target = tmp_path / "a.png"
    target.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full) if step == "fsync" else monkeypatch.setattr(
        "pathlib.Path.replace", full
    )
    with pytest.raises(OSError, match=r"^cannot write '.*a\.png': No space left on device; check"):
        replace_file(target, b"new")
    assert target.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "a.png", b"new")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot write '.*nowhere.a\.png'.*folder exists"):
        replace_file(tmp_path / "nowhere" / "a.png", b"")
