"""A run's state on disk: atomic to write, verified to read, and free of pickle.

A checkpoint is a folder ``step-000000123`` of three files: ``tensors.safetensors``, ``state.json``
(everything that is not a tensor) and ``manifest.json`` (format, version, step, and the size and
SHA-256 of the other two and of itself). It is written beside its place and moved there whole, so
that a process killed at any moment leaves either the old checkpoint or the new one. Nothing is
parsed before its hash agrees, and no parser used here can run code.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import math
import os
import random
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows has none: `lock` then only leaves its process id behind
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "FORMAT_VERSION",
    "CheckpointError",
    "create_run_folder",
    "latest",
    "load",
    "load_strictly",
    "lock",
    "random_state",
    "replace_file",
    "save",
    "set_random_state",
]

FORMAT_VERSION = 1

_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_STEP_FOLDER = re.compile(r"step-([0-9]{9,18})(\.old)?")
_TEMPORARY = re.compile(r"\.tmp-.*-([0-9]{1,10})")
_LOCK = ".lock"
_MAX_DEPTH = 64
_MAX_MANIFEST_BYTES = 65_536
_MAX_INTEGER_BITS = 4096  # Python refuses to print or parse integers of over 4,300 digits


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
    temporary = folder / f".tmp-{target.name}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary.mkdir()
        for name, data in parts.items():
            _write(temporary / name, data)
        _sync_folder(temporary)
        _put_in_place(temporary, target)
    except OSError as error:
        _remove(temporary)
        raise _unwritable(error, target, sum(map(len, parts.values()))) from error
    except BaseException:
        _remove(temporary)
        raise
    _prune(folder, target, keep)
    return target


def replace_file(path: Path, data: bytes) -> None:
    """Replace the file at ``path`` by ``data``; a crash leaves the old content or the new, whole.

    Raises:
        OSError: the disk is full or read-only; the file is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        _sweep(path.parent)
        _write(temporary, data)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        _remove(temporary)
        raise _explained(error, f"cannot write {_show(path)}: {_reason(error)}") from error
    except BaseException:
        _remove(temporary)
        raise


def _serialise(state: dict[Any, Any], step: int) -> dict[str, bytes]:
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "", tensors)
    try:
        parts = {_TENSORS: safetensors.torch.save(tensors)}
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"cannot save a tensor of this type: {error}") from error
    parts[_STATE] = json.dumps(tree, allow_nan=False).encode()
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


def _own_hash(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    # Through a file object of Python, a full disk is an OSError with its errno.
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
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


def _put_in_place(temporary: Path, target: Path) -> None:
    # A folder cannot be renamed over another: between the two renames, `latest` finds the retired.
    if target.exists():
        retired = target.with_name(f"{target.name}.old")
        _discard(retired)
        target.rename(retired)
    temporary.rename(target)
    _sync_folder(target.parent)


def _prune(folder: Path, written: Path, keep: int) -> None:
    steps = _steps(folder)
    kept = {steps[step] for step in sorted(steps)[-keep:]} | {written}
    replaced = {path.with_name(f"{path.name}.old") for path in steps.values()}
    for path in {*steps.values(), *replaced} - kept:
        with contextlib.suppress(OSError):  # the next save tries again
            _discard(path)


def _discard(path: Path) -> None:
    # Removal is not atomic, renaming is: half a checkpoint never bears a checkpoint's name.
    if path.exists():
        temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
        _remove(temporary)
        path.rename(temporary)
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _sweep(folder: Path) -> None:
    for path in folder.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        # One process writes one checkpoint at a time: this one's own leftovers are stale too.
        if match and (int(match[1]) == os.getpid() or not _is_alive(int(match[1]))):
            _remove(path)


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return False  # there, signal 0 is Ctrl-C
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


# Reading ------------------------------------------------------------------------------------------


def latest(folder: Path) -> Path | None:
    """Return the checkpoint of the highest step in ``folder``, None where there is none.

    By number, never by date. A folder without its manifest is no checkpoint; one that was damaged
    otherwise is returned, so that `load` can say so instead of an older one being taken in silence.
    """
    steps = _steps(Path(folder))
    return steps[max(steps)] if steps else None


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
        raise CheckpointError(f"{_show(path)} is not a checkpoint: there is no such folder")
    contents = _verified(path)
    try:
        tensors = safetensors.torch.load(contents[_TENSORS])
    except Exception as error:
        raise _damaged(path, f"{_TENSORS} is malformed ({_reason(error)})") from error
    try:
        state = _decode(json.loads(contents[_STATE], parse_constant=_refuse_constant), tensors)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:  # RecursionError is the last
        raise _damaged(path, f"{_STATE} is malformed ({_reason(error)})") from error
    if not isinstance(state, dict):
        raise _damaged(path, f"{_STATE} is malformed (it holds a {type(state).__name__})")
    return state


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
        raise _damaged(path, f"{_MANIFEST} is malformed ({_reason(error)})") from error
    if not intact:
        raise _damaged(path, f"{_MANIFEST} does not have the SHA-256 written in it")
    if type(version) is not int or version < 1 or "files" not in manifest:
        raise _damaged(path, f"{_MANIFEST} is malformed (format {_quote(version)})")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {_show(path)} was written by a newer pyro_vae ({written_by}, format "
            f"{version}; this one reads up to {FORMAT_VERSION}): pip install --upgrade pyro-vae"
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
        raise _damaged(path, f"{name} cannot be read ({_reason(error)})") from error


def _open_plainly(path: Path) -> int:
    # A link would lead out of the checkpoint, opening a pipe would wait for ever, and Windows
    # would translate line ends.
    names = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")
    return os.open(path, sum((getattr(os, name, 0) for name in names), os.O_RDONLY))


# The tree of a state as JSON ----------------------------------------------------------------------
# What JSON lacks is an object of one key that starts with "$"; dicts that could be mistaken for
# one, or whose keys are not all strings, are such an object themselves.


def _encode(value: Any, where: str, tensors: dict[str, Tensor], depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        raise CheckpointError(f"cannot save the state: nested over {_MAX_DEPTH} deep at {where!r}")
    if isinstance(value, Tensor):
        return _encode_tensor(value, where, tensors)
    if isinstance(value, dict):
        return _encode_dict(value, where, tensors, depth)
    if isinstance(value, (list, tuple)):
        items = [_encode(v, f"{where}/{i}", tensors, depth + 1) for i, v in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(float(value))}
    too_long = _is_too_long(value)
    if too_long or not (value is None or isinstance(value, (str, int, float))):
        what = (
            f"an integer over {_MAX_INTEGER_BITS} bits" if too_long else f"a {type(value).__name__}"
        )
        raise CheckpointError(
            f"cannot save {what} at {where!r} of the state: use dicts, lists, tuples, strings, "
            "numbers, None and tensors"
        )
    return value


def _is_too_long(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS


def _encode_dict(value: dict[Any, Any], where: str, tensors: dict[str, Tensor], depth: int) -> Any:
    wrong = [key for key in value if not isinstance(key, (str, int)) or _is_too_long(key)]
    if wrong:
        raise CheckpointError(
            f"cannot save a key of type {type(wrong[0]).__name__} at {where!r} of the state: "
            f"use strings and integers up to {_MAX_INTEGER_BITS} bits"
        )
    pairs = [(k, _encode(v, f"{where}/{k}", tensors, depth + 1)) for k, v in value.items()]
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return dict(pairs)
    return {"$dict": pairs}


def _encode_tensor(value: Tensor, where: str, tensors: dict[str, Tensor]) -> Any:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise CheckpointError(f"cannot save the tensor at {where!r}: only dense ones with values")
    # Safetensors takes neither shared nor strided memory.
    copy = value.detach().cpu().resolve_conj().resolve_neg()
    copy = copy.clone(memory_format=torch.contiguous_format)
    name = where.encode(errors="replace").decode()
    while name in tensors:
        name += "'"
    is_double_complex = copy.dtype == torch.complex128  # the one type that safetensors lacks
    tensors[name] = torch.view_as_real(copy) if is_double_complex else copy
    return {"$complex" if is_double_complex else "$tensor": name}


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if not any(key.startswith("$") for key in value):
        return {key: _decode(item, tensors) for key, item in value.items()}
    ((tag, content),) = value.items()
    return _DECODERS[tag](content, tensors)


def _decode_pairs(pairs: Any, tensors: dict[str, Tensor]) -> dict[str | int, Any]:
    if not all(isinstance(key, (str, int)) for key, _ in pairs):
        raise TypeError("a key is neither str nor int")
    return {key: _decode(item, tensors) for key, item in pairs}


_DECODERS: dict[str, Callable[[Any, dict[str, Tensor]], Any]] = {
    "$dict": _decode_pairs,
    "$tuple": lambda items, tensors: tuple(_decode(item, tensors) for item in items),
    "$float": lambda text, _: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text],
    "$tensor": lambda name, tensors: tensors[name].clone(),
    "$complex": lambda name, tensors: torch.view_as_complex(tensors[name].clone()),
}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# What is restored from a state --------------------------------------------------------------------


def random_state() -> dict[str, Any]:
    """Return the state of every global source of random numbers, ready for `save`.

    torch on the CPU, each CUDA device once CUDA has been used, MPS, numpy and Python.
    """
    algorithm, keys, position, has_gauss, gauss = np.random.get_state()
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "numpy": [
            str(algorithm),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, torch.tensor(words), gauss_next],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned; sources of devices that are absent here are warned of.

    Raises:
        CheckpointError: a part is missing or malformed; nothing has been changed.
    """
    missing = [name for name in _RESTORERS if name not in state]
    if missing:
        raise CheckpointError(
            f"the random state lacks {', '.join(missing)}: "
            "training cannot go on to the same bits; resume from another checkpoint"
        )
    before = random_state()
    for name, restore in _RESTORERS.items():
        try:
            restore(state[name])
        except (
            TypeError,
            ValueError,
            RuntimeError,
            OverflowError,
            LookupError,
            AttributeError,
        ) as error:
            for other, undo in _RESTORERS.items():
                undo(before[other])
            raise CheckpointError(
                f"the random state of {name} is malformed ({_reason(error)}): "
                "resume from another checkpoint"
            ) from error


def _restore_cuda(states: list[Tensor]) -> None:
    num_devices = torch.cuda.device_count()
    for device, state in enumerate(states[:num_devices]):
        torch.cuda.set_rng_state(state, device)
    if len(states) > num_devices:
        _warn_absent(f"{len(states)} CUDA devices, this machine has {num_devices}")


def _restore_mps(state: Tensor | None) -> None:
    if state is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state)
    elif state is not None:
        _warn_absent("an MPS device, this machine has none")


def _restore_numpy(state: list[Any]) -> None:
    algorithm, keys, *rest = state
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *rest))


def _restore_python(state: list[Any]) -> None:
    version, words, gauss_next = state
    random.setstate((version, tuple(words.tolist()), gauss_next))


def _warn_absent(what: str) -> None:
    warnings.warn(
        f"the checkpoint was written with {what}: the run goes on, but not to the same bits",
        stacklevel=4,
    )


_RESTORERS: dict[str, Callable[[Any], None]] = {
    "torch": torch.set_rng_state,
    "cuda": _restore_cuda,
    "mps": _restore_mps,
    "numpy": _restore_numpy,
    "python": _restore_python,
}


def load_strictly(module: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load ``state`` into ``module`` if names, shapes and types all agree and values are finite.

    A value that is not finite is accepted where the module's own is not either (a mask of -inf).

    Raises:
        CheckpointError: naming every tensor that is missing, unexpected, of another shape or type,
            or not finite; the module is unchanged.
    """
    own = module.state_dict()
    both = {name: (own[name], state[name]) for name in own if name in state}
    faults = {
        "missing": [name for name in own if name not in state],
        "unexpected": [str(name) for name in state if name not in own],
        "of another shape or type": [
            f"{name} ({_signature(theirs)}, expected {_signature(ours)})"
            for name, (ours, theirs) in both.items()
            if _signature(ours) != _signature(theirs)
        ],
        "not finite": [
            name
            for name, (ours, theirs) in both.items()
            if not _is_finite(theirs) and _is_finite(ours)
        ],
    }
    if any(faults.values()):
        lists = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)
        raise CheckpointError(
            f"the checkpoint does not fit this {type(module).__name__} - {lists}; "
            "build the model with the options of the run that wrote it"
        )
    module.load_state_dict(state)


def _signature(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _is_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())


# The folder of a run ------------------------------------------------------------------------------


def create_run_folder(path: Path) -> Path:
    """Create the folder of a new run, and its parents; an empty folder that exists will do.

    Raises:
        ValueError: something is there already.
        OSError: it cannot be created or written to; no parent is left behind.
    """
    path = Path(path)
    if "\0" in str(path):
        raise ValueError(f"{_show(path)} holds a NUL character: choose another --out")
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{_show(path)} is a link that leads nowhere: choose another --out")
    created: list[Path] = []
    try:
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
        message = f"cannot create the run folder {_show(path)}: {_reason(error)}"
        raise _explained(error, f"{message}; choose another --out") from error
    return path


def _refuse_occupied(path: Path) -> None:
    if not path.is_dir():
        raise ValueError(f"{_show(path)} is a file, not a folder: choose another --out")
    if any(entry.name != _LOCK for entry in path.iterdir()):
        raise ValueError(
            f"{_show(path)} exists and is not empty: choose another --out, or continue that run "
            f"with --resume {_show(path)}"
        )


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
    if pid is not None and not _is_alive(pid):
        return (
            f"{_show(folder)} was in use by process {pid}, whose own child processes are still "
            "ending: try again in a few seconds"
        )
    return (
        f"{_show(folder)} is in use by process {pid or 'unknown'}: "
        "wait for it to end, or choose another --out"
    )


# Messages -----------------------------------------------------------------------------------------


def _show(path: Path) -> str:
    return repr(str(path))  # a name may hold a line break


def _quote(value: Any) -> str:
    return repr(value)[:80]


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def _explained(error: OSError, message: str) -> OSError:
    explained = type(error)(message)
    explained.errno = error.errno
    return explained


def _unwritable(error: OSError, target: Path, size: int) -> OSError:
    advice = "make the folder writable, or choose another --out"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(next(p for p in target.parents if p.exists())).free
        advice = f"it needs {size:,} bytes and {free:,} are free; make room, then use --resume"
    previous = latest(target.parent)
    intact = (
        f"the previous checkpoint {previous.name} is intact" if previous else "none came before"
    )
    return _explained(
        error, f"cannot write checkpoint {_show(target)}: {_reason(error)}; {intact}; {advice}"
    )


def _missing(path: Path, name: str) -> CheckpointError:
    if name != _MANIFEST or _STEP_FOLDER.fullmatch(path.name):
        return _damaged(path, f"{name} is missing")
    inside = latest(path)
    hint = f"; did you mean {_show(inside)}?" if inside else ""
    return CheckpointError(f"{_show(path)} is not a checkpoint: it holds no {name}{hint}")


def _damaged(path: Path, reason: str) -> CheckpointError:
    match = _STEP_FOLDER.fullmatch(path.name)
    step = int(match[1]) if match else 0
    earlier = {other: where for other, where in _steps(path.parent).items() if other < step}
    mend = "no earlier checkpoint is beside it: start the run again"
    if earlier:
        mend = f"delete {_show(path)} to resume from {earlier[max(earlier)].name}"
    return CheckpointError(f"checkpoint {_show(path)} is damaged: {reason}; {mend}")
