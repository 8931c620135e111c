"""Seed, keep and load random states, and load the weights of modules: all of it or nothing.

A part that is missing, malformed or of another shape is an error, never passed over in silence.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.engine import schema
from pyro_vae.engine.checkpoint import CheckpointError
from pyro_vae.engine.schema import signature
from pyro_vae.files import reason

__all__ = [
    "RANDOM",
    "check_strictly",
    "cuda_index",
    "load_strictly",
    "own_random_state",
    "random_state",
    "seed_everything",
    "set_random_state",
]


def seed_everything(seed: int) -> None:
    """Seed all global generators that a program may use."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Leave all global generators that a program may use afterwards as they were."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=cuda_index(device)):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def cuda_index(device: torch.device) -> list[int]:
    """Return the CUDA device whose random state a program on a device may use, if there is one."""
    return [device.index or 0] if device.type == "cuda" else []


def random_state() -> dict[str, Any]:
    """Return the state of every global source of random numbers, ready for `checkpoint.save`.

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
    if faults := schema.summary(RANDOM("the random state", state)):
        raise CheckpointError(f"{faults}: resume from another checkpoint")
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
                f"the random state of {name} is malformed ({reason(error)}): "
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


# numpy reads beyond its table where the position is, and numbers are cut to 32 bits in silence.
_WORD = 2**32 - 1
_bytes = schema.tensor_of(torch.uint8, 1)
RANDOM = schema.record(
    {
        "torch": _bytes,
        "cuda": schema.each(_bytes),
        "mps": schema.nullable(_bytes),
        "numpy": schema.listed(
            [
                schema.exactly("MT19937"),
                schema.tensor(torch.zeros(624, dtype=torch.int64), 0, _WORD),
                schema.number(int, 0, 624),
                schema.number(int, 0, 1),
                schema.number(float),
            ]
        ),
        "python": schema.listed(
            [
                schema.exactly(random.getstate()[0]),
                schema.tensor(torch.zeros(625, dtype=torch.int64), 0, _WORD),
                schema.nullable(schema.number(float)),
            ]
        ),
    }
)
_RESTORERS: dict[str, Callable[[Any], None]] = {
    "torch": torch.set_rng_state,
    "cuda": _restore_cuda,
    "mps": _restore_mps,
    "numpy": _restore_numpy,
    "python": _restore_python,
}


def check_strictly(module: torch.nn.Module, state: Any) -> None:
    """Refuse a state of ``module`` unless names, shapes and types agree and values are finite.

    A value that is not finite is accepted where the module's own is not either (a mask of -inf).

    Raises:
        CheckpointError: naming every tensor that is missing, unexpected, of another shape or type,
            or not finite; the module is unchanged.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"the checkpoint holds a {type(state).__name__} for this {type(module).__name__}: "
            "resume from another checkpoint"
        )
    own = module.state_dict()
    both = {name: (own[name], state[name]) for name in own if name in state}
    faults = {
        "missing": [name for name in own if name not in state],
        "unexpected": [str(name) for name in state if name not in own],
        "of another shape or type": [
            f"{name} ({signature(theirs)}, expected {signature(ours)})"
            for name, (ours, theirs) in both.items()
            if signature(ours) != signature(theirs)
        ],
        "not finite": [
            name
            for name, (ours, theirs) in both.items()
            if not _is_finite(theirs) and _is_finite(ours)
        ],
        "negative": [
            name
            for name, (_, theirs) in both.items()
            if name.rpartition(".")[2] in _NOT_NEGATIVE and _is_negative(theirs)
        ],
    }
    if any(faults.values()):
        lists = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)
        raise CheckpointError(
            f"the checkpoint does not fit this {type(module).__name__} - {lists}; "
            "build the model with the options of the run that wrote it"
        )


def load_strictly(module: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load ``state`` into ``module``, if ``check_strictly`` has nothing against it."""
    check_strictly(module, state)
    module.load_state_dict(state)


# Of batch normalisation: a root is taken of one, the other is a count.
_NOT_NEGATIVE = {"running_var", "num_batches_tracked"}


def _is_negative(value: Any) -> bool:
    return isinstance(value, Tensor) and bool((value < 0).any())


def _is_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())
