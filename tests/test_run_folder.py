"""A run's folder is made or refused in one line, and one process at a time is in it."""

from __future__ import annotations

import errno
import os
import signal

import pytest
from disk import child

from pyro_vae.engine import run_folder
from pyro_vae.engine.checkpoint import load, save
from pyro_vae.engine.run_folder import create_run_folder, lock


def test_a_second_process_is_refused_and_told_whose_the_folder_is(tmp_path):
    pid = os.getpid()

    def action():
        with pytest.raises(ValueError, match=f"in use by process {pid}: wait"), lock(tmp_path):
            pass

    with lock(tmp_path):
        assert child(action) == 0
        with pytest.raises(ValueError, match="in use by process"), lock(tmp_path):
            pass
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(pid)


def test_a_killed_process_leaves_no_lock(tmp_path):
    def action():
        with lock(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    assert child(action) == -signal.SIGKILL
    assert (tmp_path / ".lock").read_text()
    with lock(tmp_path):
        pass


def test_without_flock_there_is_no_protection_and_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "fcntl", None)
    with lock(tmp_path), lock(tmp_path):
        pass


@pytest.mark.parametrize("name", ["new", "a/b/c", "ünï ¢ode 🎲", "two\nlines", "-dash", "existing"])
def test_a_run_folder_is_made(tmp_path, name):
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing" / ".lock").touch()  # of a run that was killed before it wrote anything
    path = create_run_folder(tmp_path / name)
    assert path.is_dir()
    assert load(save(path, {"step": 1}, step=1)) == {"step": 1}


REFUSED = {
    "full": "is not empty: choose another out, or continue",
    "file": "is a file",
    "file/below": "Not a directory",
    "dangling": "leads nowhere",
    "dangling/below": "cannot create",
    "p/q/" + "x" * 300: "File name too long",
    "nul\0": "NUL",
}


@pytest.mark.parametrize(("name", "message"), REFUSED.items(), ids=map(repr, range(len(REFUSED))))
def test_a_run_folder_is_refused_in_one_line(tmp_path, name, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "metrics.jsonl").touch()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError), match=message) as caught:
        create_run_folder(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not str(caught.value).startswith("[Errno")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_read_only_folder_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(run_folder.tempfile, "TemporaryFile", read_only)
    with pytest.raises(OSError, match=r"cannot create the run folder .*Read-only file system"):
        create_run_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_runs_that_start_in_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    """In two processes, and twice in one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder.time, "strftime", lambda form: "20260101-000000")
    found = []
    for process in (11, 12, 12, 12):
        monkeypatch.setattr(run_folder.os, "getpid", lambda process=process: process)
        found.append(create_run_folder(run_folder.unused_folder("digits-VAE")).name)
    assert found == [f"digits-VAE-20260101-000000-{end}" for end in ("11", "12", "12-2", "12-3")]
