"""The training loop, on a page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from pyro_vae.engine.progress import Bar, Clock
from pyro_vae.engine.training import Training
from pyro_vae.signals import Interrupted, Stop

__all__ = ["Runs", "train"]


class Runs(Protocol):
    """What is trained: one ``Training``, or several of them in step."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""

    def stepping(self) -> AbstractContextManager[None]:
        """Take steps without validation."""

    def draws(self) -> Iterator[Any]:
        """Return what each remaining step of this epoch is called with."""

    def step(self, draw: Any) -> None:
        """Take one gradient step."""

    def end_epoch(self) -> None:
        """Validate, and write the record of the epoch."""

    def save(self) -> None:
        """Write a checkpoint."""

    def finish(self) -> None:
        """Write the last state."""

    def goodbye(self) -> str:
        """Say where the run stands when it is interrupted."""


def train(runs: Runs, shown: Training, stop: Stop) -> None:
    """Train until all epochs are done, patience has run out, or a signal comes.

    Args:
        runs: What is trained.
        shown: The run of these whose progress is shown and whose time is counted.
        stop: Knows of signals.

    Raises:
        TrainingError: If a loss is not finite.
        Interrupted: If SIGINT or SIGTERM came; the checkpoint is written.
    """
    bar = Bar(shown, enabled=shown.settings.progress)
    clock = Clock(shown.progress, shown.settings.checkpoint_seconds)
    while not runs.finished:
        with runs.stepping():
            for draw in runs.draws():
                runs.step(draw)
                bar.step()
                stop.heard = stop.signum != 0
                if stop.heard or clock.due():
                    runs.save()
                if stop.heard:
                    bar.close()
                    raise Interrupted(stop.signum, runs.goodbye())
        runs.end_epoch()
        bar.epoch()
    clock.stop()
    runs.finish()
    bar.close()
