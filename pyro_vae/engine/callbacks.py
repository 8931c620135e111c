"""What a run shows of itself, and what else is done at its start, steps, epochs and end."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_vae.arguments import shown
from pyro_vae.engine.restoring import own_random_state
from pyro_vae.inference.program import Program

__all__ = ["Callback", "Progress", "Running", "called", "epoch_numbers"]


@dataclass
class Progress:
    """Where a run is: all that is neither weights nor random state."""

    epoch: int = 0
    position: int = 0
    step: int = 0
    seconds: float = 0.0
    waited: int = 0
    best_epoch: int = 0
    best_nats: float = -math.inf
    history: list[dict[str, Any]] = field(default_factory=list)
    start: dict[str, float] = field(default_factory=dict)
    init_from: str | None = None


class Running(Protocol):
    """A run as a callback sees it.

    Attributes:
        program: In training, with its ``model`` and ``guide``.
        progress: Where the run is.
        num_steps: How many steps all epochs have.
        device: Of the program.
        seed: Of the run; replicas differ in it.
        callbacks: All that look on.
    """

    program: Program
    progress: Progress
    num_steps: int
    device: torch.device
    seed: int
    callbacks: Sequence[Callback]


class Callback:
    """Called by ``fit`` at four places of a run; a leaf overrides those that it needs.

    A callback runs beside the recorded step, never in it, so that it is the same with every engine.
    Random numbers that it draws change nothing in the run. It may change weights in place. Its own
    state is in no checkpoint: in a run that is resumed, ``start`` finds ``run.progress.step`` > 0.
    Of several replicas, each calls it with a ``run`` of its own.
    """

    def start(self, run: Running) -> None:
        """Do something before the first step, after the program has met the data.

        Args:
            run: In training.
        """

    def step(self, run: Running, loss: Tensor) -> None:
        """Do something after a step.

        Args:
            run: In training; ``run.progress.step`` steps are taken.
            loss: Of the step, negative and summed over the data plate, on the device. To read it on
                the host lets this wait for the device.
        """

    def epoch(self, run: Running, record: Mapping[str, Any]) -> Mapping[str, float]:
        """Do something after the validation of an epoch; return numbers for its record.

        Args:
            run: In training.
            record: The numbers of the epoch, as in the history of the run.
        """
        return {}

    def end(self, run: Running) -> None:
        """Do something after the last step; the program has the weights that ``fit`` leaves in it.

        Args:
            run: That is finished; one that is broken off does not come here.
        """


def called(place: str, run: Running, *args: Any) -> list[Any]:
    """Call all callbacks of a run at a place; leave the random state as it was.

    Args:
        place: "start", "step", "epoch" or "end".
        run: Whose callbacks they are.
        args: What the method takes besides ``run``.
    """
    if not run.callbacks:
        return []
    with own_random_state(run.device):
        return [getattr(each, place)(run, *args) for each in run.callbacks]


def epoch_numbers(run: Running, record: Mapping[str, Any]) -> dict[str, float]:
    """Return what the callbacks add to an epoch's record.

    Raises:
        TypeError: If one returns something else than numbers by name.
        ValueError: If a name is taken.
    """
    added: dict[str, float] = {}
    found = called("epoch", run, record)
    for each, its in zip(run.callbacks, found, strict=False):
        for name, value in (its or {}).items():
            number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
            if not isinstance(number, numbers.Real):
                raise TypeError(
                    f"{type(each).__name__}.epoch returns {name}={shown(value)}: expected a number"
                )
            if name in record or name in added:
                raise ValueError(
                    f"{type(each).__name__}.epoch returns {name!r}, which the record has already: "
                    "give another name"
                )
            added[name] = float(number)
    return added
