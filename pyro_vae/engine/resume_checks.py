"""Check a resumed run: settings have to match the checkpoint, the environment should."""

from __future__ import annotations

import warnings
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from torch import nn

from pyro_vae.engine.checkpoint import CheckpointError
from pyro_vae.engine.description import source
from pyro_vae.inference.program import Program

__all__ = ["check_program", "check_settings", "described", "environment", "warn_if_other"]

# What a run may change on its way, with a warning: its bits differ from then on.
_LATER = ("corruption", "labelled_share")
MAY_CHANGE = ("epochs", "learning_rates", "schedule", "patience", "clip_norm")


def described(objective: ELBO) -> str:
    """Return an objective's class and all that was said of it."""
    settings = {
        name: value
        for name, value in vars(objective).items()
        if isinstance(value, (int, float, str, tuple, nn.Module)) or is_dataclass(value)
    }
    return f"{type(objective).__name__}({', '.join(f'{n}={v}' for n, v in settings.items())})"


def environment(device: torch.device, engine: str, program: Program) -> dict[str, Any]:
    """Return what the bits of a step depend on beside the settings."""
    return {
        "compiled": engine == "compiled",
        "source": source(program),
        "torch": str(torch.__version__),
        "device": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "products": "bfloat16"
        if torch.is_autocast_enabled(device.type)
        else torch.get_float32_matmul_precision(),
    }


def check_settings(saved: Any, now: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint, at ``path``, of a run with other settings.

    Raises:
        CheckpointError: If a setting differs that makes it another run, or is missing.
    """
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path} does not say of which run it is: start a new run")
    check_program(saved, now["program"], path)
    absent = [name for name in now if name not in saved]
    # Runs of earlier versions do not say that they have none of what came later.
    if missing := [name for name in absent if now[name] is not None or name not in _LATER]:
        raise CheckpointError(
            f"{path} does not say with which {missing[0]} it was trained: start a new run"
        )
    if differing := _differing(saved, _without(now, "program", *MAY_CHANGE)):
        raise CheckpointError(
            f"{path} is of a run with other settings ({differing}): repeat them, or start a new run"
        )


def check_program(saved: Any, now: dict[str, str], path: Path) -> None:
    """Refuse a checkpoint, at ``path``, of a program whose parts have other settings.

    Raises:
        CheckpointError: Names the first part that differs, and how.
    """
    then = saved.get("program") if isinstance(saved, dict) else None
    if not isinstance(then, dict):
        raise CheckpointError(
            f"{path} does not say which program it is of (it is malformed, or was written by an "
            "earlier pyro_vae): start a new run"
        )
    for place in [*now, *then]:
        # Whatever running a program changes is left out, and may be so on one side only.
        is_setting = ":" in place and not (place in now and place in then)
        if is_setting or now.get(place) == then.get(place):
            continue
        where = place.partition(".")[2].replace(":", ".") or "the program"
        before, after = (str(t.get(place, "absent")) for t in (then, now))
        raise CheckpointError(
            f"{path} is of another program ({where} was {before} then, and is {after} now): "
            "build it as it was, or start a new run"
        )


def warn_if_other(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Warn where a run goes on in another environment, or with settings that may change."""
    changed = {name: now["settings"][name] for name in MAY_CHANGE}
    differences = [
        _differing(saved["settings"], changed),
        _differing(saved["environment"], now["environment"]),
    ]
    if differing := "; ".join(filter(None, differences)):
        warnings.warn(f"resuming, but not to the same bits ({differing})", stacklevel=3)


def _without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _differing(saved: dict[str, Any], now: dict[str, Any]) -> str:
    pairs = ((key, saved.get(key), now[key]) for key in now)
    return "; ".join(f"{k}: {then!r} then, {new!r} now" for k, then, new in pairs if then != new)
