"""Every test starts from one seed and an empty store, and may change no global setting.

Pictures are drawn where a test asks for them: most of the time of a tiny run goes into them.
"""

from __future__ import annotations

import copy
import gc
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch


def pytest_collection_finish() -> None:
    """Spare collections of garbage what is imported, a million objects that live to the end."""
    gc.collect()
    gc.freeze()


def _globals() -> dict[str, Any]:
    return {
        "pyro settings": copy.deepcopy(pyro.settings.get()),
        "default dtype": torch.get_default_dtype(),
        "gradients enabled": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch validation": torch.distributions.Distribution._validate_args,
    }


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Give what fixtures of modules make the number of threads that tests have."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def compiled_steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep compiled steps for the tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYRO_VAE_CACHE", str(tmp_path_factory.getbasetemp() / "compiled"))
        yield


@pytest.fixture(autouse=True, scope="session")
def unsynced() -> Iterator[None]:
    """Do not wait for the disk: what a process has written outlives it, if not the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: os.fstat(handle) and None)
        yield


@pytest.fixture(autouse=True, scope="session")
def seeds_of_devices_here() -> Iterator[None]:
    """Hand no seed to a device that is absent: torch would note it, with the stack, each time."""
    with pytest.MonkeyPatch.context() as patch:
        for device in (torch.cuda, torch.xpu, torch.mtia):
            if not device.is_available():
                patch.setattr(device, "manual_seed_all", lambda seed: None)
        yield


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    """Seed, clear Pyro's store, and fail the test that leaves a global setting changed."""
    random.seed(0)
    np.random.seed(0)
    pyro.clear_param_store()
    pyro.enable_validation(True)
    pyro.set_rng_seed(0)
    torch.set_num_threads(1)
    before = _globals()
    yield
    after = _globals()
    changed = [name for name in before if before[name] != after[name]]
    torch.set_default_dtype(before["default dtype"])
    pyro.settings.set(**before["pyro settings"])
    pyro.clear_param_store()
    assert not changed, f"the test left changed: {', '.join(changed)}"


def draw_none(run: Any, done: Any, folder: Path) -> list[tuple[str, Path]]:
    """Stand in for the drawing of a run's pictures."""
    return [("left out", folder / "curves.png")]


@pytest.fixture(autouse=True, scope="session")
def drawing() -> Iterator[Any]:
    """Leave the pictures of runs out; return what draws them."""
    if "pyro_vae.cli" not in sys.modules:  # no test of these uses the command line
        yield None
        return
    from pyro_vae.cli import pictures

    original = pictures.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw", draw_none)
        yield original


@pytest.fixture(autouse=True)
def pictures(request: pytest.FixtureRequest, monkeypatch: Any, drawing: Any) -> None:
    """Draw them in a test that is marked with ``pictures``."""
    if request.node.get_closest_marker("pictures") is not None:
        monkeypatch.setattr("pyro_vae.cli.pictures.draw", drawing)
