"""The parts of a training run, its stages, and the state that a resumed run starts from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.datasets import Dataset
from pyro_vae.engine import checkpoint, metrics, restoring
from pyro_vae.engine.agreement import Steps, check_progress, check_state
from pyro_vae.engine.callbacks import Progress, called, epoch_numbers
from pyro_vae.engine.failure import why_gradient, why_loss
from pyro_vae.engine.preparation import Prepared
from pyro_vae.engine.resume_checks import check_settings, environment, warn_if_other
from pyro_vae.engine.settings import Settings
from pyro_vae.engine.validation import Validation
from pyro_vae.engine.weights import cloned, put_weights, refuse_foreign, weights_of
from pyro_vae.files import as_word, show
from pyro_vae.inference.program import Program
from pyro_vae.wording import command, option

__all__ = [
    "Training",
    "TrainingError",
]


class TrainingError(ValueError):
    """Training met a number that is not finite; the last good checkpoint is kept."""


class Training:
    """A run of one program: its parts and its state; each method is one stage of the loop.

    Args:
        program: The model and the guide.
        data: To be trained and validated on.
        settings: Of the run.
    """

    def __init__(self, program: Program, data: Dataset, settings: Settings) -> None:
        self.settings = settings
        self.epochs, self.seed, self.out = settings.epochs, settings.seed, settings.out
        self.turns, self.callbacks = settings.turns, settings.callbacks
        prepared = Prepared(program, data, settings)
        self._take_parts(prepared)
        self.validate = Validation(
            prepared.probe, prepared.objective, prepared.validation,
            seed=self.seed + 2, engine=settings.engine, num_epochs=self.epochs,
        )  # fmt: skip
        self.progress = Progress()
        self.first_step = 0
        self.train_nats = metrics.Mean()
        self.best: dict[str, Any] | None = None
        out = self.out
        self.metrics = None if out is None else metrics.MetricsFile(out / "metrics.jsonl")
        board = out is not None and settings.log_tensorboard
        self.board = metrics.tensorboard(out / "tensorboard") if out and board else None

    def _take_parts(self, prepared: Prepared) -> None:
        self._prepared: Prepared | None = prepared
        self.program, self.device, self.layout = prepared.program, prepared.device, prepared.layout
        self.batches, self.gradient_step = prepared.batches, prepared.step
        self.moving, self.beside = prepared.moving, prepared.beside
        self.num_steps = max(1, prepared.num_steps)
        self.largest_product, self.shared = prepared.largest_product, prepared.shared
        self._unbounded = prepared.unbounded
        self.rates = self.shared["learning_rates"]

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What the bits of a step depend on beside the settings, from the first step on."""
        return environment(self.device, self.settings.engine, self.program)

    def begin(self) -> None:
        """Initialise the program from the data and validate it, unless it goes on from a state."""
        assert self._prepared is not None
        if not self.progress.start:
            self._prepared.initialise_from_data()
            self.progress.start = self.validate()
        self._prepared = None
        called("start", self)

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        assert self.gradient_step.optimizer is not None
        return self.gradient_step.optimizer

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or patience has run out."""
        patience = self.settings.patience
        stopped = patience is not None and self.progress.waited >= patience
        return self.progress.epoch >= self.epochs or stopped

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Take steps without validation, whose errors ``look`` finds."""
        with pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Encountered NaN")
            yield

    def draws(self) -> Iterator[tuple[Tensor, ...]]:
        """Return which rows the remaining batches of this epoch consist of."""
        return self.batches.draws(self.progress.epoch, start=self.progress.position)

    def step(self, draw: tuple[Tensor, ...]) -> None:
        """Take one gradient step, unless a loss was not finite; ``look`` finds out."""
        self.before_step()
        self.after_step(self.gradient_step.update(*draw), len(draw[0]))

    def before_step(self) -> None:
        """Set what depends on how far the run is."""
        done = self.progress.step / self.num_steps
        for number in self.moving:
            number.advance(done)
        factor = self.settings.schedule(done)
        for group, rate in zip(self._optimizer.param_groups, self.rates, strict=False):
            group["lr"] = rate * factor

    def after_step(self, loss: Any, num_rows: int) -> None:
        """Take note of a step and of its loss, which stays on the device."""
        state = self.progress
        value = loss[0] if isinstance(loss, tuple) else loss
        self.train_nats.add(-value / (self.layout.full_size or num_rows), num_rows)
        state.step += 1
        state.position += 1
        if self.callbacks:
            dtype = torch.float32 if self.device.type == "mps" else torch.float64
            called("step", self, torch.as_tensor(value, dtype=dtype, device=self.device))

    def look(self) -> None:
        """Let the host wait for the device, here alone, and see whether all numbers were finite.

        Raises:
            TrainingError: If one was not; no step was taken since.
        """
        assert self.gradient_step.updates.failed is not None
        assert self.gradient_step.updates.num_made is not None
        if not self.gradient_step.updates.failed.item():
            self._check_weights()
            return
        state = self.progress
        failed = self.first_step + int(self.gradient_step.updates.num_made.item())
        epoch, position = divmod(failed, self.batches.num_batches)
        batch = next(self.batches.epoch(epoch, start=position))[: len(self.validate.rows)]
        state.step, state.epoch, state.position = failed, epoch, position
        raise TrainingError(self._explain(batch, -self.train_nats.compute()))

    def end_epoch(self) -> None:
        """Validate, write the record, and see whether it is the best so far."""
        self.look()
        state = self.progress
        with pyro.validation_enabled(False):  # what is not finite is explained below
            validated = self.validate()
        record = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "learning_rate": float(self._optimizer.param_groups[0]["lr"]),
            self.validate.quantity.training_key: self.train_nats.compute(),
            **validated,
            **(self.turns.end_epoch(self.program, *self.validate.rows) if self.turns else {}),
        }
        value = record[self.validate.quantity.validation_key]
        if not math.isfinite(value):
            raise TrainingError(self._explain(self.validate.rows, -value))
        record |= epoch_numbers(self, record)
        state.history.append(record)
        for log in (self.metrics, self.board):
            if log is not None:
                log.append(record)
        state.epoch, state.position = state.epoch + 1, 0
        self.train_nats = metrics.Mean()
        self._keep_best(value)

    def _keep_best(self, value: float) -> None:
        state = self.progress
        state.waited += 1
        if value > state.best_nats:
            state.best_nats, state.best_epoch, state.waited = value, state.epoch, 0
            self.best = cloned(weights_of(self.gradient_step))

    def finish(self) -> None:
        """Write the last state."""
        if self.board is not None:
            self.board.close()
        self.save()

    def take(self, weights: str) -> str:
        """Leave the "best" or the "last" weights in the program; return which they are."""
        taken = "last" if self.best is None else weights
        if taken == "best":
            assert self.best is not None
            put_weights(self.gradient_step, self.best)
        called("end", self)
        return taken

    def save(self) -> None:
        """Write a checkpoint, if there is a folder for it and all losses were finite."""
        self.look()
        if self.out is not None:
            checkpoint.save(self.out / "checkpoints", self.state(), step=self.progress.step)

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        return {
            "weights": weights_of(self.gradient_step),
            "beside": [module.state_dict() for module in self.beside],
            "best": self.best,
            "optimizer": self._optimizer.state_dict(),
            "random": restoring.random_state(),
            "progress": vars(self.progress),
            "train_nats": self.train_nats.state(),
            "settings": self.shared,
            "environment": self.environment,
        }

    def restore(self) -> None:
        """Take up the state of the newest checkpoint."""
        if self.out is None:
            raise ValueError("resume=True needs out=..., the folder of the run to go on with")
        path = checkpoint.latest(self.out / "checkpoints")
        if path is None:
            # Killed before the first checkpoint: the run starts again, to the same bits.
            self._rewrite_metrics()
            return
        state = checkpoint.load(path)
        self._check(state, path)
        restoring.set_random_state(state["random"])
        put_weights(self.gradient_step, state["weights"])
        for module, saved in zip(self.beside, state["beside"], strict=True):
            module.load_state_dict(saved)
        self.best = state["best"]
        own = self._optimizer.state_dict()["param_groups"]
        saved = state["optimizer"]["param_groups"]
        groups = [o | {"lr": s["lr"]} for o, s in zip(own, saved, strict=True)]
        self._optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        self.progress = Progress(**state["progress"])
        self.first_step = self.progress.step
        self.gradient_step.go_on(self.progress.step)
        self.train_nats.load(state["train_nats"])
        self._rewrite_metrics()

    def _check(self, state: dict[str, Any], path: Path) -> None:
        """Refuse a state that is not of this run, before anything is changed."""
        check_progress(state, path)
        for weights in (state["weights"], state.get("best")):
            if weights is not None:
                refuse_foreign(self.gradient_step, weights)
        check_settings(state.get("settings"), self.shared, path)
        steps = Steps(self.batches.num_batches, self.batches.rows_before)
        check_state(state, self.state(), steps, self._optimizer, self.gradient_step.reached, path)
        done = state["progress"]
        if (done["epoch"], done["position"]) > (self.epochs, 0):
            raise ValueError(
                f"epochs={self.epochs}: the run in {show(self.out or path)} is in epoch "
                f"{done['epoch'] + 1} already; give as many or more"
            )
        warn_if_other(state, self.state())

    def _rewrite_metrics(self) -> None:
        """Leave in the files what the restored history holds: later epochs are run again."""
        if self.metrics is not None:
            self.metrics.rewrite(self.progress.history)
        if self.board is not None:
            self.board.resume(self.progress.step)

    def goodbye(self) -> str:
        """Say where an interrupted run stands."""
        state = self.progress
        where = f"stopped in epoch {state.epoch + 1} at step {state.step}"
        if self.out is None:
            return where
        there = f"fit(..., out={str(self.out)!r}, resume=True)"
        return f"{where}; go on with: {command('train', 'resume', as_word(self.out), python=there)}"

    def _explain(self, batch: tuple[Tensor, ...], value: float) -> str:
        state, parameters = self.progress, self.gradient_step.parameters
        kept = checkpoint.latest(self.out / "checkpoints") if self.out else None
        good = f"; the last good checkpoint is {kept}" if kept else ""
        at = f"at step {state.step + 1} (epoch {state.epoch + 1})"
        bad = self._bad_gradients()
        if bad:
            cause = why_gradient(self.program, self.layout, parameters, bad, batch)
            return f"the loss is finite {at}, but {cause}{good}"
        where, cure = why_loss(self.program, self.layout, parameters, batch)
        cure = (
            cure or f"lower the learning rate or set a gradient norm ({option('clip_norm', 100)})"
        )
        return f"the loss is {value} {at}, {where}: {cure}{good}"

    def _bad_gradients(self) -> list[str]:
        """Return whose gradient was not finite where the loss was."""
        assert self.gradient_step.updates.faults is not None
        of_loss, *of_parameters = self.gradient_step.updates.faults.tolist()
        named = zip(self.gradient_step.parameters, of_parameters, strict=True)
        return [] if of_loss else [name for name, fault in named if fault]

    def _check_weights(self) -> None:
        for name, parameter in self.gradient_step.parameters.items():
            if name not in self._unbounded and not bool(parameter.isfinite().all()):
                raise TrainingError(
                    f"the update before step {self.progress.step + 1} left the parameter {name!r} "
                    "with numbers that are not finite: lower the learning rate"
                )
