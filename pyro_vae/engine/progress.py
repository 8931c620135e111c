"""What a person at the terminal sees: the bar, and the clock behind it."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from tqdm.auto import tqdm

from pyro_vae.engine.training import Progress, Training
from pyro_vae.terminal import Terminal

__all__ = ["Bar", "Clock"]


class Clock:
    """Counts training time into the run's progress and says when a checkpoint is due."""

    def __init__(self, progress: Progress, checkpoint_seconds: float) -> None:
        self.progress, self.interval = progress, checkpoint_seconds
        self.last = self.saved = time.monotonic()

    def due(self) -> bool:
        """Count the time since the last call; say whether a checkpoint is due."""
        self.stop()
        if self.last - self.saved < self.interval:
            return False
        self.saved = self.last
        return True

    def stop(self) -> None:
        """Count the time since the last call."""
        now = time.monotonic()
        self.progress.seconds += now - self.last
        self.last = now


def _has_room(stream: Any) -> bool:
    """Whether a stream is a terminal in which a bar can be drawn; some say they have no lines."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).lines > 0
    except OSError:
        return False


def _in_notebook() -> bool:
    """Whether a person reads what is written here in a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ in ("ZMQInteractiveShell", "Shell")  # Jupyter's, and Colab's


class Bar:
    """A progress bar on a terminal or in a notebook, a line for every tenth of the run elsewhere.

    Args:
        run: What is shown.
        enabled: None: where a person watches, on a terminal or in a notebook.
    """

    def __init__(self, run: Training, *, enabled: bool | None) -> None:
        self.run = run
        batches = run.batches.num_batches
        done = run.progress.epoch * batches + run.progress.position
        self.stream = Terminal(sys.stderr)
        watched = enabled is not False and (_has_room(self.stream) or _in_notebook())
        self.lines = bool(enabled) and not watched
        numbers: Any = [""]  # where tqdm's own postfix would stand
        self.bar: Any = tqdm(
            total=run.epochs * batches,
            initial=done,
            unit="step",
            file=self.stream,
            disable=not watched,
            mininterval=0.2,
            dynamic_ncols=True,
            bar_format="{desc} |{bar}| {postfix[0]}{elapsed}, {remaining} left",
            postfix=numbers,
        )
        self._describe()

    def step(self) -> None:
        """Show one more step."""
        self.bar.update()

    def epoch(self) -> None:
        """Show the numbers of the epoch that has ended."""
        self._describe()
        epoch, epochs = self.run.progress.epoch, self.run.epochs
        if self.lines and (epoch * 10 // epochs != (epoch - 1) * 10 // epochs):
            print(f"epoch {epoch}/{epochs}: {self._numbers()}", file=self.stream, flush=True)

    def close(self) -> None:
        """Leave the terminal to others."""
        self.bar.close()

    def _describe(self) -> None:
        if not self.bar.disable:
            epoch = min(self.run.progress.epoch + 1, self.run.epochs)
            self.bar.set_description_str(f"epoch {epoch}/{self.run.epochs}", refresh=False)
            numbers = self._numbers()
            self.bar.postfix = [f"{numbers}, " if numbers else ""]

    def _numbers(self) -> str:
        if not self.run.progress.history:
            return ""
        last = self.run.progress.history[-1]
        train, validation = last["train_nats"], last["validation_elbo_nats"]
        return f"train {train:.2f}, validation ELBO {validation:.2f} nats per datum"
