"""Checkpoints: a run's state on disk, written atomically, verified on reading, without pickle.

A checkpoint is a folder ``step-000000123`` of three files: ``tensors.safetensors``, ``state.json``
(everything that is not a tensor) and ``manifest.json`` (format, version, step, and the size and
SHA-256 of the other two and of itself). It is written beside its place and moved there whole, so
that a process killed at any moment leaves either the old checkpoint or the new one. Nothing is
parsed before its hash agrees, and no parser used here can run code. The file of tensors holds a
hash of its contents and of ``state.json`` as well: neither can be exchanged alone, whatever the
manifest says.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pyro_vae.engine.encoding import decode, encode
from pyro_vae.files import (
    explained,
    own_folder,
    reason,
    remove,
    show,
    sweep,
    sync_folder,
    temporary_for,
    write,
)
from pyro_vae.wording import option

__all__ = ["FORMAT_VERSION", "CheckpointError", "latest", "load", "load_latest", "save"]

FORMAT_VERSION = 1

_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_BOND = "contents"
_STEP_FOLDER = re.compile(r"step-([0-9]{9,18})(\.old)?")
_MAX_MANIFEST_BYTES = 65_536


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or trusted; the message is one line."""


# Writing ------------------------------------------------------------------------------------------


def save(folder: Path, state: dict[Any, Any], *, step: int, keep: int = 2) -> Path:
    """Write ``state`` to ``folder/step-<step>`` and return that path.

    ``state`` nests dicts (keys: str or int), lists, tuples, str, int, float, bool, None and strided
    tensors of any shape and device. Subclasses come back as their plain kind (``OrderedDict`` as
    ``dict``), shared storage as copies. All but the ``keep`` highest steps are removed afterwards,
    never the one just written. A checkpoint of the same step is replaced, and at no moment is
    there none.

    Raises:
        CheckpointError: ``state`` holds something else, or is nested too deeply.
        OSError: the disk is full or read-only; earlier checkpoints are as they were.
    """
    if step < 0 or step >= 10**18 or keep < 1:
        raise ValueError(f"step must be in 0..10^18-1 and keep at least 1, got {step=}, {keep=}")
    parts = _serialise(state, step)
    folder = Path(folder)
    target = folder / f"step-{step:09d}"
    temporary = temporary_for(target)
    try:
        own_folder(folder)
        sweep(folder)
        temporary.mkdir()
        for name, data in parts.items():
            write(temporary / name, data)
        sync_folder(temporary)
        _put_in_place(temporary, target)
    except OSError as error:
        remove(temporary)
        raise _unwritable(error, target, sum(map(len, parts.values()))) from error
    except BaseException:
        remove(temporary)
        raise
    _prune(folder, target, keep)
    return target


def _serialise(state: dict[Any, Any], step: int) -> dict[str, bytes]:
    try:
        text, tensors = encode(state)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    try:
        bond = {_BOND: _bond(text, tensors)}
        parts = {_TENSORS: safetensors.torch.save(tensors, metadata=bond)}
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"cannot save a tensor of this type: {error}") from error
    parts[_STATE] = text
    manifest = {
        "format": FORMAT_VERSION,
        "version": _package_version(),
        "step": step,
        "files": {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in parts.items()
        },
    }
    manifest["sha256"] = _own_hash(manifest)
    parts[_MANIFEST] = json.dumps(manifest, indent=1).encode()
    return parts


def _package_version() -> str:
    try:
        return importlib.metadata.version("pyro-vae")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _bond(text: bytes, tensors: dict[str, Tensor]) -> str:
    """Return a hash of ``state.json`` and of all tensors, by name, type, shape and bytes."""
    digest = hashlib.sha256(text)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name}\n{tensor.dtype}{list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _own_hash(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _put_in_place(temporary: Path, target: Path) -> None:
    # A folder cannot be renamed over another: between the two renames, `latest` finds the retired.
    if target.exists():
        retired = target.with_name(f"{target.name}.old")
        _discard(retired)
        target.rename(retired)
    temporary.rename(target)
    sync_folder(target.parent)


def _prune(folder: Path, written: Path, keep: int) -> None:
    if folder.is_symlink():  # it has become one
        return
    steps = _steps(folder)
    kept = {steps[step] for step in sorted(steps)[-keep:]} | {written}
    replaced = {path.with_name(f"{path.name}.old") for path in steps.values()}
    for path in {*steps.values(), *replaced} - kept:
        with contextlib.suppress(OSError):  # the next save tries again
            _discard(path)


def _discard(path: Path) -> None:
    # Removal is not atomic, renaming is: half a checkpoint never bears a checkpoint's name.
    if path.exists():
        temporary = temporary_for(path)
        remove(temporary)
        path.rename(temporary)
        remove(temporary)


# Reading ------------------------------------------------------------------------------------------


def latest(folder: Path) -> Path | None:
    """Return the checkpoint of the highest step in ``folder``, None where there is none.

    By number, never by date. A folder without its manifest is no checkpoint; one that was damaged
    otherwise is returned, so that `load` can say so instead of an older one being taken in silence.
    """
    steps = _steps(Path(folder))
    return steps[max(steps)] if steps else None


def load_latest(folder: Path) -> tuple[Path, dict[Any, Any]] | None:
    """Read the checkpoint of the highest step in ``folder``, while a run may be writing there.

    Returns:
        Its path and its state; None where there is none.

    Raises:
        CheckpointError: as `load` does.
    """
    path = latest(folder)
    while path is not None:
        try:
            return path, load(path)
        except CheckpointError:
            newer = latest(folder)
            if newer == path:
                raise
            path = newer  # the run has put a newer one there, and taken this one away
    return None


def load(path: Path) -> dict[Any, Any]:
    """Read the checkpoint ``path`` and return its state, with all tensors on the CPU.

    Format, size and SHA-256 of every file are verified before any is parsed. Files beyond the three
    of a checkpoint are ignored.

    Raises:
        CheckpointError: no checkpoint, one written by a newer version, or a damaged or hostile one;
            the message says which file, and which earlier checkpoint to fall back on.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{show(path)} is not a checkpoint: there is no such folder")
    contents = _verified(path)
    try:
        tensors = safetensors.torch.load(contents[_TENSORS])
    except Exception as error:  # a damaged file may fail anywhere in the library's Rust code
        raise _damaged(path, f"{_TENSORS} is malformed ({reason(error)})") from error
    try:
        state = decode(contents[_STATE], tensors)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:  # RecursionError is the last
        raise _damaged(path, f"{_STATE} is malformed ({reason(error)})") from error
    if not isinstance(state, dict):
        raise _damaged(path, f"{_STATE} is malformed (it holds a {type(state).__name__})")
    if _stored_bond(contents[_TENSORS]) != _bond(contents[_STATE], tensors):
        raise _damaged(path, f"{_TENSORS} and {_STATE} are not as they were written together")
    return state


def _stored_bond(data: bytes) -> Any:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(_BOND)


def _steps(folder: Path) -> dict[int, Path]:
    """Return the path of each step; a retired one counts only where its successor is missing."""
    steps: dict[int, Path] = {}
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir(), reverse=True):  # "step-1.old" before "step-1"
            match = _STEP_FOLDER.fullmatch(path.name)
            if match and (path / _MANIFEST).is_file():
                steps[int(match[1])] = path
    return steps


def _verified(path: Path) -> dict[str, bytes]:
    files = _manifest(path)["files"]
    if not isinstance(files, dict) or set(files) != {_TENSORS, _STATE}:
        raise _damaged(path, f"{_MANIFEST} does not name {_TENSORS} and {_STATE} alone")
    contents = {}
    for name, entry in files.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("size"), int):
            raise _damaged(path, f"{_MANIFEST} gives no size of {name}")
        data = _read(path, name, size=entry["size"])
        actual, expected = hashlib.sha256(data).hexdigest(), entry.get("sha256")
        if actual != expected:
            raise _damaged(path, f"{name} has the SHA-256 {actual}, expected {_quote(expected)}")
        contents[name] = data
    return contents


def _manifest(path: Path) -> dict[str, Any]:
    data = _read(path, _MANIFEST)
    try:
        manifest = json.loads(data)
        intact = manifest["sha256"] == _own_hash(manifest)
        version, written_by = manifest["format"], _quote(manifest["version"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{_MANIFEST} is malformed ({reason(error)})") from error
    if not intact:
        raise _damaged(path, f"{_MANIFEST} does not have the SHA-256 written in it")
    if type(version) is not int or version < 1 or "files" not in manifest:
        raise _damaged(path, f"{_MANIFEST} is malformed (format {_quote(version)})")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {show(path)} was written by a newer pyro_vae ({written_by}, format "
            f"{version}; this one reads up to {FORMAT_VERSION}): upgrade pyro-vae"
        )
    return manifest


def _read(path: Path, name: str, *, size: int | None = None) -> bytes:
    try:
        with os.fdopen(_open_plainly(path / name), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _damaged(path, f"{name} is not a regular file")
            if size is not None and status.st_size != size:
                raise _damaged(path, f"{name} has {status.st_size} bytes, expected {size}")
            if size is None and status.st_size > _MAX_MANIFEST_BYTES:
                raise _damaged(path, f"{name} has {status.st_size} bytes, too many for a manifest")
            return file.read(status.st_size)
    except FileNotFoundError as error:
        raise _missing(path, name) from error
    except (OSError, MemoryError, OverflowError) as error:
        raise _damaged(path, f"{name} cannot be read ({reason(error)})") from error


def _open_plainly(path: Path) -> int:
    # A link would lead out of the checkpoint, opening a pipe would wait for ever, and Windows
    # would translate line ends.
    names = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")
    return os.open(path, sum((getattr(os, name, 0) for name in names), os.O_RDONLY))


# Messages -----------------------------------------------------------------------------------------


def _quote(value: Any) -> str:
    return repr(value)[:80]


def _unwritable(error: OSError, target: Path, size: int) -> OSError:
    advice = f"make the folder writable, or choose another {option('out')}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(next(p for p in target.parents if p.exists())).free
        advice = f"it needs {size:,} bytes and {free:,} are free; make room, then resume"
    previous = latest(target.parent)
    intact = (
        f"the previous checkpoint {previous.name} is intact" if previous else "none came before"
    )
    return explained(
        error, f"cannot write checkpoint {show(target)}: {reason(error)}; {intact}; {advice}"
    )


def _missing(path: Path, name: str) -> CheckpointError:
    if name != _MANIFEST or _STEP_FOLDER.fullmatch(path.name):
        return _damaged(path, f"{name} is missing")
    inside = latest(path)
    hint = f"; did you mean {show(inside)}?" if inside else ""
    return CheckpointError(f"{show(path)} is not a checkpoint: it holds no {name}{hint}")


def _damaged(path: Path, fault: str) -> CheckpointError:
    match = _STEP_FOLDER.fullmatch(path.name)
    step = int(match[1]) if match else 0
    earlier = {other: where for other, where in _steps(path.parent).items() if other < step}
    mend = "no earlier checkpoint is beside it: start the run again"
    if earlier:
        mend = f"delete {show(path)} to resume from {earlier[max(earlier)].name}"
    return CheckpointError(f"checkpoint {show(path)} is damaged: {fault}; {mend}")
