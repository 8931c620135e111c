"""A checkpoint is the old state or the new one, to the bit, or a message; never anything else."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import shutil
import struct
import time
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from bits import same
from disk import BEYOND, child, kill, with_fault_at
from quick import some
from runs import FILES, forge

from pyro_vae.engine import checkpoint
from pyro_vae.engine.checkpoint import CheckpointError, latest, load, save


def a_state(value: float = 1.0) -> dict:
    return {
        "weights": {"w": torch.full((5, 3), float(value))},
        "step": int(value),
        7: (value, [None]),
    }


# Writing: killed, interrupted, out of space -------------------------------------------------------


def raises(error: BaseException):
    def fault(_):
        raise error

    return fault


def prepare(folder: Path, before: tuple[int, ...]) -> list[dict]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for step in before:
        save(folder, a_state(step), step=step)
    return [a_state(before[-1])] if before else []


SCENES = {"first": (), "next": (3, 4), "again": (3, 5)}


@pytest.mark.parametrize("scene", some(SCENES, "first", "next"))
def test_killed_at_any_moment_leaves_the_old_state_or_the_new(tmp_path, scene):
    folder, new, before = tmp_path / "run", a_state(99), SCENES[scene]
    seen, status, moment = set(), 137, 0
    while status == 137:
        moment += 1
        old = prepare(folder, before)
        action = partial(save, folder, new, step=5, keep=1)
        status = child(partial(with_fault_at, moment, kill, folder, action))
        found = latest(folder)
        state = load(found) if found else None
        assert state is not None or not before
        assert state is None or any(same(state, known) for known in [*old, new])
        seen.add("new" if same(state, new) else "old")
        save(folder, a_state(6), step=6, keep=1)
        assert os.listdir(folder) == ["step-000000006"]  # the next save clears up  # noqa: PTH208
    assert status == BEYOND
    assert moment > 12
    assert seen == {"old", "new"}


FULL, INTERRUPTED = OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()


@pytest.mark.parametrize(
    ("error", "before"),
    [(FULL, SCENES["first"]), (FULL, SCENES["again"]), (INTERRUPTED, SCENES["next"])],
    ids=["full, first", "full, again", "interrupted, next"],
)
def test_a_failure_at_any_moment_leaves_no_half_checkpoint(tmp_path, error, before):
    folder, new = tmp_path / "run", a_state(99)

    def action():
        try:
            save(folder, new, step=5, keep=2)
        except type(error) as caught:
            os._exit(1 if matches(caught) else 2)

    def matches(caught):
        text = str(caught)
        told = "No space" in text and "bytes and" in text and "\n" not in text
        return isinstance(caught, KeyboardInterrupt) or (told and caught.errno == errno.ENOSPC)

    results: list[int] = []
    while BEYOND not in results:
        old = prepare(folder, before)
        results.append(
            child(partial(with_fault_at, len(results) + 1, raises(error), folder, action))
        )
        state = load(found) if (found := latest(folder)) else None
        assert results[-1] in (0, 1, BEYOND)
        assert (state is None and not before) or any(same(state, s) for s in [*old, new])
        if results[-1] == 1 and not same(state, new):
            assert not list(folder.glob(".tmp-*"))
    assert results.count(1) > 8


@pytest.mark.parametrize("limit", [0, 50, 700])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, limit):
    save(tmp_path, a_state(1), step=1)

    def action():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError, match=r"step-000000002.*step-000000001 is intact") as caught:
            save(tmp_path, {"big": torch.zeros(1000)}, step=2)
        assert caught.value.errno == errno.EFBIG

    assert child(action) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert same(load(tmp_path / "step-000000001"), a_state(1))


def test_everything_is_on_disk_before_it_is_in_place(tmp_path, monkeypatch):
    calls = []
    fsync, rename = os.fsync, os.rename
    where = "/proc/self/fd/{}"
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to name open files")
    monkeypatch.setattr(
        os, "fsync", lambda h: (calls.append(Path(where.format(h)).readlink().name), fsync(h))
    )
    monkeypatch.setattr(os, "rename", lambda a, b: (calls.append(f"-> {b.name}"), rename(a, b)))
    save(tmp_path, a_state(), step=1)
    temporary = f".tmp-step-000000001-{os.getpid()}"
    assert calls == [*FILES, temporary, "-> step-000000001", tmp_path.name]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"cannot write checkpoint '.*file/step-0.*none came before"):
        save(tmp_path / "file", a_state(), step=1)
    assert (tmp_path / "file").read_text() == "mine"


def test_only_the_newest_are_kept_and_never_less_than_what_was_written(tmp_path):
    for step in (1, 20, 3, 100, 1_000_000_000_0):
        save(tmp_path, a_state(step), step=step, keep=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-000000020", "step-000000100", "step-10000000000"]
    written = save(tmp_path, a_state(5), step=5, keep=1)
    assert same(load(written), a_state(5))


@pytest.mark.parametrize("arguments", [{"step": -1}, {"step": 1, "keep": 0}, {"step": 10**18}])
def test_steps_and_counts_are_checked(tmp_path, arguments):
    with pytest.raises(ValueError, match="got step="):
        save(tmp_path, {}, **arguments)


def test_temporary_folders_of_the_living_are_left_alone(tmp_path):
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    for pid in (gone, os.getppid(), os.getpid()):
        (tmp_path / f".tmp-step-000000001-{pid}").mkdir()
    save(tmp_path, a_state(), step=2)
    assert [path.name for path in tmp_path.glob(".tmp*")] == [f".tmp-step-000000001-{os.getppid()}"]


# Reading: order, damage, malice -------------------------------------------------------------------


def test_the_latest_is_the_highest_step_whatever_the_clock_says(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "absent") is None
    for step in (9, 10):
        os.utime(save(tmp_path, a_state(step), step=step), (2_000_000_000 - step * 10**8,) * 2)
    (tmp_path / "step-000000999").mkdir()  # no manifest
    shutil.copytree(tmp_path / "step-000000009", tmp_path / ".tmp-step-000000998-1")
    shutil.copytree(tmp_path / "step-000000009", tmp_path / "step-997")
    assert latest(tmp_path) == tmp_path / "step-000000010"
    (tmp_path / "step-000000010").rename(tmp_path / "step-000000010.old")  # killed while replacing
    assert same(load(latest(tmp_path)), a_state(10))


def test_the_latest_is_read_while_a_run_takes_older_ones_away(tmp_path, monkeypatch):
    save(tmp_path, a_state(1), step=1)
    first = latest(tmp_path)

    def meanwhile(path):
        if path == first and path.exists():
            save(tmp_path, a_state(2), step=2, keep=1)
        return load(path)

    monkeypatch.setattr(checkpoint, "load", meanwhile)
    path, state = checkpoint.load_latest(tmp_path)
    assert path.name == "step-000000002"
    assert same(state, a_state(2))
    assert checkpoint.load_latest(tmp_path / "absent") is None


@pytest.fixture
def pair(tmp_path) -> Path:
    save(tmp_path, a_state(1), step=1)
    return save(tmp_path, a_state(2), step=2)


def is_told(path: Path, name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert name in message
    assert f"delete {str(path)!r} to resume from step-000000001" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found(pair, name):
    path = pair / name
    good = path.read_bytes()
    bits = range(8 * len(good))
    for bit in random.Random(0).sample(bits, 300):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        is_told(pair, name)
    path.write_bytes(good)
    assert same(load(pair), a_state(2))


def test_the_expected_and_the_actual_hash_are_told(pair):
    path = pair / "tensors.safetensors"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    is_told(pair, expected)
    is_told(pair, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_found(pair, name):
    good = (pair / name).read_bytes()
    for length in {len(good) * k // 20 for k in range(20)} | {len(good) - 1}:
        (pair / name).write_bytes(good[:length])
        is_told(pair, name)
    (pair / name).unlink()
    is_told(pair, f"{name} is missing")


def test_what_is_no_checkpoint_is_called_so(tmp_path, pair):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"holds no manifest.json; did you mean '.*002'"):
        load(tmp_path)
    (pair / "notes.txt").write_text("extra files are nobody's business")
    assert same(load(pair), a_state(2))


def test_a_newer_format_says_upgrade(pair):
    forge(pair, manifest={"format": 2, "version": "9.9\n", "files": {"other": 1}})
    with pytest.raises(CheckpointError, match=r"newer pyro_vae \('9\.9\\n', format 2.*upgrade"):
        load(pair)


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(8)


def entry(shape: str, end: int, dtype: str = "F32") -> bytes:
    return f'{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}'.encode()


PICKLE = b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
HOSTILE = {
    "pickle for tensors": {"tensors": PICKLE},
    "pickle for the state": {"state": PICKLE},
    "deep JSON": {"state": b"[" * 200_000 + b"]" * 200_000},
    "deep dicts": {"state": b'{"$tuple":[' * 5000 + b"]}" * 5000},
    "5,000 digits": {"state": b'{"x":' + b"9" * 5000 + b"}"},
    "NaN": {"state": b'{"x":NaN}'},
    "no dict": {"state": b"[]"},
    "not UTF-8": {"state": b'{"x":"\xff\xfe"}'},
    "unknown tag": {"state": b'{"x":{"$class":"os.system"}}'},
    "tag and more": {"state": b'{"x":{"$tuple":[],"y":1}}'},
    "absent tensor": {"state": b'{"x":{"$tensor":"nowhere"}}'},
    "list as a name": {"state": b'{"x":{"$tensor":[]}}'},
    "list as a key": {"state": b'{"x":{"$dict":[[[],1]]}}'},
    "no pairs": {"state": b'{"x":{"$dict":null}}'},
    "float": {"state": b'{"x":{"$float":"1"}}'},
    "huge header": {"tensors": header(b"{}", 2**63)},
    "long header": {"tensors": header(b"{}", 10**8)},
    "huge tensor": {"tensors": header(entry("[1000000000000]", 4 * 10**12))},
    "overflow": {"tensors": header(entry("[4611686018427387904,4]", 8))},
    "unknown type": {"tensors": header(entry("[2]", 8, "F99"))},
    "deep header": {"tensors": header(b'{"a":' * 5000 + b"}" * 5000)},
    "path outside": {"manifest": {"files": {"../step-000000001/state.json": {"size": 1}}}},
    "absolute path": {"manifest": {"files": {"/etc/passwd": {"size": 1}}}},
    "no files": {"manifest": {"files": []}},
    "sizes": {"manifest": {"files": {"tensors.safetensors": 1, "state.json": {"size": 1}}}},
    "format": {"manifest": {"format": "1"}},
    "format as bool": {"manifest": {"format": True}},
}


@pytest.mark.parametrize("parts", HOSTILE.values(), ids=HOSTILE)
def test_hostile_content_is_refused_in_one_line(pair, parts):
    forge(pair, **parts)
    start = time.process_time()
    is_told(pair, "is damaged")
    assert time.process_time() - start < 2


def test_a_file_outside_is_not_even_read(pair):
    outside = pair.parent / "step-000000001" / "state.json"
    data = outside.read_bytes()
    files = json.loads((pair / "manifest.json").read_text())["files"]
    true = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for name in (f"../{outside.parent.name}/state.json", str(outside)):
        forge(pair, manifest={"files": files | {name: true}})
        is_told(pair, "manifest.json does not name")


@pytest.mark.parametrize(
    "manifest",
    [
        b"[" * 60_000,
        b'{"sha256":' + b"9" * 5000 + b"}",
        b"[]",
        b"null",
        b"{}",
        PICKLE,
        bytes(10**6),
    ],
)
def test_a_hostile_manifest_is_refused(pair, manifest):
    (pair / "manifest.json").write_bytes(manifest)
    is_told(pair, "manifest.json")


@pytest.mark.parametrize("name", FILES)
def test_links_and_pipes_are_not_followed(pair, name, tmp_path):
    (pair / name).rename(tmp_path / name)
    (pair / name).symlink_to(tmp_path / name)
    is_told(pair, f"{name} cannot be read")
    (pair / name).unlink()
    os.mkfifo(pair / name)
    is_told(pair, f"{name} is not a regular file")
    (pair / name).unlink()
    (pair / name).mkdir()
    is_told(pair, name)


def test_a_sparse_file_of_terabytes_is_refused(pair, monkeypatch):
    size = 1 << 42
    with (pair / "tensors.safetensors").open("r+b") as file:
        try:
            file.truncate(size)
        except OSError:
            pytest.skip("the file system has no sparse files of this size")
    is_told(pair, f"has {size} bytes")


def test_nothing_is_unpickled(pair, monkeypatch):
    import pickle

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, raises(AssertionError("unpickled")))
    monkeypatch.setattr(torch, "load", raises(AssertionError("torch.load")))
    assert same(load(pair), a_state(2))


def test_other_tools_can_read_the_tensors(pair):
    stored = safetensors.torch.load_file(pair / "tensors.safetensors")
    assert list(stored) == ["/weights/w"]
    assert same(stored["/weights/w"], torch.full((5, 3), 2.0))
