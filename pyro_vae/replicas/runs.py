"""Train several runs of one program side by side: other seeds, or other values of tensors.

Each replica is a run of its own, with its own program, random state, batches, history and folder,
and comes out as if it had been trained alone, up to rounding. Only the gradient steps are taken
together, as one graph, where that can be done; see ``joint``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.engine import checkpoint
from pyro_vae.engine.given import Given
from pyro_vae.engine.restoring import seed_everything
from pyro_vae.engine.settings import Settings
from pyro_vae.engine.training import Training, TrainingError
from pyro_vae.files import own_folder, remove, show
from pyro_vae.recording.recorder import NotRecordable
from pyro_vae.recording.replaying import EAGER_CALLS
from pyro_vae.replicas.joint import JointStep
from pyro_vae.replicas.noise import RandomState
from pyro_vae.replicas.replication import check_apart, check_structure
from pyro_vae.wording import warn

__all__ = ["Replicas", "folders"]


class Replicas:
    """Runs that make the same number of steps, each under its own random state.

    Args:
        start: Builds the run of a program from it and its settings.
        given: The programs.
        settings: Of the first; the others take the seeds that follow, and each has a folder in
            its folder.

    Raises:
        ValueError: If the programs differ in structure, share a parameter or do not fit in memory.
    """

    def __init__(
        self,
        start: Callable[[Given, Settings], Training],
        given: Sequence[Given],
        settings: Settings,
    ) -> None:
        self.given, self._out, self._engine = given, settings.out, settings.engine
        self._together: JointStep | None = None
        self._gave_up = settings.engine == "eager"
        self.runs: list[Training] = []
        self._states: list[RandomState] = []
        with self._within_memory():
            for number, (each, folder) in enumerate(
                zip(given, folders(settings.out, len(given)), strict=True)
            ):
                own = replace(
                    settings, objective=each.objective, seed=settings.seed + number, out=folder,
                    turns=copy.deepcopy(settings.turns),
                )  # fmt: skip
                seed_everything(own.seed)
                self.runs.append(start(each, own))
                self._states.append(RandomState(self.first.device))
                _share_rows(self.runs[0], self.runs[-1])
        for number, run in enumerate(self.runs):
            check_structure(self.runs[0], run, number)
        check_apart(self.runs)
        self._active = list(range(len(self.runs)))
        self._done: list[int] = []
        self._pause()
        self._part_with_finished()

    @property
    def first(self) -> Training:
        """The run of the first replica."""
        return self.runs[0]

    @property
    def finished(self) -> bool:
        """Whether no replica has anything left to train."""
        return not self._active

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Take steps without validation; of what keeps them apart, only one warning is left."""
        with self.first.stepping(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_RUNNING_EAGERLY)
            yield

    def draws(self) -> Iterator[tuple[tuple[Tensor, ...], ...]]:
        """Return which rows the remaining batches of this epoch consist of, for each replica."""
        return zip(*(self.runs[number].draws() for number in self._active), strict=True)

    def step(self, draws: Sequence[tuple[Tensor, ...]]) -> None:
        """Take one gradient step for each replica that is not finished."""
        runs = [self.runs[number] for number in self._active]
        for run in runs:
            run.before_step()
        losses = self._jointly(runs, draws) or [
            self._update(number, draw) for number, draw in zip(self._active, draws, strict=True)
        ]
        for run, loss, draw in zip(runs, losses, draws, strict=True):
            run.after_step(loss, len(draw[0]))

    def end_epoch(self) -> None:
        """Validate each replica; let those go that have run out of patience or epochs."""
        for number in self._active:
            with self._alone(number) as run:
                run.end_epoch()
        gone = self._part_with_finished()
        if self._active:  # what is saved now is not trained again after a resumption
            self._finish(gone)

    def save(self) -> None:
        """Write a checkpoint of each replica in training, if all losses were finite."""
        for number in self._active:
            with self._alone(number) as run:
                run.look()
        self._settle()
        for number in self._active:
            with self._alone(number) as run:
                run.save()

    def restore(self) -> None:
        """Take up the newest state that all replicas in training have reached.

        Raises:
            ValueError: If there is no folder, or one replica has no checkpoint, but others have.
        """
        if self._out is not None:
            _undo_half_a_first_save(self.runs)
        for number in self._active:
            with self._alone(number) as run:
                run.restore()
        in_training = [run for run in self.runs if not _ended_early(run)]
        slowest = min((run.progress.step for run in in_training), default=0)
        for number, run in enumerate(self.runs):
            if in_training and run.progress.step > slowest:
                with self._alone(number):
                    _go_back(run, slowest)
        self._part_with_finished()

    def begin(self) -> None:
        """Initialise each program from the training data."""
        for number in self._active:
            with self._alone(number) as run:
                run.begin()

    def finish(self) -> None:
        """Write the last states."""
        self.close()
        self._finish(list(range(len(self.runs))))

    def close(self) -> None:
        """Give each program memory of its own again."""
        if self._together is not None:
            self._together.separate()
            self._together = None

    def goodbye(self) -> str:
        """Say where interrupted runs stand."""
        state = self.runs[self._active[0]].progress
        where = f"{len(self.runs)} replicas stopped in epoch {state.epoch + 1} at step {state.step}"
        if self._out is None:
            return where
        return f"{where}; go on with the same call of fit and resume=True"

    def _jointly(
        self, runs: Sequence[Training], draws: Sequence[tuple[Tensor, ...]]
    ) -> list[Tensor] | None:
        waits = EAGER_CALLS if self._engine == "auto" else 1
        if self._gave_up or len(runs) < 2 or runs[0].gradient_step.num_updates < waits:
            return None
        try:
            with self._within_memory():
                if self._together is None:
                    self._together = JointStep(
                        [run.gradient_step for run in runs],
                        [self._states[number] for number in self._active],
                        self._engine,
                        runs[0].num_steps,
                    )
                return self._together(draws)
        except NotRecordable as why:
            self.close()
            self._gave_up = True
            self._pause()
            if self._engine != "auto":
                warn(f"the replicas are trained one after the other, since {why}")
            return None

    def _update(self, number: int, draw: tuple[Tensor, ...]) -> Any:
        with self._states[number].taken_up():
            return self.runs[number].gradient_step.update(*draw)

    def _pause(self) -> None:
        # Its own recording would only serve the steps that are not taken together.
        together = len(self._active) > 1 and not self._gave_up
        for run in self.runs:
            run.gradient_step.paused = together

    def _part_with_finished(self) -> list[int]:
        gone = [number for number in self._active if self.runs[number].finished]
        if gone:
            self.close()
            self._active = [number for number in self._active if number not in gone]
            self._pause()
        return gone

    def _finish(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if number not in self._done:
                with self._alone(number) as run:
                    run.finish()
                self._done.append(number)

    def _settle(self) -> None:
        if self._together is not None:
            self._together.settle()

    @contextmanager
    def _alone(self, number: int) -> Iterator[Training]:
        """Let one run go on under its own random state; its errors say whose they are."""
        run = self.runs[number]
        run.progress.seconds = self.first.progress.seconds
        with self._states[number].taken_up(), warnings.catch_warnings():
            if number > 0 or self._gave_up:  # one warning says it for all
                warnings.filterwarnings("ignore", message=_RUNNING_EAGERLY)
            try:
                yield run
            except TrainingError as error:
                raise TrainingError(f"replica {number}: {error}") from error

    @contextmanager
    def _within_memory(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            full = isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
            if not full or not self.runs:
                raise
            each = _num_bytes(self.first) / 2**20
            raise ValueError(
                f"num_replicas={len(self.given)} do not fit in the memory of {self.first.device}: "
                f"each takes {each:.1f} MiB of weights, gradients and optimiser state, and that of "
                "its activations; lower num_replicas or batch_size"
            ) from error


_RUNNING_EAGERLY = "running eagerly, since"


def folders(out: Path | None, num_replicas: int) -> list[Path | None]:
    """Return the folder of each replica, made where it is missing."""
    if out is None:
        return [out] * num_replicas
    found = [out / f"replica-{number}" for number in range(num_replicas)]
    for folder in found:
        own_folder(folder)
    return [*found]


def _share_rows(first: Training, run: Training) -> None:
    """Let runs on the same data keep one copy of them on the device."""
    if run is not first and run.program.fields == first.program.fields:
        run.batches.share(first.batches)
        run.validate.rows = first.validate.rows


def _num_bytes(run: Training) -> int:
    parameters = list(run.gradient_step.parameters.values())
    states = (
        run.gradient_step.optimizer.state.values()
        if run.gradient_step.optimizer is not None
        else ()
    )
    held = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in [*parameters, *parameters, *held])


def _newest(run: Training) -> Path | None:
    return None if run.out is None else checkpoint.latest(run.out / "checkpoints")


def _ended_early(run: Training) -> bool:
    return run.finished and run.progress.epoch < run.epochs


def _undo_half_a_first_save(runs: Sequence[Training]) -> None:
    """Let all start again where the process was killed while it wrote the first checkpoints."""
    missing = [run for run in runs if _newest(run) is None]
    if not missing:
        return
    for run in runs:
        newest = _newest(run)
        if newest is None or run.out is None:
            continue
        if len(list(newest.parent.glob("step-*"))) > 1:
            raise ValueError(
                f"{show(missing[0].out or newest)} has no checkpoint, but {show(run.out)} has "
                "several: resume with as many replicas as before"
            )
        remove(newest)


def _go_back(run: Training, step: int) -> None:
    """Take up an earlier checkpoint, as the process was killed while it wrote the newest ones."""
    newest = _newest(run)
    assert newest is not None
    earlier = [path for path in newest.parent.glob(f"step-{step:09d}*") if path != newest]
    if not earlier:
        raise checkpoint.CheckpointError(
            f"{show(newest.parent)} has no checkpoint of step {step}, where another replica "
            "stands: copy one there, or start a new run"
        )
    remove(newest)
    run.restore()
