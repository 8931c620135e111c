"""Runs of ``fit`` in processes of their own, what they leave behind, and forgeries of it."""

from __future__ import annotations

import hashlib
import json
import os
import traceback
from pathlib import Path

from pyro_vae.engine.checkpoint import latest, load

FILES = ("tensors.safetensors", "state.json", "manifest.json")


def child(function) -> int:
    """Fork, run, and return the child's process id; the parent has imported everything."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def final(out: Path):
    state = load(latest(out / "checkpoints"))
    state["progress"].pop("seconds")
    return state, (out / "metrics.jsonl").read_bytes()


def forge(path: Path, *, manifest: dict | None = None, **contents: bytes) -> None:
    """Replace parts of a checkpoint as an attacker would: with hashes that agree."""
    record = json.loads((path / "manifest.json").read_text())
    for name, data in (
        (n, contents[n.split(".")[0]]) for n in FILES if n.split(".")[0] in contents
    ):
        (path / name).write_bytes(data)
        record["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    record.update(manifest or {})
    del record["sha256"]
    canonical = json.dumps(record, sort_keys=True).encode()
    record["sha256"] = hashlib.sha256(canonical).hexdigest()
    (path / "manifest.json").write_text(json.dumps(record))
