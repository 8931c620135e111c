"""The parts of a training run, its stages, and the state that a resumed run starts from."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.budget import Budget
from pyro_vae.datasets import Data, Dataset
from pyro_vae.engine import checkpoint, metrics, restoring
from pyro_vae.engine.agreement import Steps, check_progress, check_state
from pyro_vae.engine.callbacks import Progress, called, epoch_numbers
from pyro_vae.engine.costs import check_step
from pyro_vae.engine.data import OBSERVATION_SEED, Batches, observe_once, representative
from pyro_vae.engine.defaults import (
    check_reported,
    default_objective,
    fitted_objective,
    resolve_device,
)
from pyro_vae.engine.description import constant_settings, program_settings
from pyro_vae.engine.failure import rehearsing, why_gradient, why_loss
from pyro_vae.engine.meeting import meet_data
from pyro_vae.engine.observations import Binarize, Dequantize, Rescale
from pyro_vae.engine.optimizers import check_constant_rate
from pyro_vae.engine.restoring import cuda_index
from pyro_vae.engine.resume_checks import check_settings, described, environment, warn_if_other
from pyro_vae.engine.settings import Settings
from pyro_vae.engine.single_rows import settle_single_rows
from pyro_vae.engine.step import Step
from pyro_vae.engine.taken import taking
from pyro_vae.engine.turns import part_in_turns
from pyro_vae.engine.updates import Updates
from pyro_vae.engine.weights import cloned, put_weights, refuse_foreign, weights_of
from pyro_vae.files import as_word, show
from pyro_vae.inference.dependence import ignores_data
from pyro_vae.inference.objectives import Objective
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program, ProgramError
from pyro_vae.inference.refusals import check_objective
from pyro_vae.inference.rows_apart import mixed_rows
from pyro_vae.inference.schedules import moving_in
from pyro_vae.inference.support import Part, check_support, observes_arguments
from pyro_vae.inference.terms import site_terms
from pyro_vae.inference.weights import weighted
from pyro_vae.recording.replaying import Replayed
from pyro_vae.wording import command, option, warn

__all__ = [
    "Training",
    "TrainingError",
]

_VALIDATION_ROWS = 1000
_CHECKED_ELEMENTS = 2**24


class TrainingError(ValueError):
    """Training met a number that is not finite; the last good checkpoint is kept."""


class Training:
    """The parts of a run and its state; each method is one stage of the loop."""

    def __init__(
        self,
        program: Program,
        data: Dataset,
        settings: Settings,
    ) -> None:
        self.device = resolve_device(settings.device)
        program = taking(program, data)
        for module in program.modules:
            module.to(self.device)
            if not module.training:  # a part in evaluation mode is meant so, a whole is not
                module.train()
        self.program, self.settings = program, settings
        self.epochs, self.seed, self.out = settings.epochs, settings.seed, settings.out
        self.turns, self.callbacks = settings.turns, settings.callbacks
        engine = settings.engine
        batch_size = settings.rows_of_a_batch(data)
        self._built = program_settings(program)
        followed = _weighted(program, data.train)
        weighted = followed is not program
        self._meet_data(data, batch_size, followed.fields)
        objective = settings.objective or default_objective(self._probe, weighted=weighted)
        objective = self._taken(fitted_objective(objective, self.layout, len(data.train)))
        if not isinstance(objective, Objective):
            check_reported(objective, self._weighted_probe(followed) if weighted else self._probe)
        settle_single_rows(
            self.batches, program, objective, batch_size,
            *self._rows(data.train[:3]),
        )  # fmt: skip
        clip_norm = settings.clip_norm
        if clip_norm is not None:
            clip_norm *= self.layout.full_size or batch_size
        self.gradient_step = Step(
            followed, objective, Updates(settings.optim, clip_norm, guarded=True),
            prepare=self.batches, engine=engine,
            num_steps=self.epochs * self.batches.num_batches,
            rare=lambda *draw: len(draw[0]) != batch_size,
        )  # fmt: skip
        if isinstance(objective, Objective):
            objective.accept(self.gradient_step.model, followed.guide, self.layout)
        self._find_parameters(followed, data.train[:3])
        self._unbounded = {
            name
            for name, p in self.gradient_step.parameters.items()
            if not bool(p.isfinite().all())
        }
        check_constant_rate(settings.optim, self._optimizer)
        self._warn_of_blind_guide(self._rows(data.train[:3]))
        self.rates = [group["lr"] for group in self._optimizer.param_groups]
        self._judged = self._recorded_judge(engine)
        self._num_judged = 0
        self.progress = Progress()
        self.num_steps = max(1, self.epochs * self.batches.num_batches)
        for number in self.moving:
            number.check(self.epochs * self.batches.num_batches)
        self.first_step = 0
        self.train_nats = metrics.Mean()
        self.best: dict[str, Any] | None = None
        self.shared = self._shared(data, objective, batch_size)
        out = self.out
        self.metrics = None if out is None else metrics.MetricsFile(out / "metrics.jsonl")
        board = out is not None and settings.log_tensorboard
        self.board = metrics.tensorboard(out / "tensorboard") if out and board else None

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What the bits of a step depend on beside the settings, from the first step on."""
        return environment(self.device, self.settings.engine, self.program)

    def begin(self, data: Dataset) -> None:
        """Let the program meet the training data, and judge it, unless it goes on from a state."""
        if not self.progress.start:
            if self.epochs > 0:
                rows = representative(data.train, self.settings.observation, device=self.device)
                meet_data(self._probe, *rows.tensors(self.program.fields))
            if (mixed := mixed_rows(self.program, *self._rows(data.train[:3]))) is not None:
                warn(mixed)
            self.progress.start = self.validate()
        del self._probe
        called("start", self)

    def _meet_data(self, data: Dataset, batch_size: int, fields: Sequence[str]) -> None:
        """Make batches, and run the program once on the validation rows."""
        self.batches = Batches(
            data.train, self.settings.observation, batch_size=batch_size, seed=self.seed,
            device=self.device, fields=fields,
        )  # fmt: skip
        self.validation = self._rows(data.validation, seed=OBSERVATION_SEED + 1)
        self._probe = Probe(self.program, *self.validation)
        self.layout = self._probe.layout
        for name in ("validation", "train", "test"):
            self._check_rows(name, data.parts[name])

    def _shared(self, data: Dataset, objective: ELBO, batch_size: int) -> dict[str, Any]:
        """Return what a run that goes on has to have in common with the one that stopped."""
        settings, schedule = self.settings, self.settings.schedule
        return {
            "program": constant_settings(self.program, self._built),
            "epochs": self.epochs, "batch_size": batch_size, "seed": self.seed,
            "patience": settings.patience, "clip_norm": settings.clip_norm,
            "objective": described(objective),
            "optimizer": type(self._optimizer).__name__, "learning_rates": self.rates,
            "schedule": getattr(schedule, "__qualname__", repr(schedule)),
            "turns": self.turns and repr(self.turns),
            "observation": repr(settings.observation),
            "data": data.fingerprint(),
        }  # fmt: skip

    def _taken(self, objective: ELBO) -> ELBO:
        """Take what an objective and handlers bring with them to the device, and check the pair."""
        program = self.program
        self.moving = moving_in(program.model, program.guide, *program.reachable, objective)
        beside = [*getattr(objective, "modules", {}).values(), *self.moving, self.turns]
        self.beside = [module for module in beside if module is not None]
        for module in self.beside:
            module.to(self.device)
        with Budget():
            check_objective(objective, self._probe)
        return objective

    def _recorded_judge(self, engine: str) -> Replayed:
        num_rows = len(self.validation[0])
        return Replayed(
            self.program, self._judge,
            engine=engine, num_calls=self.epochs * -(-num_rows // _VALIDATION_ROWS),
            rare=lambda *rows: len(rows[0]) < min(_VALIDATION_ROWS, num_rows),
        )  # fmt: skip

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        if self.gradient_step.optimizer is None:
            raise ProgramError(
                "the program has no trainable parameters: nothing can be fitted; hold its modules "
                "as attributes (of a list, in nn.ModuleList), or name them by pyro.module"
            )
        return self.gradient_step.optimizer

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or patience has run out."""
        patience = self.settings.patience
        stopped = patience is not None and self.progress.waited >= patience
        return self.progress.epoch >= self.epochs or stopped

    def _check_rows(self, name: str, part: Data) -> None:
        """Hold all rows of a part against what the program observes, some at a time."""
        levelled = isinstance(self.settings.observation, (Binarize, Dequantize, Rescale))
        if (
            name != "validation"
            and levelled
            and not part.x.is_floating_point()
            and observes_arguments(self._probe)
        ):
            return  # whatever the integers, the result has the range of the validation rows
        step = max(1, _CHECKED_ELEMENTS // max(1, part.x[0].numel()))
        for begin in range(0, len(part), step):
            rows = self._rows(part[begin : begin + step])
            check_support(self._probe, *rows, part=Part(name, part.rows, begin))

    def _rows(
        self, data: Data, seed: int | None = None, program: Program | None = None
    ) -> tuple[Tensor, ...]:
        """Return some rows, observed once, as a program takes them."""
        seed = self.seed if seed is None else seed
        observation = self.settings.observation
        observed = observe_once(data, observation, seed=seed, device=self.device)
        return observed.tensors((program or self.program).fields)

    def _weighted_probe(self, followed: Program) -> Probe:
        """Look at what is trained where the data have weights: the first may be 1 by chance."""
        rows = self._probe.rows
        return Probe(followed, *rows, torch.full((len(rows[0]),), 2.0, device=self.device))

    def _find_parameters(self, followed: Program, few: Data) -> None:
        """Run once, under validation and aside from the random state, to meet all parameters."""
        batch, met = self._rows(few), self._rows(few, program=followed)
        modules = [*self.program.modules, *self.beside]
        before = copy.deepcopy([module.state_dict() for module in modules])
        with (
            torch.random.fork_rng(devices=cuda_index(self.device)),
            pyro.validation_enabled(True),
            warnings.catch_warnings(),
        ):
            # The program has not met the units of its data yet.
            warnings.filterwarnings("ignore", message="Encountered NaN")
            self.largest_product = check_step(
                lambda: self.gradient_step.parameters,
                lambda: self.gradient_step.optimizer,
                lambda count: self.gradient_step.meet_parameters(
                    *(rows[torch.arange(count, device=rows.device) % len(rows)] for rows in met)
                ),
                self.batches.batch_size,
            )
            if self.turns is not None:
                parameters = [*self.gradient_step.parameters.values()]
                part_in_turns(self._optimizer, parameters, self.program, self.layout, *batch)
                self.turns.check(self.program, *batch)
                self.gradient_step.take_turns(self.turns, self.layout.full_size)
        for module, state in zip(modules, before, strict=True):
            module.load_state_dict(state, strict=False)

    def _warn_of_blind_guide(self, batch: tuple[Tensor, ...]) -> None:
        with rehearsing(self.program), pyro.validation_enabled(False):
            is_blind = ignores_data(self.program, *batch)
        if is_blind:
            warn(
                "the guide is the same for every datum: none of its latents is computed from the "
                "data, as a prior's are; give it an encoder, such as "
                "Conditional(DiagonalNormal((40,)), context_shape=..., network=MLP)"
            )

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
        batch = next(self.batches.epoch(epoch, start=position))[: len(self.validation)]
        state.step, state.epoch, state.position = failed, epoch, position
        raise TrainingError(self._explain(batch, -self.train_nats.compute()))

    def end_epoch(self) -> None:
        """Judge on the validation set, write the record, and see whether it is the best so far."""
        self.look()
        state = self.progress
        with pyro.validation_enabled(False):  # what is not finite is explained below
            validated = self.validate()
        record = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "learning_rate": float(self._optimizer.param_groups[0]["lr"]),
            "train_nats": self.train_nats.compute(),
            **validated,
            **(self.turns.end_epoch(self.program, *self.validation) if self.turns else {}),
        }
        if not math.isfinite(record["validation_elbo_nats"]):
            raise TrainingError(self._explain(self.validation, -record["validation_elbo_nats"]))
        record |= epoch_numbers(self, record)
        state.history.append(record)
        for log in (self.metrics, self.board):
            if log is not None:
                log.append(record)
        state.epoch, state.position = state.epoch + 1, 0
        self.train_nats = metrics.Mean()
        self._keep_best(record["validation_elbo_nats"])

    def _keep_best(self, elbo_nats: float) -> None:
        state = self.progress
        state.waited += 1
        if elbo_nats > state.best_nats:
            state.best_nats, state.best_epoch, state.waited = elbo_nats, state.epoch, 0
            self.best = cloned(weights_of(self.gradient_step))

    def validate(self) -> dict[str, float]:
        """Return the ELBO on the validation set, split into rate and distortion."""
        rate, distortion = metrics.Mean(), metrics.Mean()
        with self.program.evaluating(seed=self.seed + 2):
            for rows in _chunks(self.validation, _VALIDATION_ROWS):
                found = self._judged(self._num_judged, None, *rows) or self._judge(*rows)
                self._num_judged += 1
                for mean, value in zip((rate, distortion), found, strict=True):
                    assert value is not None
                    mean.add(value, len(rows[0]))
        nats = {"rate": rate.compute(), "distortion": distortion.compute()}
        return {
            "validation_elbo_nats": -nats["rate"] - nats["distortion"],
            "validation_rate_nats": nats["rate"],
            "validation_distortion_nats": nats["distortion"],
        }

    def _judge(self, *rows: Tensor) -> tuple[Tensor, Tensor]:
        terms = site_terms(self.program, self.layout, *rows)
        return terms.rate.mean(), terms.distortion.mean()

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


def _weighted(program: Program, train: Data) -> Program:
    """Return what is trained: the program, or with the weights of its rows as a last field.

    One that takes the weights itself weighs by itself.
    """
    if train.weights is None or "weights" in program.fields:
        return program
    found = Program(weighted(program.model), weighted(program.guide))
    found.fields = (*program.fields, "weights")
    return found


def _chunks(args: tuple[Tensor, ...], rows: int) -> Iterator[tuple[Tensor, ...]]:
    for start in range(0, len(args[0]), rows):
        yield tuple(arg[start : start + rows] for arg in args)
