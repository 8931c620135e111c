"""What a run that goes on has to share with the one that stopped, and what it had better share."""

from __future__ import annotations

import warnings
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from torch import nn

from pyro_vae.engine.checkpoint import CheckpointError

__all__ = ["check_settings", "described", "environment", "warn_if_other"]


def described(objective: ELBO) -> str:
    """Return an objective's class and all that was said of it."""
    told = {
        name: value
        for name, value in vars(objective).items()
        if isinstance(value, (int, float, str, tuple, nn.Module)) or is_dataclass(value)
    }
    return f"{type(objective).__name__}({', '.join(f'{n}={v}' for n, v in told.items())})"


def environment(device: torch.device, engine: str) -> dict[str, Any]:
    """Return what the bits of a step depend on beside the settings."""
    return {
        "compiled": engine == "compiled",
        "torch": torch.__version__,
        "device": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "products": "bfloat16"
        if torch.is_autocast_enabled(device.type)
        else torch.get_float32_matmul_precision(),
    }


def check_settings(saved: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint, at ``path``, of a run that was told something else."""
    if differing := _differing(saved, now):
        raise CheckpointError(
            f"{path} is of a run with other settings ({differing}): repeat them, or start a new run"
        )


def warn_if_other(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Warn where a run goes on in another environment."""
    if differing := _differing(saved, now):
        warnings.warn(f"resuming, but not to the same bits ({differing})", stacklevel=3)


def _differing(saved: dict[str, Any], now: dict[str, Any]) -> str:
    pairs = ((key, saved.get(key), now[key]) for key in now)
    return "; ".join(f"{k}: {then!r} then, {new!r} now" for k, then, new in pairs if then != new)
