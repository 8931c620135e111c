"""Copy weights at chosen steps of training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pyro_vae.engine.callbacks import Callback, Running
from pyro_vae.inference.program import Program

__all__ = ["Snapshots", "Weights", "steps_of_a_curve"]

_NUM_POINTS = 6


class Weights:
    """All tensors of a program that training changes, buffers included; put back in place.

    Args:
        program: The model and the guide.
        parameters: Those that no module holds; ones that a module does may be among them.
    """

    def __init__(self, program: Program, parameters: Iterable[Tensor] = ()) -> None:
        held = [t for m in program.reachable for t in (*m.parameters(), *m.buffers())]
        self._tensors = list({id(tensor): tensor for tensor in [*held, *parameters]}.values())

    def copy(self) -> list[Tensor]:
        """Return copies of all tensors, for ``load``."""
        return [tensor.detach().clone() for tensor in self._tensors]

    def load(self, saved: list[Tensor]) -> None:
        """Write what ``copy`` returned into the tensors themselves."""
        with torch.no_grad():
            for tensor, value in zip(self._tensors, saved, strict=True):
                tensor.copy_(value)


class Snapshots(Callback):
    """Copies of weights after some of a run's steps.

    Args:
        weights: What is copied.
        wanted: After how many steps.

    Attributes:
        taken: The copies by step.
    """

    def __init__(self, weights: Weights, wanted: Iterable[int] = ()) -> None:
        self._weights, self._wanted = weights, set(wanted)
        self.taken: dict[int, list[Tensor]] = {}

    def step(self, run: Running, loss: Tensor) -> None:
        """Copy the weights, if they are wanted after this step."""
        if run.progress.step in self._wanted:
            self.taken[run.progress.step] = self._weights.copy()


def steps_of_a_curve(num_steps: int) -> set[int]:
    """Return a few steps, closer in the beginning, where curves are steep; the last is one."""
    steps = (round(num_steps * (n / _NUM_POINTS) ** 2) for n in range(1, _NUM_POINTS + 1))
    return {max(1, step) for step in steps}
