"""Every test starts from one seed and an empty store, and may change no global setting."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import pytest
import torch


def _globals() -> dict[str, Any]:
    return {
        "pyro settings": copy.deepcopy(pyro.settings.get()),
        "default dtype": torch.get_default_dtype(),
        "gradients enabled": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch validation": torch.distributions.Distribution._validate_args,
    }


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
