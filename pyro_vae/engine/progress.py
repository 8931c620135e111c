"""The progress bar of a run, and its clock."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

from pyro_vae.engine.callbacks import Progress
from pyro_vae.engine.training import Training
from pyro_vae.inference.quantities import trained_value, validated_value, validation_title
from pyro_vae.terminal import Terminal
from pyro_vae.wording import option

__all__ = ["Bar", "Clock", "TimeLeft"]

_STEADY = 3  # steps after which the first, which is slow, is no measure any more
_SECONDS = 20.0
_LONG = 1800.0


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


class TimeLeft:
    """Says once, after some steps, how long the rest of a long run will take."""

    def __init__(self, num_steps: int, now: Callable[[], float] = time.monotonic) -> None:
        self._left, self._now = num_steps, now
        self._taken, self._start = 0, 0.0
        self._said = False

    def step(self) -> str:
        """Count a step; return a line where it is time to say one, and nothing else."""
        self._left -= 1
        if self._said:
            return ""
        self._taken += 1
        if self._taken == 1:
            self._start = self._now()
            return ""
        seconds = self._now() - self._start
        if self._taken <= _STEADY or seconds < _SECONDS:
            return ""
        self._said = True
        each = seconds / (self._taken - 1)
        if each * self._left < _LONG:
            return ""
        fewer = f"{option('epochs')}, {option('batch_size')} or smaller components"
        return (
            f"a step takes {each:.2g} s: about {_as_hours(each * self._left)} to go, without the "
            f"time to evaluate; {fewer} make it shorter"
        )


def _as_hours(seconds: float) -> str:
    if seconds < 2 * 86_400:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{seconds / 86_400:,.0f} days"


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
        left = TimeLeft(run.epochs * batches - done)
        self.left = left if enabled is not False and not watched else None
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
        if self.left is not None and (line := self.left.step()):
            print(line, file=self.stream, flush=True)

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
        title, unit = validation_title(last)
        validation = f"validation {title} {validated_value(last):.2f} {unit} per datum"
        return f"train {trained_value(last):.2f}, {validation}"
