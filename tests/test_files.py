"""A file is its old content or its new one, whatever happens while it is written."""

from __future__ import annotations

import os
from functools import partial

import pytest
from disk import BEYOND, child, kill, with_fault_at

from pyro_vae.files import replace_file


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
