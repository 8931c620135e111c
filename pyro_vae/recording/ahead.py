"""Compile a graph ahead of time to a library, and keep it for whoever runs the same graph again.

The library is called from C++, with no Python between its kernels, and loading one takes a few
hundredths of a second where compiling takes many. It holds no weights: these are inputs. It is
code, so it is kept in a folder of the user's own and never in a run's, and is loaded only if nobody
else could have put it there and its content is the one that its name tells.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.files import reason, remove, replace_file, show
from pyro_vae.wording import warn

__all__ = ["CACHE_VARIABLE", "library"]

CACHE_VARIABLE = "PYRO_VAE_CACHE"
_MAX_KEPT = 200
_OPTIONS: dict[str, Any] = {"fallback_random": True}


def library(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[[list[Tensor]], Any]:
    """Return a function that runs a graph on a list of tensors like ``inputs``, on the processor.

    Args:
        graph: Without tensors of its own, and with ``meta["val"]`` of every node.
        inputs: Tensors of the shapes, strides and types that the library is made for.

    Raises:
        Exception: Of any kind, where it cannot be compiled here.
    """
    folder = _own_cache()
    key = _key(graph, inputs)
    found = None if folder is None else _kept(folder, key)
    if found is None:
        found = _built(graph, inputs)
        if folder is not None and not found.with_suffix(".json").exists():
            _keep(found, folder, key)
    return torch._C._aoti.AOTIModelContainerRunnerCpu(str(found), 1).run


def _built(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Path:
    # The import looks for CUDA, and logs it.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    import torch._inductor  # it takes a second

    examples = tuple(tensor.detach() for tensor in inputs)
    return Path(str(torch._inductor.aot_compile(graph, examples, options=_OPTIONS)))


def _key(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> str:
    """Return what tells one library from another: the operations, their inputs, and the machine."""
    facts = [(tuple(t.shape), t.stride(), t.dtype, t.storage_offset()) for t in inputs]
    switches = {name: os.environ[name] for name in sorted(os.environ) if "INDUCTOR" in name}
    about = (
        graph.code, facts, sorted(_OPTIONS.items()), torch.get_num_threads(),
        torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
        torch.__version__, torch.version.git_version, platform.platform(), _processor(), switches,
    )  # fmt: skip
    return hashlib.sha256(repr(about).encode()).hexdigest()


def _processor() -> str:
    """Say what a processor can do, as far as the system tells."""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()}"
    return next((line for line in facts.splitlines() if line.startswith("flags")), facts)


# -------------------------------------------------------------------------------------- the folder


def _own_cache() -> Path | None:
    """Return the folder of this user's libraries; None, with a warning, where there is none."""
    folder = _place()
    if folder is None:
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        warn(f"compiled steps are not kept: {show(folder)} cannot be made ({reason(error)})")
        return None
    ours = os.name != "posix" or (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.getuid()
        and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
    if not ours:
        warn(
            f"compiled steps are not kept, since others could put code into {show(folder)}: name a "
            f"folder of your own in {CACHE_VARIABLE}"
        )
    return folder if ours else None


def _place() -> Path | None:
    named = os.environ.get(CACHE_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro_vae"
    except RuntimeError:  # a user without a home
        return None


def _kept(folder: Path, key: str) -> Path | None:
    """Return the library of this key if its content is what its name says."""
    for path in folder.glob(f"{key}-*.so"):
        if path.is_symlink() or path.name != _name(key, path.read_bytes()):
            remove(path)
        else:
            os.utime(path)
            return path
    return None


def _keep(found: Path, folder: Path, key: str) -> None:
    content = found.read_bytes()
    try:
        replace_file(folder / _name(key, content), content)
    except OSError as error:
        warn(f"a compiled step is not kept: {reason(error)}")
        return
    kept = sorted(folder.glob("*.so"), key=lambda path: path.stat().st_mtime)
    for path in kept[:-_MAX_KEPT]:
        remove(path)


def _name(key: str, content: bytes) -> str:
    return f"{key}-{hashlib.sha256(content).hexdigest()}.so"
