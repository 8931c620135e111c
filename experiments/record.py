"""Records of measured results: one JSON file a run, written by the run, with where it ran."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_vae.files import replace_file

__all__ = ["command", "path", "write"]

_FOLDER = Path(__file__).parent / "results"


def path(name: str) -> Path:
    """Return where the record of this name lies; a whole path is its own place."""
    return _FOLDER / f"{name}.json"


def command() -> str:
    """Return the command that is running, quoted as a shell reads it, with FOLDER for folders."""
    words = [_without_folder(word) for word in sys.argv]
    return shlex.join(["python", *words])


def _without_folder(word: str) -> str:
    option, separator, value = word.rpartition("=")
    return (
        f"{option}{separator}FOLDER" if Path(value).is_absolute() and Path(value).is_dir() else word
    )


def write(name: str, record: dict[str, Any]) -> Path:
    """Write ``results/NAME.json``: the record, and hardware, versions and commit."""
    place = path(name)
    place.parent.mkdir(exist_ok=True)
    text = json.dumps({**record, "environment": environment()}, indent=2) + "\n"
    replace_file(place, text.encode())
    return place


def environment() -> dict[str, Any]:
    """Return what the numbers of a record depend on besides the code."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(_FOLDER.parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
